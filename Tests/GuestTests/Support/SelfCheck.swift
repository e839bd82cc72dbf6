import Foundation
import Testing

/// What was observed of a guest after its failover.
struct SelfCheck: CustomStringConvertible {
    let epoch: Int
    /// From the decision until QEMU reported RUNNING.
    let milliseconds: Double
    /// Ticks that had been seen and were taken back.
    let lostTicks: Int
    let ramRounds: Int
    let diskReports: Int

    var description: String {
        "epoch \(epoch), RUNNING after \(Int(milliseconds.rounded())) ms, \(lostTicks) ticks back, "
            + "\(ramRounds) RAM rounds and \(diskReports) disk reports passed"
    }

    /// Follows a restored guest for some seconds: it must be the guest that died, at most `mostLostTicks` older, and
    /// every self-check must pass and go on passing.
    static func follow(
        _ guest: Guest, after lastTick: SerialLog.Tick, report: JSON, seconds: Double = 5, mostLostTicks: Int = 30
    ) throws -> SelfCheck {
        let serial = guest.serial
        let start = monotonicSeconds()
        let deadline = start + seconds + 30
        while true {
            serial.read()
            guard serial.faults.isEmpty else {
                throw TestFailure("the restored guest reports \(serial.faults) (\(serial.summary))")
            }
            guard guest.isAlive else {
                throw TestFailure("the restored guest's QEMU ended: \(tail(of: guest.qemuLog))")
            }
            let ticks = (serial.lastTick?.number ?? 0) - (serial.firstTick?.number ?? 0)
            let busyDisks = serial.diskLines.filter { $0.value >= 2 }.count
            let passed = ticks >= 10 && serial.ramLines >= 3 && busyDisks == guest.writingDisks
            if passed, monotonicSeconds() - start >= seconds { break }
            guard monotonicSeconds() < deadline else {
                throw TestFailure("the restored guest makes no progress: \(serial.summary)")
            }
            pause(milliseconds: 50)
        }
        guard let first = serial.firstTick else { throw TestFailure("no tick of the restored guest") }
        let lost = lastTick.number - (first.number - 1)
        // A tick's line may have been cut in two by the checkpoint: no log has it whole.
        let isCut = serial.fragment != nil
        guard first.boot == lastTick.boot else {
            throw TestFailure("another guest: boot \(first.boot) after boot \(lastTick.boot)")
        }
        guard lost >= (isCut ? -1 : 0) else {
            throw TestFailure("tick \(first.number) follows tick \(lastTick.number): one is missing")
        }
        guard lost <= mostLostTicks else {
            throw TestFailure(
                "\(lost) ticks lost, more than \(mostLostTicks): tick \(first.number) after \(lastTick.number)")
        }
        return SelfCheck(
            epoch: report["epoch"].int ?? -1, milliseconds: report["millisecondsToRunning"].double ?? -1,
            lostTicks: max(0, lost), ramRounds: serial.ramLines, diskReports: serial.diskLines.values.reduce(0, +))
    }
}
