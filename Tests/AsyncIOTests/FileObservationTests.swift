import AsyncIO
import Foundation
import Synchronization
import SystemPackage
import Testing

/// Writes down the calls that it sees, and refuses those on one path.
private final class Witness: FileObserver {
    let seen = Mutex<[String]>([])
    let refused: String

    init(refusing path: String = "") { refused = path }

    func willPerform(_ call: FileCall) throws(IOError) {
        seen.withLock { $0.append(Self.text(call)) }
        if call.path == refused { throw IOError(operation: "test", path: call.path, errno: .ioError) }
    }

    private static func text(_ call: FileCall) -> String {
        let name = call.path.split(separator: "/").last ?? ""
        return switch call {
        case .makeDirectory: "mkdir \(name)"
        case .create: "create \(name)"
        case .read(_, let offset, let length): "read \(name) \(offset) \(length)"
        case .write(_, let offset, let bytes): "write \(name) \(offset) \(Array(bytes.prefix(2))) \(bytes.count)"
        case .zero(_, let offset, let length): "zero \(name) \(offset) \(length)"
        case .allocate(_, let offset, let length): "allocate \(name) \(offset) \(length)"
        case .truncate(_, let size): "truncate \(name) \(size)"
        case .sync: "sync \(name)"
        case .syncDirectory: "sync directory \(name)"
        case .rename(let from, _): "rename \(from.split(separator: "/").last ?? "") \(name)"
        case .remove: "remove \(name)"
        case .removeDirectory: "rmdir \(name)"
        }
    }
}

@Suite("An observer of files")
struct FileObservationTests {
    private func scratch() throws -> String {
        let path = FileManager.default.temporaryDirectory.path + "/observer-tests-\(UUID().uuidString)"
        try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
        return path
    }

    @Test("an observer sees every change below its directory in order, batches included, and nothing elsewhere")
    func seesEverything() throws {
        let folder = try scratch()
        defer { try? FileManager.default.removeItem(atPath: folder) }
        let witness = Witness()
        FileObservation.begin(below: folder + "/in", witness)
        try Directory.create(folder + "/in")
        let file = try DirectFile(path: folder + "/in/a.new", mode: .createOrTruncate)
        try file.truncate(to: 8192)
        _ = try file.allocate(at: 0, length: 16384)
        try file.write(at: 3, from: [7, 8, 9])
        let buffer = AlignedBuffer(minimumCount: 8 * 4096)
        let context = try AioContext(depth: 8)
        try context.run([
            .write(file, at: 4096, from: UnsafeRawBufferPointer(buffer.slice(0, 4096))),
            .read(file, at: 0, into: buffer.slice(4096, 4096)),
        ])
        _ = try file.punchHole(at: 0, length: 4096)
        try file.sync()
        try Directory.rename(folder + "/in/a.new", to: folder + "/in/a")
        try DirectFile.syncDirectory(folder + "/in")
        _ = try DirectFile(path: folder + "/b", mode: .create)
        try Directory.removeFile(folder + "/in/a")
        FileObservation.end(below: folder + "/in")
        _ = try DirectFile(path: folder + "/in/c", mode: .create)
        #expect(
            witness.seen.withLock { $0 } == [
                "mkdir in", "create a.new", "truncate a.new 8192", "allocate a.new 0 16384", "write a.new 3 [7, 8] 3",
                "write a.new 4096 [0, 0] 4096", "read a.new 0 4096", "zero a.new 0 4096", "sync a.new",
                "rename a.new a", "sync directory in", "remove a",
            ])
    }

    @Test("a call that the observer refuses is not made, and its error reaches the caller")
    func refusal() throws {
        let folder = try scratch()
        defer { try? FileManager.default.removeItem(atPath: folder) }
        try DirectFile(path: folder + "/a", mode: .create).write(at: 0, from: [1, 1])
        FileObservation.begin(below: folder, Witness(refusing: folder + "/a"))
        defer { FileObservation.end(below: folder) }
        let file = try DirectFile(path: folder + "/a", mode: .readWrite)
        let error = #expect(throws: IOError.self) { try file.write(at: 0, from: [2, 2]) }
        #expect(error?.errno == .ioError)
        #expect(throws: IOError.self) { try Directory.removeFile(folder + "/a") }
        #expect(throws: IOError.self) { try DirectFile(path: folder + "/a", mode: .createOrTruncate) }
        #expect(FileManager.default.contents(atPath: folder + "/a") == Data([1, 1]))
    }
}
