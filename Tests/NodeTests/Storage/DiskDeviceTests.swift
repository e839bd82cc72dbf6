import AsyncIO
import Foundation
import TestSupport
import Testing
import Units

@testable import Node

@Suite("A block device as the secondary disk")
struct DiskDeviceTests {
    @Test(
        "a block device takes the writes, discards and rollbacks of a file, and is never cut or grown",
        .enabled(if: LoopDevice.isPossible, "this machine gives us no loop device"))
    func loopDevice() throws {
        let scratch = try DiskScratch()
        let size = 8 << 20
        let device = try #require(try LoopDevice(size: UInt64(size), in: scratch.path))
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
