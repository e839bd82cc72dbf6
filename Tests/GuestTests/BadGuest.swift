import Foundation
import Glibc
import Synchronization
import Testing

/// A real test guest (Images/launch). Its QEMU dies with the test process, whatever becomes of that.
final class BadGuest: @unchecked Sendable {
    // Sendable by hand: everything is set once in init, and the suites that use it are serialized.
    let pid: Int32
    private let folder: FakeFolder
    private let keeper: Process
    private let lifeline: Pipe

    var qmp: String { folder["qmp.sock"] }
    /// A second monitor of the same guest, for whoever wants to look while an attach holds the first.
    var otherQMP: String { folder["other.sock"] }
    var serial: String { (try? String(contentsOfFile: folder["serial.log"], encoding: .utf8)) ?? "" }

    private static let shared = Mutex<BadGuest?>(nil)
    private static let keeping =
        "\"$@\" & echo $!; exec >&-; cat >/dev/null; kill -9 $! 2>/dev/null; wait; rm -rf \"$0\""

    /// The guest that most tests share: workload `all` on one raw disk.
    static func running() throws -> BadGuest {
        try shared.withLock { shared in
            if let guest = shared, kill(guest.pid, 0) == 0 { return guest }
            let guest = try BadGuest(["--mode", "all", "--append", "colo.rate=1000 colo.disk_rate=50"])
            shared = guest
            return guest
        }
    }

    /// Ends the shared guest, so that another one has the machine for itself.
    static func stopShared() {
        shared.withLock { $0 = nil }
    }

    init(_ arguments: [String]) throws {
        folder = try FakeFolder()
        keeper = Process()
        lifeline = Pipe()
        let answer = Pipe()
        keeper.executableURL = URL(filePath: "/bin/bash")
        let launch = FakeTool.repository.appending(path: "Images/launch").path
        // The keeper waits for the end of its input, which comes when this process ends.
        keeper.arguments =
            ["-c", Self.keeping, folder.path, launch, "--dir", folder.path] + arguments
            + ["--", "-qmp", "unix:\(folder["other.sock"]),server=on,wait=off"]
        keeper.standardInput = lifeline
        keeper.standardOutput = answer
        try keeper.run()
        let line = String(decoding: answer.fileHandleForReading.availableData, as: UTF8.self)
        guard let pid = Int32(line.trimmingCharacters(in: .whitespacesAndNewlines)) else {
            throw FakeFailure("Images/launch did not start: \(line)")
        }
        self.pid = pid
        guard FakeTool.wait(120, for: { tick >= 5 })
        else { throw FakeFailure("the guest does not boot: \(serial.suffix(500))") }
    }

    deinit {
        try? lifeline.fileHandleForWriting.close()
        keeper.waitUntilExit()
    }

    /// The newest tick on the serial console.
    var tick: Int { Self.lastTick(in: serial) }

    static func lastTick(in serial: String) -> Int {
        guard let line = serial.split(separator: "\n").last(where: { $0.hasPrefix("TICK ") && $0.contains(" up=") })
        else {
            return 0
        }
        return line.split(separator: " ").dropFirst().first.flatMap { Int($0) } ?? 0
    }

    /// The guest ticks on, is the guest that it was, and nothing of ours is in it.
    func expectUntouched(_ location: SourceLocation = #_sourceLocation) throws {
        try expectTicking(location)
        let monitor = try FakeQMP(otherQMP)
        let jobs = try monitor.execute("query-block-jobs") as? [[String: Any]] ?? []
        #expect(jobs.isEmpty, "\(jobs)", sourceLocation: location)
        for (command, key) in [("query-named-block-nodes", "node-name"), ("query-chardev", "label")] {
            let names = (try monitor.execute(command) as? [[String: Any]] ?? []).compactMap { $0[key] as? String }
            let ours = names.filter { $0.hasPrefix("colo-blk") }
            #expect(ours.isEmpty, "\(command)", sourceLocation: location)
        }
        let migration = try monitor.execute("query-migrate") as? [String: Any]
        let isOver = ["", "none", "completed", "failed", "cancelled"].contains(migration?["status"] as? String ?? "")
        #expect(isOver, "\(migration ?? [:])", sourceLocation: location)
        let capabilities = try monitor.execute("query-migrate-capabilities") as? [[String: Any]] ?? []
        let colo = capabilities.first { $0["capability"] as? String == "x-colo" }
        #expect(colo?["state"] as? Bool == false, sourceLocation: location)
    }

    /// Half a second of guest time passes, and the self-checks are silent.
    func expectTicking(_ location: SourceLocation = #_sourceLocation) throws {
        let before = tick
        let goesOn = FakeTool.wait(5) { tick >= before + 5 }
        #expect(goesOn, "the guest stands still at tick \(before)", sourceLocation: location)
        let text = serial
        for word in ["RAMFAIL", "DISKFAIL", "Oops", "Kernel panic"] {
            #expect(!text.contains(word), "\(word) on the serial console", sourceLocation: location)
        }
        let boots = Set(
            text.split(separator: "\n").filter { $0.hasPrefix("TICK ") && $0.contains(" up=") }
                .compactMap { $0.split(separator: " ").first { $0.hasPrefix("boot=") } })
        #expect(boots.count == 1, "the guest was restarted: \(boots)", sourceLocation: location)
    }
}

/// A guest that a failover started; killed when it is let go.
final class BadRestoredGuest {
    let pid: Int32
    let epoch: Int
    let generation: Int

    init(report: String) throws {
        let json = try JSONSerialization.jsonObject(with: Data(report.utf8)) as? [String: Any] ?? [:]
        guard let pid = json["pid"] as? Int, let epoch = json["epoch"] as? Int,
            let generation = json["generation"] as? Int
        else { throw FakeFailure("not a failover's report: \(report)") }
        (self.pid, self.epoch, self.generation) = (Int32(pid), epoch, generation)
    }

    deinit { kill() }

    func kill() { _ = Glibc.kill(pid, SIGKILL) }
}
