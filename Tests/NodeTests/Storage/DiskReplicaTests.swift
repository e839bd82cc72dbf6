import AsyncIO
import BlockReplica
import Foundation
import Qcow2
import Testing
import Units

@testable import Node

private let places = [FileManager.default.temporaryDirectory.path, "/dev/shm"].filter {
    FileManager.default.isWritableFile(atPath: $0)
}

@Suite("A replica's disk")
struct DiskReplicaTests {
    private func limits(batch: Int = 8) -> DiskReplica.Limits {
        var limits = DiskReplica.Limits()
        limits.batchBlocks = batch
        limits.bufferBytes = 1 << 20
        return limits
    }

    @Test(
        "every uncommitted checkpoint stays readable and recoverable through random interleaved epochs",
        arguments: [(512, 0), (4608, 0), (40_960, 1), (1_573_376, 0), (2_097_664, 1), (4_195_328, 0)])
    func randomEpochs(size: Int, place: Int) throws {
        let seed = UInt64(size) &* 31 &+ 7
        var random = DiskRandom(state: seed)
        let scratch = try DiskScratch(below: places[place % places.count])
        let durable = size % 1024 == 512
        var replica = try DiskReplica.create(
            directory: scratch.path + "/vda", size: UInt64(size), durable: durable, limits: limits())
        var model = DiskModel(size: size)
        var committed = Epoch.none
        var newest = Epoch.none
        var open: [Epoch] = []
        var sealed: [Epoch] = []
        for step in 0..<400 {
            switch random.below(24) {
            case 0 where open.count < 2:
                newest = newest.next
                try replica.beginEpoch(newest, preserve: newest > Epoch(1))
                open.append(newest)
            case 1 where !open.isEmpty && sealed.count < 2:
                let epoch = open.removeFirst()
                #expect(try replica.seal(epoch: epoch).epoch == epoch)
                model.seal(epoch)
                sealed.append(epoch)
            case 2 where !sealed.isEmpty:
                committed = sealed.removeFirst()
                try replica.committed(committed)
                if random.below(2) == 0 { #expect(try replica.reclaim() == 0) }
            case 3:
                try replica.drain()
            case 4 where committed != .none && random.below(3) == 0:
                // The process dies: nothing is closed or flushed by us; only the files remain.
                replica = try DiskReplica(directory: scratch.path + "/vda", durable: durable, limits: limits())
                _ = try replica.recover(committed: committed)
                model.rollBack(to: committed)
                (open, sealed) = ([], [])
                let same = try replica.contents(after: committed) == model.disk
                #expect(same, "seed \(seed), step \(step)")
                #expect(replica.overlayChain(after: committed).count == 1)
            case 5:
                for epoch in sealed + (committed == .none ? [] : [committed]) {
                    let same = try replica.contents(after: epoch) == model.checkpoints[epoch]
                    #expect(same, "seed \(seed), step \(step), checkpoint \(epoch)")
                }
            default:
                guard let epoch = open.randomElement(using: &random) else { continue }
                try model.change(replica, epoch, &random)
            }
        }
        #expect(committed > Epoch(2), "seed \(seed): the run was too short to mean anything")
    }

    @Test(
        "QEMU's tools read every checkpoint through the chain of files and find no fault in any of them",
        .enabled(if: DiskTool.isInstalled, "qemu-utils is not installed"), arguments: [4608, 9_437_696])
    func qemuReadsCheckpoints(size: Int) throws {
        let seed = UInt64(size)
        var random = DiskRandom(state: seed)
        let scratch = try DiskScratch()
        let replica = try DiskReplica.create(
            directory: scratch.path + "/vda", size: UInt64(size), durable: false, limits: limits(batch: 300))
        var model = DiskModel(size: size)
        for number in UInt64(1)...4 {
            let epoch = Epoch(number)
            try replica.beginEpoch(epoch, preserve: number > 1)
            for _ in 0..<60 {
                try model.change(replica, epoch, &random, sectors: 200)
                if random.below(9) == 0 { try replica.drain() }
            }
            _ = try replica.seal(epoch: epoch)
            model.seal(epoch)
            if number == 1 { try replica.committed(epoch) }
        }
        // Checkpoint 1 is committed; 2, 3 and 4 are sealed: three hidden disks, chained.
        for number in UInt64(1)...4 {
            let chain = replica.overlayChain(after: Epoch(number))
            #expect(chain.count == 5 - Int(number))
            let top = try #require(chain.first)
            #expect(try DiskTool.contents(top) == model.checkpoints[Epoch(number)], "seed \(seed), \(number)")
            #expect(try replica.contents(after: Epoch(number)) == model.checkpoints[Epoch(number)])
            guard top.hasSuffix(".qcow2") else { continue }
            let check = try DiskTool.run("qemu-img", ["check", "-f", "qcow2", top])
            #expect(check.status == 0, "seed \(seed): \(check.output)")
        }
        let first = try replica.digest(after: Epoch(1))
        #expect(first == CRC32C.checksum(model.checkpoints[Epoch(1)] ?? []))

        // Checkpoint 2 is committed: hidden-2 goes, the rest still shows 2, 3 and 4.
        try replica.committed(Epoch(2))
        #expect(try replica.reclaim() == 0)
        #expect(!FileManager.default.fileExists(atPath: scratch.path + "/vda/hidden-2.qcow2"))
        let top = try #require(replica.overlayChain(after: Epoch(2)).first)
        #expect(try DiskTool.contents(top) == model.checkpoints[Epoch(2)])

        // A guest writes to an active disk over checkpoint 2; nothing below changes.
        try replica.beginFailover()
        let active = try replica.createActive(name: "active.qcow2", after: Epoch(2))
        let write = try DiskTool.run("qemu-io", ["-f", "qcow2", "-c", "write -P 9 512 1024", active])
        #expect(write.status == 0, "\(write.output)")
        var expected = try #require(model.checkpoints[Epoch(2)])
        expected.replaceSubrange(512..<1536, with: repeatElement(9, count: 1024))
        #expect(try DiskTool.contents(active) == expected)
        #expect(try DiskTool.run("qemu-img", ["check", "-f", "qcow2", active]).status == 0)
        #expect(try replica.contents(after: Epoch(2)) == model.checkpoints[Epoch(2)])
        #expect(try replica.contents(after: Epoch(4)) == model.checkpoints[Epoch(4)])
        #expect(throws: DiskReplicaError.pipeline(.notRunning(.failover))) {
            try replica.beginEpoch(Epoch(9), preserve: true)
        }
    }

