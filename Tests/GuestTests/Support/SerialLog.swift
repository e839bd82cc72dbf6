import Foundation

/// What a guest says on its serial console, read as it grows. See Images/guest/selfcheck.c for the lines.
final class SerialLog {
    struct Tick: Equatable {
        let number: Int
        let boot: String
    }

    let path: String
    private var offset: UInt64 = 0
    private var rest: [UInt8] = []
    private var isFirstLine = true

    /// The end of a line that a restored guest was printing at its checkpoint.
    private(set) var fragment: String?
    private(set) var firstTick: Tick?
    private(set) var lastTick: Tick?
    private(set) var ramRounds = 0
    private(set) var ramLines = 0
    /// DISKOK lines and the highest record, by device.
    private(set) var diskLines: [String: Int] = [:]
    private(set) var diskRecords: [String: Int] = [:]
    /// Everything that must never be said: wrong RAM, wrong records, a tick out of turn, a kernel in trouble.
    private(set) var faults: [String] = []

    init(path: String) { self.path = path }

    /// Reads what is new.
    func read() {
        guard let file = FileHandle(forReadingAtPath: path) else { return }
        defer { try? file.close() }
        guard (try? file.seek(toOffset: offset)) != nil, let data = try? file.readToEnd() else { return }
        offset += UInt64(data.count)
        rest += data
        var start = rest.startIndex
        while let newline = rest[start...].firstIndex(of: UInt8(ascii: "\n")) {
            take(String(decoding: rest[start..<newline], as: UTF8.self).filter { $0 != "\r" && $0 != "\0" })
            start = newline + 1
        }
        rest.removeSubrange(..<start)
    }

    /// The guest is about to boot anew: its ticks begin again.
    func expectRestart() {
        read()
        lastTick = nil
    }

    private static let alarms = [
        "RAMFAIL", "DISKFAIL", "Kernel panic", "Oops", "BUG:", "Call Trace", "I/O error", "SELFCHECK bad",
        "soft lockup",
    ]

    private static let kinds = ["TICK", "RAMOK", "DISKOK", "DISKSCAN", "NETOK", "SELFCHECK"]

    private func take(_ line: String) {
        if isFirstLine, !Self.kinds.contains(where: { line.hasPrefix($0 + " ") }) { fragment = line }
        isFirstLine = false
        let words = line.split(separator: " ").map(String.init)
        if let alarm = Self.alarms.first(where: { line.contains($0) }) {
            if faults.count < 20 { faults.append("\(alarm): \(line)") }
            return
        }
        guard let kind = words.first, words.count > 1 else { return }
        switch kind {
        case "TICK":
            guard let number = Int(words[1]), words.count > 2, words[2].hasPrefix("boot=") else { return }
            let tick = Tick(number: number, boot: String(words[2].dropFirst(5)))
            if let last = lastTick, tick.number != last.number + 1 || tick.boot != last.boot {
                faults.append("tick \(tick.number) of boot \(tick.boot) after tick \(last.number) of boot \(last.boot)")
            }
            firstTick = firstTick ?? tick
            lastTick = tick
        case "RAMOK":
            ramRounds = Int(words[1]) ?? ramRounds
            ramLines += 1
        case "DISKOK":
            guard words.count > 2 else { return }
            diskLines[words[1], default: 0] += 1
            diskRecords[words[1]] = Int(words[2]) ?? 0
        default: return
        }
    }

    var summary: String {
        let disks = diskRecords.sorted { $0.key < $1.key }.map { "\($0.key) \($0.value)" }.joined(separator: ", ")
        return "tick \(lastTick?.number ?? -1), \(ramLines) RAM rounds, disks [\(disks)], faults \(faults)"
    }
}
