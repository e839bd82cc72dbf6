import Synchronization

/// A call on a file or a directory that is about to be made. Paths are those that the caller used; memory is valid
/// during the notification only.
public enum FileCall {
    /// A directory is made (mkdir(2)); it may exist.
    case makeDirectory(path: String)
    /// An empty file is made, or an existing one is emptied (open(2)).
    case create(path: String)
    case read(path: String, offset: UInt64, length: Int)
    case write(path: String, offset: UInt64, bytes: UnsafeRawBufferPointer)
    /// The range reads as zeroes afterwards; the size stays (punched, or zeroed in place).
    case zero(path: String, offset: UInt64, length: UInt64)
    /// Space is taken; the file ends at or behind the range afterwards.
    case allocate(path: String, offset: UInt64, length: UInt64)
    case truncate(path: String, size: UInt64)
    /// The file's contents and size become durable.
    case sync(path: String)
    /// The names in the directory become durable.
    case syncDirectory(path: String)
    case rename(from: String, to: String)
    case remove(path: String)
    case removeDirectory(path: String)

    /// The file or directory; of a rename, the new name.
    public var path: String {
        switch self {
        case .makeDirectory(let path), .create(let path), .read(let path, _, _), .write(let path, _, _),
            .zero(let path, _, _), .allocate(let path, _, _), .truncate(let path, _), .sync(let path),
            .syncDirectory(let path), .rename(_, let path), .remove(let path), .removeDirectory(let path):
            path
        }
    }

    /// Whether the call leaves everything as it is.
    public var isRead: Bool { if case .read = self { true } else { false } }
}

/// Sees every call of this module on the files below a directory, before it is made, and may have it fail.
///
/// It is what crash tests record with and what failure tests inject with. Memory that is mapped is changed without a
/// call, so that ``MappedMemory`` is not seen. Calls come on whatever thread makes them.
public protocol FileObserver: AnyObject, Sendable {
    /// An error is thrown to the caller, and the call is not made.
    func willPerform(_ call: FileCall) throws(IOError)
}

/// Who observes which directory of this process. Nobody does in production: then a file carries an optional that is
/// nil, and nothing else of this costs anything.
public enum FileObservation {
    private struct Entry {
        let prefix: String
        let observer: any FileObserver
    }

    private static let entries = Mutex<[Entry]>([])
    private static let isUsed = Atomic<Bool>(false)

    /// Files that are opened from now on below the directory are observed, and changes of its names.
    public static func begin(below directory: String, _ observer: any FileObserver) {
        entries.withLock { $0.append(Entry(prefix: directory + "/", observer: observer)) }
        isUsed.store(true, ordering: .releasing)
    }

    /// Ends what ``begin(below:_:)`` began. Files that are open keep their observer.
    public static func end(below directory: String) {
        entries.withLock { $0.removeAll { $0.prefix == directory + "/" } }
    }

    /// The innermost observer of a path; the directory that is observed belongs to what is below it.
    static func observer(of path: String) -> (any FileObserver)? {
        guard isUsed.load(ordering: .acquiring) else { return nil }
        let name = path + "/"
        return entries.withLock { entries in
            entries.filter { name.hasPrefix($0.prefix) }.max { $0.prefix.count < $1.prefix.count }?.observer
        }
    }

    /// Announces a call that is not made on an open file.
    static func announce(_ call: @autoclosure () -> FileCall, of path: String) throws(IOError) {
        guard let observer = observer(of: path) else { return }
        try observer.willPerform(call())
    }
}