    @Test("writes of unchanged blocks leave no trace; the first overwrite of a block costs one block")
    func costs() throws {
        let scratch = try DiskScratch()
        let replica = try DiskReplica.create(
            directory: scratch.path + "/vda", size: 8 << 20, durable: true, limits: limits(batch: 64))
        let ones = [UInt8](repeating: 1, count: 1 << 20)
        let twos = [UInt8](repeating: 2, count: 4096)
        try replica.beginEpoch(Epoch(1), preserve: false)
        try ones.withUnsafeBytes { try replica.write(epoch: Epoch(1), offset: 0, bytes: $0) }
        let first = try replica.seal(epoch: Epoch(1))
        #expect(first.blocksPreserved == 0)
        #expect(first.bytesWritten == 1 << 20)
        try replica.committed(Epoch(1))

        try replica.beginEpoch(Epoch(2))
        try ones.withUnsafeBytes { try replica.write(epoch: Epoch(2), offset: 0, bytes: $0) }
        try replica.writeZeroes(epoch: Epoch(2), range: ByteRange(offset: 2 << 20, length: 6 << 20))
        let same = try replica.seal(epoch: Epoch(2))
        #expect(same.blocksUnchanged == 256 + 1536)
        #expect(same.bytesWritten == 0)
        #expect(replica.overlayChain(after: Epoch(1)).count == 1, "no hidden disk was needed")
        try replica.committed(Epoch(2))

        try replica.beginEpoch(Epoch(3))
        for _ in 0..<3 {
            try twos.withUnsafeBytes { try replica.write(epoch: Epoch(3), offset: 40_960, bytes: $0) }
            try replica.drain()
        }
        try twos.withUnsafeBytes {
            try replica.write(epoch: Epoch(3), offset: 81_920, bytes: UnsafeRawBufferPointer(rebasing: $0[..<512]))
        }
        let third = try replica.seal(epoch: Epoch(3))
        #expect(third.blocksPreserved == 2)
        #expect(replica.overlayChain(after: Epoch(2)).count == 2)
    }

