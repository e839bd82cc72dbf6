import AsyncIO
import Foundation
import SystemPackage
import Testing

/// A directory that disappears with the object.
private final class Scratch {
    let path: String

    init(below parent: String) throws {
        path = parent + "/asyncio-tests-\(UUID().uuidString)"
        try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
    }

    deinit { try? FileManager.default.removeItem(atPath: path) }
}

/// The usual file system, which has O_DIRECT, and a tmpfs, which may not.
private let places = [FileManager.default.temporaryDirectory.path, "/dev/shm"].filter {
    FileManager.default.isWritableFile(atPath: $0)
}

@Suite("Files and batches")
struct DirectFileTests {
    @Test("aligned and unaligned transfers of one file see each other's bytes", arguments: places)
    func mixedAlignment(place: String) throws {
        let scratch = try Scratch(below: place)
        let file = try DirectFile(path: scratch.path + "/disk", mode: .create)
        try file.truncate(to: 3 * 4096 + 512)
        let buffer = AlignedBuffer(minimumCount: 4096)
        for index in 0..<4096 { buffer.bytes[index] = UInt8(truncatingIfNeeded: index * 7) }
        try file.write(at: 4096, from: UnsafeRawBufferPointer(buffer.bytes))
        try file.write(at: 3 * 4096, from: [UInt8](repeating: 9, count: 512))
        try file.write(at: 4100, from: [1, 2, 3])
        try file.sync()

        let whole = AlignedBuffer(minimumCount: 4 * 4096)
        let count = try file.readAvailable(at: 0, into: whole.bytes)
        #expect(count == 3 * 4096 + 512)
        #expect(whole.bytes[0..<4096].allSatisfy { $0 == 0 })
        #expect(Array(whole.bytes[4096..<4104]) == [0, 7, 14, 21, 1, 2, 3, 49])
        #expect(whole.bytes[3 * 4096..<3 * 4096 + 512].allSatisfy { $0 == 9 })
        let aligned = AlignedBuffer(minimumCount: 4096)
        try file.read(at: 4096, into: aligned.bytes)
        #expect(Array(aligned.bytes[0..<8]) == [0, 7, 14, 21, 1, 2, 3, 49], "the direct read sees the buffered write")
        #expect(try file.size() == 3 * 4096 + 512)
    }

    @Test("a batch larger than the context's depth moves every byte", arguments: places)
    func batch(place: String) throws {
        let scratch = try Scratch(below: place)
        let file = try DirectFile(path: scratch.path + "/disk", mode: .create)
        let context = try AioContext(depth: 4)
        let blocks = 37
        let source = AlignedBuffer(minimumCount: blocks * 4096)
        for block in 0..<blocks {
            source.slice(block * 4096, 4096).initializeMemory(as: UInt8.self, repeating: UInt8(block + 1))
        }
        let writes = (0..<blocks).map { block in
            AioOperation.write(
                file, at: UInt64(blocks - 1 - block) * 4096,
                from: UnsafeRawBufferPointer(source.slice(block * 4096, 4096)))
        }
        try context.run(writes)
        let target = AlignedBuffer(minimumCount: blocks * 4096)
        try context.run((0..<blocks).map { .read(file, at: UInt64($0) * 4096, into: target.slice($0 * 4096, 4096)) })
        let firsts = (0..<blocks).map { target.bytes[$0 * 4096 + 4095] }
        #expect(firsts == (0..<blocks).map { UInt8(blocks - $0) })
    }

