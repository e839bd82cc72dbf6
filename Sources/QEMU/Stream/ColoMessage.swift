/// The messages of QEMU's COLO protocol, each one a big-endian 32-bit number on the migration socket.
///
/// The primary QEMU and the secondary (here: the agent) take strict turns; see ``ColoPrimaryStream/State``.
public enum ColoMessage: UInt32, Sendable, CaseIterable, CustomStringConvertible {
    /// Agent to QEMU, once: the initial state is held; the guest may run.
    case checkpointReady = 0
    /// QEMU to agent: a checkpoint is due; the guest still runs.
    case checkpointRequest = 1
    /// Agent to QEMU: stop the guest and begin.
    case checkpointReply = 2
    /// QEMU to agent: the guest is stopped and its disks are drained. The epoch boundary. RAM follows.
    case vmstateSend = 3
    /// QEMU to agent: a 64-bit length and that many bytes of device state follow.
    case vmstateSize = 4
    /// Agent to QEMU: everything of this checkpoint has arrived.
    case vmstateReceived = 5
    /// Agent to QEMU: go on; the guest resumes.
    case vmstateLoaded = 6

    /// The name that QEMU's own QAPI schema gives the message.
    public var description: String {
        switch self {
        case .checkpointReady: "checkpoint-ready"
        case .checkpointRequest: "checkpoint-request"
        case .checkpointReply: "checkpoint-reply"
        case .vmstateSend: "vmstate-send"
        case .vmstateSize: "vmstate-size"
        case .vmstateReceived: "vmstate-received"
        case .vmstateLoaded: "vmstate-loaded"
        }
    }

    /// The four bytes on the wire.
    var bytes: [UInt8] {
        [
            UInt8(rawValue >> 24 & 0xFF), UInt8(rawValue >> 16 & 0xFF), UInt8(rawValue >> 8 & 0xFF),
            UInt8(rawValue & 0xFF),
        ]
    }
}
