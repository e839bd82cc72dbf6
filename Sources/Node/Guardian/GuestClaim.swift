import Glibc

/// One attach per guest: held by the guardian for as long as it lives, whatever monitor it came through.
///
/// A name in the kernel's table of abstract unix sockets (unix(7)), so nothing is left behind by a kill. A guest that
/// bears marks of ours while nobody claims it carries the remains of a dead attach; one that is claimed is protected.
final class GuestClaim: Sendable {
    struct Taken: Error, CustomStringConvertible {
        let pid: Int32
        var description: String {
            "the guest (process \(pid)) is being protected by another colo-blk attach already; end that one first "
                + "(Ctrl-C, SIGTERM, or colo-blk detach on the secondary)"
        }
    }

    private let descriptor: CInt

    /// - Parameter pid: the process of QEMU.
    init(pid: Int32) throws(Taken) {
        descriptor = socket(AF_UNIX, CInt(SOCK_STREAM.rawValue) | CInt(SOCK_CLOEXEC.rawValue), 0)
        guard descriptor >= 0 else { return }
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        // The first byte stays zero: that makes the name abstract.
        let name = Array("colo-blk-guest-\(pid)-\(Self.startTime(of: pid))".utf8)
        withUnsafeMutableBytes(of: &address.sun_path) { path in
            for (index, byte) in name.enumerated() { path[index + 1] = byte }
        }
        let length = MemoryLayout<sa_family_t>.size + 1 + name.count
        let result = withUnsafePointer(to: &address) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { bind(descriptor, $0, socklen_t(length)) }
        }
        guard result != 0, errno == EADDRINUSE else { return }
        throw Taken(pid: pid)
    }

    deinit { if descriptor >= 0 { close(descriptor) } }

    /// When the process began, in clock ticks since the host's start: tells processes of the same id apart.
    private static func startTime(of pid: Int32) -> String {
        var text = [UInt8](repeating: 0, count: 4096)
        let file = open("/proc/\(pid)/stat", O_RDONLY | O_CLOEXEC)
        guard file >= 0 else { return "" }
        defer { close(file) }
        let count = read(file, &text, text.count)
        // The second field is a name in parentheses, which may hold anything.
        guard count > 0, let end = text[..<count].lastIndex(of: UInt8(ascii: ")")) else { return "" }
        let fields = text[(end + 1)..<count].split(separator: UInt8(ascii: " "))
        return fields.count > 19 ? String(decoding: fields[19], as: UTF8.self) : ""
    }
}