    @Test("a batch names the file and the offset of its first failure, and the context goes on working")
    func batchFailure() throws {
        let scratch = try Scratch(below: places[0])
        let file = try DirectFile(path: scratch.path + "/disk", mode: .create)
        try file.truncate(to: 8192)
        let readOnly = try DirectFile(path: scratch.path + "/disk", mode: .readOnly)
        let context = try AioContext(depth: 8)
        let buffer = AlignedBuffer(minimumCount: 12288)
        let error = #expect(throws: IOError.self) {
            try context.run([
                .read(file, at: 0, into: buffer.slice(0, 4096)),
                .write(readOnly, at: 4096, from: UnsafeRawBufferPointer(buffer.slice(4096, 4096))),
                .write(readOnly, at: 0, from: UnsafeRawBufferPointer(buffer.slice(8192, 4096))),
            ])
        }
        #expect(error?.offset == 4096)
        #expect(error?.path == scratch.path + "/disk")
        #expect(error?.errno == .badFileDescriptor)
        let end = #expect(throws: IOError.self) {
            try context.run([.read(file, at: 8192, into: buffer.slice(0, 4096))])
        }
        #expect(end?.isUnexpectedEnd == true)
        try context.run([.read(file, at: 4096, into: buffer.slice(0, 4096))])
    }

    @Test("holes give their space back and read as zeroes", arguments: places)
    func holes(place: String) throws {
        let scratch = try Scratch(below: place)
        let file = try DirectFile(path: scratch.path + "/disk", mode: .create)
        let buffer = AlignedBuffer(minimumCount: 1 << 20)
        buffer.bytes.initializeMemory(as: UInt8.self, repeating: 5)
        try file.write(at: 0, from: UnsafeRawBufferPointer(buffer.bytes))
        try file.sync()
        let before = try file.allocatedBytes()
        if try file.punchHole(at: 0, length: 512 << 10) {
            #expect(try file.allocatedBytes() <= before - (512 << 10))
        }
        try file.read(at: 0, into: buffer.slice(0, 512 << 10))
        #expect(buffer.slice(0, 512 << 10).allSatisfy { $0 == 0 })
        #expect(try file.nextData(at: 0) == 512 << 10)
        #expect(try file.nextData(at: 600 << 10) == 600 << 10)
        #expect(try file.nextData(at: 1 << 20) == nil)
        #expect(try file.size() == 1 << 20)
    }

    @Test("errors say what failed, where, and what to do; a full file system is recognisable")
    func errors() throws {
        let error = #expect(throws: IOError.self) {
            _ = try DirectFile(path: "/nowhere/at/all", mode: .readWrite)
        }
        #expect(error?.isNotFound == true)
        #expect(error?.description.contains("/nowhere/at/all") == true)
        let full = IOError(operation: "pwrite", path: "/x", offset: 4096, errno: .noSpace)
        #expect(full.isNoSpace)
        #expect(full.description.contains("at byte 4096"))
        #expect(full.description.contains("Free space"))
        let device = try? DirectFile(path: "/dev/full", mode: .readWrite, direct: false)
        if let device {
            let refused = #expect(throws: IOError.self) { try device.write(at: 0, from: [1]) }
            #expect(refused?.isNoSpace == true)
        }
    }

    @Test("a lock excludes a second holder until it is let go")
    func lock() throws {
        let scratch = try Scratch(below: places[0])
        let path = scratch.path + "/lock"
        do {
            let held = try FileLock(path: path)
            let error = #expect(throws: IOError.self) { _ = try FileLock(path: path) }
            #expect(error?.isLocked == true)
            #expect(held.path == path)
        }
        _ = try FileLock(path: path)
    }

    @Test("a lock that a child has for the moment between its fork and its program is waited for")
    func lockOfAChild() throws {
        let scratch = try Scratch(below: places[0])
        let path = scratch.path + "/lock"
        let letGo = DispatchSemaphore(value: 0)
        let isHeld = DispatchSemaphore(value: 0)
        Thread.detachNewThread {
            let held = try? FileLock(path: path)
            isHeld.signal()
            letGo.wait()
            Thread.sleep(forTimeInterval: 0.02)
            withExtendedLifetime(held) {}
        }
        isHeld.wait()
        letGo.signal()
        #expect(throws: Never.self) { _ = try FileLock(path: path) }
    }

    @Test("a mapping and its file are the same bytes; holes in it read as zeroes", arguments: places)
    func mapping(place: String) throws {
        let scratch = try Scratch(below: place)
        let path = scratch.path + "/ram"
        let memory = try MappedMemory.create(path: path, size: 1 << 20)
        try memory.reserve(offset: 0, length: 8192)
        memory.bytes[5] = 77
        memory.bytes[(1 << 20) - 1] = 78
        let again = try MappedMemory.open(path: path, writable: false)
        #expect(again.count == 1 << 20)
        #expect(again.bytes[5] == 77)
        try memory.punchHole(offset: 0, length: 4096)
        #expect(again.bytes[5] == 0)
        #expect(again.bytes[(1 << 20) - 1] == 78)
        try memory.sync()
        let permissions = try FileManager.default.attributesOfItem(atPath: path)[.posixPermissions] as? Int
        #expect(permissions == 0o600)
        #expect(throws: IOError.self) { _ = try MappedMemory.create(path: path, size: 4096) }
        #expect(throws: IOError.self) { _ = try MappedMemory.open(path: path + "x", writable: true) }
    }

    @Test("names in a directory can be listed, removed and made durable")
    func directory() throws {
        let scratch = try Scratch(below: places[0])
        try Directory.create(scratch.path + "/inner")
        try Directory.create(scratch.path + "/inner")
        _ = try DirectFile(path: scratch.path + "/b", mode: .create)
        _ = try DirectFile(path: scratch.path + "/a", mode: .create)
        #expect(try Directory.names(in: scratch.path) == ["a", "b", "inner"])
        try Directory.rename(scratch.path + "/a", to: scratch.path + "/c")
        try Directory.removeFile(scratch.path + "/b")
        try Directory.removeFile(scratch.path + "/b")
        try DirectFile.syncDirectory(scratch.path)
        #expect(try Directory.names(in: scratch.path) == ["c", "inner"])
        #expect(!Directory.exists(scratch.path + "/a"))
    }
}
