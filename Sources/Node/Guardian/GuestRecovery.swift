import Logging
import NIOPosix
import QEMU

/// `colo-blk detach --recover`: puts a guest back that an attach left as it was when it died altogether, or whose
/// network one left closed.
public enum GuestRecovery {
    /// - Returns: what was found and removed, in words; empty when there was nothing of ours.
    /// - Throws: when the monitor cannot be used, when a living attach protects the guest, and when QEMU refuses.
    public static func run(qmp path: String, log: Logger) async throws -> [String] {
        let client = try await QMPClient.connect(path: path, eventLoop: MultiThreadedEventLoopGroup.singleton.next())
        defer { client.close() }
        let claim = try client.peerPID.map { pid throws(GuestClaim.Taken) in try GuestClaim(pid: pid) }
        defer { withExtendedLifetime(claim) {} }
        let remains = await GuestRestoration.findRemains(client)
        try await GuestRestoration.removeRemains(ofDeadAttachIn: client, log: log)
        return remains
    }
}
