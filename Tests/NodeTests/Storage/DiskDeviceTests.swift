import AsyncIO
import Foundation
import TestSupport
import Testing
import Units

@testable import Node

/// A loop device over a sparse file; nil where the machine has none for us.
private final class LoopDevice {
    let path: String

    init?(size: UInt64, in scratch: DiskScratch) throws {
        let file = scratch.path + "/device.img"
        #expect(FileManager.default.createFile(atPath: file, contents: nil))
        let handle = try FileHandle(forWritingTo: URL(fileURLWithPath: file))
        try handle.truncate(atOffset: size)
        try handle.close()
        guard FileManager.default.isExecutableFile(atPath: "/usr/sbin/losetup") else { return nil }
        let made = try Self.run(["-f", "--show", file])
        guard made.status == 0 else { return nil }
        path = made.output.trimmingCharacters(in: .whitespacesAndNewlines)
    }

    deinit { _ = try? Self.run(["-d", path]) }

    static func run(_ arguments: [String]) throws -> (status: Int32, output: String) {
        let process = Process()
        process.executableURL = URL(fileURLWithPath: "/usr/sbin/losetup")
        process.arguments = arguments
        let pipe = Pipe()
        process.standardOutput = pipe
        process.standardError = FileHandle.nullDevice
        try process.run()
        let output = pipe.fileHandleForReading.readDataToEndOfFile()
        process.waitUntilExit()
        return (process.terminationStatus, String(decoding: output, as: UTF8.self))
    }

    static let isPossible: Bool = {
        guard FileManager.default.isExecutableFile(atPath: "/usr/sbin/losetup") else { return false }
        return geteuid() == 0 && ((try? run(["-f"]))?.status == 0)
    }()
}

@Suite("A block device as the secondary disk")
struct DiskDeviceTests {
    @Test(
        "a block device takes the writes, discards and rollbacks of a file, and is never cut or grown",
        .enabled(if: LoopDevice.isPossible, "this machine gives us no loop device"))
    func loopDevice() throws {
        let scratch = try DiskScratch()
        let size = 8 << 20
        let device = try #require(try LoopDevice(size: UInt64(size), in: scratch))
        let directory = scratch.path + "/vda"
        try FileManager.default.createDirectory(atPath: directory, withIntermediateDirectories: true)
        try FileManager.default.createSymbolicLink(
            atPath: directory + "/secondary.raw", withDestinationPath: device.path)
        #expect(throws: DiskReplicaError.self, "another size") {
            _ = try DiskReplica.create(directory: directory, size: UInt64(size) / 2, durable: true)
        }
        let replica = try DiskReplica.create(directory: directory, size: UInt64(size), durable: true)
        #expect(try DirectFile(path: device.path, mode: .readOnly).size() == UInt64(size))
        var random = DiskRandom(state: 5)
        var model = DiskModel(size: size)
        for number in UInt64(1)...3 {
            let epoch = Epoch(number)
            try replica.beginEpoch(epoch, preserve: number > 1)
            for _ in 0..<40 { try model.change(replica, epoch, &random, sectors: 400) }
            _ = try replica.seal(epoch: epoch)
            model.seal(epoch)
            if number < 3 { try replica.committed(epoch) }
        }
        let third = try replica.contents(after: Epoch(3)) == model.checkpoints[Epoch(3)]
        #expect(third)
        let second = try replica.contents(after: Epoch(2)) == model.checkpoints[Epoch(2)]
        #expect(second)
        #expect(try replica.recover(committed: Epoch(2)) > 0)
        let back = try replica.contents(after: Epoch(2)) == model.checkpoints[Epoch(2)]
        #expect(back)
        withExtendedLifetime(device) {}
    }
}
