/// Why a path is not the monitor we need, told apart as far as the kernel and the peer let us.
public struct QMPConnectError: Error, Equatable, CustomStringConvertible {
    public enum Kind: Equatable, Sendable {
        /// Nothing is at the path.
        case missing
        /// Something is, but it is no socket.
        case notSocket
        /// We may not look at it or connect to it.
        case permission
        /// A socket nobody listens to any more.
        case refused
        /// Longer than a unix socket's address may be.
        case pathTooLong
        /// QEMU listens, but somebody else has the monitor: a monitor serves one client at a time.
        case busy
        /// The peer talks, but not QMP; its words.
        case notQMP(String)
        /// The peer closed the connection before its greeting.
        case closed
        /// QEMU refused the negotiation; its words.
        case negotiation(String)
        /// Any other error of a system call.
        case system(String)
    }

    public let path: String
    public let kind: Kind

    public init(path: String, kind: Kind) {
        self.path = path
        self.kind = kind
    }

    public var description: String {
        switch kind {
        case .missing: return "\(path): no such socket; is the guest running, and was it started with -qmp?"
        case .notSocket: return "\(path) is not a socket; give the path of the guest's -qmp unix socket"
        case .permission: return "\(path): permission denied; run as the user that runs the guest, or as root"
        case .refused: return "\(path): nobody listens; the guest that made this socket has ended"
        case .pathTooLong: return "\(path) is longer than the 107 bytes of a unix socket's path; use a shorter one"
        case .busy:
            return "\(path): another client, libvirt perhaps, is connected to this monitor, or QEMU hangs; "
                + "a monitor serves one client: disconnect it, or give the guest a second -qmp socket"
        case .notQMP(let words):
            return "\(path) does not speak QMP (it says: \(words)); a human monitor (-monitor) will not do, "
                + "give the path of a -qmp socket"
        case .closed: return "\(path): the peer closed the connection before its greeting; is it a QEMU monitor?"
        case .negotiation(let words): return "\(path): QEMU refused the QMP negotiation: \(words)"
        case .system(let words): return "\(path): \(words)"
        }
    }
}