    @Test("a new epoch's writes wait while the old one is open, and are refused when they exceed the budget")
    func budget() throws {
        let scratch = try DiskScratch()
        let replica = try DiskReplica.create(
            directory: scratch.path + "/vda", size: 8 << 20, durable: false, limits: limits(batch: 64))
        let big = [UInt8](repeating: 4, count: 3 << 20)
        try replica.beginEpoch(Epoch(1), preserve: false)
        try big.withUnsafeBytes { try replica.write(epoch: Epoch(1), offset: 0, bytes: $0) }
        try replica.beginEpoch(Epoch(2))
        #expect(throws: DiskReplicaError.budgetExceeded(limitBytes: 1 << 20)) {
            try big.withUnsafeBytes { try replica.write(epoch: Epoch(2), offset: 4 << 20, bytes: $0) }
        }
        #expect(replica.bufferedBytes <= 1 << 20)
        _ = try replica.seal(epoch: Epoch(1))
        try big.withUnsafeBytes { try replica.write(epoch: Epoch(2), offset: 4 << 20, bytes: $0) }
        _ = try replica.seal(epoch: Epoch(2))
        #expect(try replica.contents(after: Epoch(1))[(4 << 20)...].allSatisfy { $0 == 0 })
        #expect(try replica.contents(after: Epoch(2))[(4 << 20)..<(7 << 20)].allSatisfy { $0 == 4 })
    }

    @Test("ranges outside the disk or within a sector, sizes that cannot be, and wrong epochs are refused")
    func refusals() throws {
        let scratch = try DiskScratch()
        #expect(throws: DiskReplicaError.overlay(path: scratch.path + "/a", .badDiskSize(1000))) {
            _ = try DiskReplica.create(directory: scratch.path + "/a", size: 1000, durable: false)
        }
        #expect(
            throws: DiskReplicaError.overlay(
                path: scratch.path + "/a", .diskTooLarge(size: 128 << 40 + 512, limit: 128 << 40))
        ) {
            _ = try DiskReplica.create(directory: scratch.path + "/a", size: 128 << 40 + 512, durable: false)
        }
        let replica = try DiskReplica.create(directory: scratch.path + "/b", size: 8192, durable: false)
        #expect(throws: DiskReplicaError.self, "it is there already") {
            _ = try DiskReplica.create(directory: scratch.path + "/b", size: 8192, durable: false)
        }
        try replica.beginEpoch(Epoch(1), preserve: false)
        let outside = ByteRange(offset: 4096, length: 8192)
        #expect(throws: DiskReplicaError.outside(outside, size: 8192)) {
            try replica.writeZeroes(epoch: Epoch(1), range: outside)
        }
        #expect(throws: DiskReplicaError.self) {
            try [UInt8](repeating: 1, count: 512).withUnsafeBytes {
                try replica.write(epoch: Epoch(1), offset: UInt64.max - 511, bytes: $0)
            }
        }
        let crooked = ByteRange(offset: 100, length: 512)
        #expect(throws: DiskReplicaError.misaligned(crooked)) {
            try replica.discard(epoch: Epoch(1), range: crooked)
        }
        #expect(throws: DiskReplicaError.pipeline(.unknownEpoch(Epoch(2)))) {
            try replica.writeZeroes(epoch: Epoch(2), range: ByteRange(offset: 0, length: 512))
        }
    }

    @Test("a damaged hidden disk is refused by name, and nothing is rolled back from it")
    func damagedHidden() throws {
        let scratch = try DiskScratch()
        let directory = scratch.path + "/vda"
        var replica: DiskReplica? = try DiskReplica.create(directory: directory, size: 1 << 20, durable: false)
        try replica?.beginEpoch(Epoch(1), preserve: true)
        try [UInt8](repeating: 1, count: 8192).withUnsafeBytes {
            try replica?.write(epoch: Epoch(1), offset: 0, bytes: $0)
        }
        _ = try replica?.seal(epoch: Epoch(1))
        replica = nil
        let hidden = directory + "/hidden-1.qcow2"
        let handle = try #require(FileHandle(forUpdatingAtPath: hidden))
        try handle.seek(toOffset: 72)
        try handle.write(contentsOf: [0xFF])
        try handle.close()
        let error = #expect(throws: DiskReplicaError.self) {
            _ = try DiskReplica(directory: directory, durable: false)
        }
        #expect(error.map { "\($0)".contains("hidden-1.qcow2") } == true)

        let other = try DiskReplica.create(directory: scratch.path + "/vdb", size: 2 << 20, durable: false)
        try other.beginEpoch(Epoch(1), preserve: true)
        try [UInt8](repeating: 1, count: 8192).withUnsafeBytes {
            try other.write(epoch: Epoch(1), offset: 0, bytes: $0)
        }
        _ = try other.seal(epoch: Epoch(1))
        try FileManager.default.removeItem(atPath: hidden)
        try FileManager.default.copyItem(atPath: scratch.path + "/vdb/hidden-1.qcow2", toPath: hidden)
        #expect(throws: DiskReplicaError.sizeMismatch(path: hidden, found: 2 << 20, expected: 1 << 20)) {
            _ = try DiskReplica(directory: directory, durable: false)
        }
    }
}
