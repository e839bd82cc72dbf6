import CLinux
import Glibc

/// The name of a unix socket that a server has bound, or is about to.
enum UnixSocketPath {
    struct InTheWay: Error, CustomStringConvertible {
        let description: String
    }

    /// Whether somebody listens there. The listener sees a connection that is closed at once.
    static func isListening(_ path: String) -> Bool {
        let descriptor = clx_connect_unix(path)
        guard descriptor >= 0 else { return false }
        Glibc.close(descriptor)
        return true
    }

    /// Removes a socket that nobody listens to any more, and nothing else.
    static func clear(_ path: String) throws(InTheWay) {
        let kind = clx_file_kind(path)
        guard kind > 0 else { return }
        guard kind == 1 else { throw InTheWay(description: "something that is no socket is there") }
        let descriptor = clx_connect_unix(path)
        guard descriptor < 0 else {
            Glibc.close(descriptor)
            throw InTheWay(description: "the address is in use by another process")
        }
        unlink(path)
    }
}
