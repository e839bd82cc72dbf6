import CAio
import Glibc
import SystemPackage

/// An exclusive lock on a file (flock(2)), held until the object dies or the process ends in any way.
public final class FileLock: Sendable {
    /// The locked file.
    public let path: String
    private let descriptor: CInt

    /// Milliseconds for which a lock is tried again. A process that has just ended, or let go, may have left its lock to a
    /// child that it had forked: that has the descriptor until it executes its program.
    private static let patience = 200
    private static let pause = 10

    /// Makes the file with permissions 0600 when it is missing, and locks it; blocks for a fifth of a second at most. An
    /// error whose ``IOError/isLocked`` is true says that another process holds it.
    public init(path: String) throws(IOError) {
        let opened = CInt(
            try checked(Int64(caio_open(path, O_RDWR | O_CREAT | caio_O_CLOEXEC, 0o600)), "open", path))
        var answer = caio_lock_exclusive(opened)
        for _ in 0..<Self.patience / Self.pause where answer == -EWOULDBLOCK {
            usleep(UInt32(Self.pause) * 1000)
            answer = caio_lock_exclusive(opened)
        }
        guard answer == 0 else {
            caio_close(opened)
            throw IOError(operation: "lock", path: path, errno: Errno(rawValue: -answer))
        }
        self.path = path
        self.descriptor = opened
    }

    deinit { caio_close(descriptor) }
}
