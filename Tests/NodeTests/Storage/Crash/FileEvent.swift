import AsyncIO
import Synchronization

/// A change of a file or a directory, as the recorder keeps it. Paths are relative to the recorder's directory.
enum FileEvent: Equatable {
    case makeDirectory(String)
    case create(String)
    case write(String, at: Int, [UInt8])
    case zero(String, Range<Int>)
    /// The file is at least so long afterwards.
    case grow(String, to: Int)
    case resize(String, to: Int)
    case sync(String)
    case syncDirectory(String)
    case rename(String, String)
    case remove(String)
    case removeDirectory(String)
    /// The test says which checkpoints may be recovered from here on.
    case allow(ClosedRange<UInt64>)

    var path: String {
        switch self {
        case .makeDirectory(let path), .create(let path), .write(let path, _, _), .zero(let path, _),
            .grow(let path, _), .resize(let path, _), .sync(let path), .syncDirectory(let path), .rename(_, let path),
            .remove(let path), .removeDirectory(let path):
            path
        case .allow: ""
        }
    }

    var isSync: Bool { if case .sync = self { true } else { false } }
    var isSyncDirectory: Bool { if case .syncDirectory = self { true } else { false } }
}

/// Writes down every change below a directory, in the order in which the calls were made.
final class FileRecorder: FileObserver {
    private let directory: String
    private let recorded = Mutex<[FileEvent]>([])

    /// Records files that are opened from now on.
    init(below directory: String) {
        self.directory = directory
        FileObservation.begin(below: directory, self)
    }

    /// Ends the recording.
    func end() -> [FileEvent] {
        FileObservation.end(below: directory)
        return recorded.withLock { $0 }
    }

    func allow(_ epochs: ClosedRange<UInt64>) { append(.allow(epochs)) }

    private func append(_ event: FileEvent) { recorded.withLock { $0.append(event) } }

    func willPerform(_ call: FileCall) throws(IOError) {
        switch call {
        case .makeDirectory(let path): append(.makeDirectory(name(path)))
        case .create(let path): append(.create(name(path)))
        case .read: break
        case .write(let path, let offset, let bytes): append(.write(name(path), at: Int(offset), Array(bytes)))
        case .zero(let path, let offset, let length): append(.zero(name(path), Int(offset)..<Int(offset + length)))
        case .allocate(let path, let offset, let length): append(.grow(name(path), to: Int(offset + length)))
        case .truncate(let path, let size): append(.resize(name(path), to: Int(size)))
        case .sync(let path): append(.sync(name(path)))
        case .syncDirectory(let path): append(.syncDirectory(name(path)))
        case .rename(let from, let target): append(.rename(name(from), name(target)))
        case .remove(let path): append(.remove(name(path)))
        case .removeDirectory(let path): append(.removeDirectory(name(path)))
        }
    }

    private func name(_ path: String) -> String { String(path.dropFirst(directory.count + 1)) }
}
