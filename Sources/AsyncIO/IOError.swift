import SystemPackage

/// A call on a file failed: what was tried, on which file, where in it, and the kernel's reason.
public struct IOError: Error, Equatable, Sendable, CustomStringConvertible {
    /// The call, such as `open`, `pread` or `fdatasync`.
    public let operation: String
    /// The file as it was named when it was opened.
    public let path: String
    /// Offset in bytes from the start of the file; nil where the call has none.
    public let offset: UInt64?
    /// The kernel's reason. ``Errno/noData`` stands for a file that ends before the bytes that were asked for.
    public let errno: Errno

    public init(operation: String, path: String, offset: UInt64? = nil, errno: Errno) {
        self.operation = operation
        self.path = path
        self.offset = offset
        self.errno = errno
    }

    /// The file system or the quota is full.
    public var isNoSpace: Bool { errno == .noSpace || errno == Self.quotaExceeded }

    /// There is no such file or directory.
    public var isNotFound: Bool { errno == .noSuchFileOrDirectory }

    /// Somebody else holds the lock.
    public var isLocked: Bool { errno == .wouldBlock || errno == .resourceTemporarilyUnavailable }

    /// The file ended before the bytes that were asked for.
    public var isUnexpectedEnd: Bool { errno == .noData }

    public var description: String {
        let place = offset.map { " at byte \($0)" } ?? ""
        let reason = isUnexpectedEnd ? "the file ends here" : "\(errno)"
        return "\(operation) of \(path)\(place) failed: \(reason) (errno \(errno.rawValue)). \(remedy)"
    }

    private var remedy: String {
        if isNoSpace { return "Free space on this file system, then start again." }
        if isUnexpectedEnd { return "The file was cut; restore it or make a new replica." }
        switch errno {
        case .ioError: return "The device below reports errors; look into the kernel log."
        case .permissionDenied, .notPermitted: return "Run as the owner of the store."
        case .noSuchFileOrDirectory: return "Check the path."
        case .wouldBlock: return "Another process uses it; stop that one first."
        default: return "See the reason above."
        }
    }

    private static let quotaExceeded = Errno(rawValue: 122)
}

/// Turns a door's answer (a count, or a negative errno) into a count or an error.
@inline(__always)
func checked(
    _ answer: Int64, _ operation: @autoclosure () -> String, _ path: @autoclosure () -> String, _ offset: UInt64? = nil
) throws(IOError) -> Int {
    guard answer < 0 else { return Int(answer) }
    throw IOError(operation: operation(), path: path(), offset: offset, errno: Errno(rawValue: CInt(-answer)))
}
