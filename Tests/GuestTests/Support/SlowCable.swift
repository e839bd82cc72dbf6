import Foundation
import Synchronization

/// A link that carries so many bytes in a second from the primary to the secondary, and everything the other way.
final class SlowCable {
    let address: String
    private let folder: FakeFolder
    private let listener: FakeListener
    private let rate: Rate

    private final class Rate: Sendable {
        let bytesPerSecond: Mutex<Int>
        init(_ value: Int) { bytesPerSecond = Mutex(value) }
    }

    init(to target: String, bytesPerSecond: Int) throws {
        folder = try FakeFolder()
        address = "unix:\(folder["slow.sock"])"
        let rate = Rate(bytesPerSecond)
        self.rate = rate
        listener = try FakeListener.relay(address, to: target) { primary, secondary in
            var due = monotonicSeconds()
            while true {
                let speed = Double(rate.bytesPerSecond.withLock { $0 })
                let bytes = primary.read(max(1, min(64 << 10, Int(speed / 20))))
                guard !bytes.isEmpty, secondary.write(bytes) else { break }
                due = max(due, monotonicSeconds() - 0.05) + Double(bytes.count) / speed
                pause(milliseconds: Int(max(0, due - monotonicSeconds()) * 1000))
            }
        }
    }

    func setRate(bytesPerSecond: Int) { rate.bytesPerSecond.withLock { $0 = bytesPerSecond } }
}
