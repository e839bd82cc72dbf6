import AsyncIO
import Glibc

/// The guest that runs on this host after a failover: found again by whoever opens the store next.
///
/// `run/guest` in the replica's tmpfs folder holds the process id and the QMP socket, a line each. The process counts
/// as ours only while its command line names that socket, so a reused id is never taken for the guest.
struct RunningGuest {
    let pid: Int32
    let qmpSocket: String

    private static func path(_ runDirectory: String) -> String { "\(runDirectory)/guest" }

    func save(runDirectory: String) throws {
        try WholeFile.write(Self.path(runDirectory), Array("\(pid)\n\(qmpSocket)\n".utf8), durable: false)
    }

    static func find(runDirectory: String) -> RunningGuest? {
        guard let bytes = try? WholeFile.read(path(runDirectory), limit: 4096) else { return nil }
        let lines = String(decoding: bytes, as: UTF8.self).split(separator: "\n")
        guard lines.count == 2, let pid = Int32(lines[0]), pid > 1 else { return nil }
        let guest = RunningGuest(pid: pid, qmpSocket: String(lines[1]))
        return guest.isAlive ? guest : nil
    }

    var isAlive: Bool {
        guard let process = try? GuestProcess.read(pid: pid) else { return false }
        return process.arguments.contains { $0.contains(qmpSocket) }
    }
}
