import AsyncIO
import BlockReplica
import Foundation
import Testing
import Units

@testable import Node

@Suite("Checkpoints that are read while later ones are committed")
struct DiskViewsTests {
    private func limits() -> DiskReplica.Limits {
        var limits = DiskReplica.Limits()
        limits.batchBlocks = 8
        limits.bufferBytes = 1 << 20
        return limits
    }

    private func contents(_ replica: DiskReplica, _ epoch: Epoch) throws -> [UInt8] {
        var bytes = [UInt8](repeating: 0xAA, count: Int(replica.size))
        try bytes.withUnsafeMutableBytes { bytes in
            for start in stride(from: 0, to: bytes.count, by: 64 << 10) {
                let piece = UnsafeMutableRawBufferPointer(rebasing: bytes[start..<min(start + 64 << 10, bytes.count)])
                let range = ByteRange(offset: UInt64(start), length: UInt64(piece.count))
                try replica.readHeld(epoch, range, into: piece)
            }
        }
        return bytes
    }

    private func files(_ scratch: DiskScratch) throws -> [String] {
        try FileManager.default.contentsOfDirectory(atPath: scratch.path + "/vda").sorted()
    }

    @Test(
        "views held over many random epochs, commits, rollbacks and new sessions show what was committed",
        arguments: [4608, 40_960, 1_573_376, 2_097_664], [UInt64](1...4))
    func random(size: Int, seed: UInt64) throws {
        var random = DiskRandom(state: seed &* 1_000_003 &+ UInt64(size))
        let scratch = try DiskScratch()
        let directory = scratch.path + "/vda"
        var replica = try DiskReplica.create(directory: directory, size: UInt64(size), durable: false, limits: limits())
        var model = DiskModel(size: size)
        var held: [(epoch: Epoch, contents: [UInt8])] = []
        var committed = Epoch.none
        var epoch = Epoch(1)
        try replica.beginEpoch(epoch, preserve: false)
        for step in 0..<120 {
            for _ in 0..<random.below(6) { try model.change(replica, epoch, &random) }
            if random.below(3) == 0 { try replica.drain() }
            switch random.below(8) {
            case 0 where committed != .none:
                // A new session: another object for the same files; the open epoch never happened.
                let before = replica
                replica = try DiskReplica(directory: directory, durable: false, limits: limits())
                replica.adoptViews(of: before)
                _ = try replica.recover(committed: committed)
                model.rollBack(to: committed)
                epoch = committed.next
                try replica.beginEpoch(epoch)
            case 1, 2, 3, 4:
                _ = try replica.seal(epoch: epoch)
                model.seal(epoch)
                // The next epoch may begin, and reach the disk, before this one is committed.
                try replica.beginEpoch(epoch.next)
                if random.below(2) == 0 {
                    for _ in 0..<random.below(4) { try model.change(replica, epoch.next, &random) }
                    try replica.drain()
                }
                try replica.committed(epoch)
                committed = epoch
                epoch = epoch.next
            case 5 where committed != .none && held.count < 5:
                replica.holdView(committed)
                held.append((committed, try #require(model.checkpoints[committed])))
            case 6 where !held.isEmpty && random.below(3) == 0:
                replica.releaseView(held.remove(at: random.below(held.count)).epoch)
            default:
                if random.below(2) == 0 { replica.foldViewsLater() } else { foldALittle(replica, &random) }
                try replica.reclaim(count: random.below(3))
            }
            guard random.below(4) == 0 else { continue }
            for view in held {
                try checkExtents(replica, view.epoch, view.contents, "size \(size), seed \(seed), step \(step)")
                #expect(
                    try contents(replica, view.epoch) == view.contents,
                    "size \(size), seed \(seed), step \(step), view of \(view.epoch) at \(committed)")
            }
        }
        for view in held { replica.releaseView(view.epoch) }
        try replica.reclaim()
        let left = try files(scratch).filter { $0 != "secondary.raw" && $0 != "hidden-\(epoch).qcow2" }
        #expect(left.isEmpty, "seed \(seed): \(left) are left")
    }

    /// Holes cover nothing but zeroes, and the extents cover the disk.
    private func checkExtents(_ replica: DiskReplica, _ epoch: Epoch, _ contents: [UInt8], _ where: String) throws {
        var place: UInt64 = 0
        while place < replica.size {
            let rest = ByteRange(offset: place, length: replica.size - place)
            let extents = try replica.heldExtents(epoch, rest, over: nil)
            try #require(!extents.isEmpty)
            for extent in extents {
                let bytes = contents[Int(place)..<Int(place + extent.byteCount)]
                if extent.isZero { #expect(bytes.allSatisfy { $0 == 0 }, "\(`where`), a hole at \(place)") }
                place += extent.byteCount
            }
        }
        #expect(place == replica.size)
    }

    private func foldALittle(_ replica: DiskReplica, _ random: inout DiskRandom) {
        let bytes = 4096 * (1 + random.below(40))
        replica.onViews { $0.garbage += $0.views.fold(bytes: bytes) }
    }

    /// Writes, seals and commits one epoch that changes one block.
    private func commit(_ replica: DiskReplica, _ epoch: Epoch, preserve: Bool = true) throws {
        try replica.beginEpoch(epoch, preserve: preserve)
        let block = epoch.rawValue * 7 % (replica.size / 4096)
        let data = [UInt8](repeating: UInt8(truncatingIfNeeded: epoch.rawValue), count: 4096)
        try data.withUnsafeBytes { try replica.write(epoch: epoch, offset: block * 4096, bytes: $0) }
        _ = try replica.seal(epoch: epoch)
        try replica.committed(epoch)
    }

    @Test("the number of files stays bounded however many commits a view lives, and so does its space")
    func bounds() throws {
        let scratch = try DiskScratch()
        let replica = try DiskReplica.create(
            directory: scratch.path + "/vda", size: 1 << 20, durable: false, limits: limits())
        try commit(replica, Epoch(1), preserve: false)
        let before = try replica.contents(after: Epoch(1))
        replica.holdView(Epoch(1))
        for number in UInt64(2)...400 {
            try commit(replica, Epoch(number))
            replica.foldViewsLater()
            try replica.reclaim(count: 2)
            #expect(try files(scratch).count <= 4)
        }
        #expect(try contents(replica, Epoch(1)) == before)
        #expect(replica.stashedBytes(Epoch(1)) <= 1 << 20)
        replica.releaseView(Epoch(1))
        try replica.reclaim()
        #expect(try files(scratch) == ["secondary.raw"])
    }

    @Test("a view that nobody folds is ended before it has too many files open; commits go on")
    func tooSlow() throws {
        let scratch = try DiskScratch()
        let replica = try DiskReplica.create(
            directory: scratch.path + "/vda", size: 1 << 20, durable: false, limits: limits())
        try commit(replica, Epoch(1), preserve: false)
        replica.holdView(Epoch(1))
        for number in UInt64(2)...200 { try commit(replica, Epoch(number)) }
        #expect(replica.lostView(Epoch(1))?.contains("writes faster") == true)
        #expect(throws: DiskReplicaError.self) { try contents(replica, Epoch(1)) }
        try replica.reclaim()
        #expect(try files(scratch) == ["secondary.raw"])
    }

    @Test("when the file system runs full the views are ended, at a commit or while folding, and nothing else")
    func fullFileSystem() throws {
        for atCommit in [true, false] {
            let scratch = try DiskScratch()
            let replica = try DiskReplica.create(
                directory: scratch.path + "/vda", size: 1 << 20, durable: false, limits: limits())
            try commit(replica, Epoch(1), preserve: false)
            replica.holdView(Epoch(1))
            try commit(replica, Epoch(2))
            replica.onViews { $0.views.reserve = { _ in false } }
            if atCommit { try commit(replica, Epoch(3)) } else { replica.foldViewsLater() }
            #expect(replica.lostView(Epoch(1))?.contains("nearly full") == true)
            #expect(throws: DiskReplicaError.self) { try contents(replica, Epoch(1)) }
            try commit(replica, Epoch(4))
            try replica.reclaim()
            #expect(try files(scratch) == ["secondary.raw"])
        }
    }

    @Test("an error while blocks are set aside ends the view and nothing else")
    func errorWhileFolding() throws {
        let scratch = try DiskScratch()
        let replica = try DiskReplica.create(
            directory: scratch.path + "/vda", size: 1 << 20, durable: false, limits: limits())
        try commit(replica, Epoch(1), preserve: false)
        // What cannot be made a file.
        try FileManager.default.createDirectory(
            atPath: scratch.path + "/vda/view-1.raw", withIntermediateDirectories: false)
        replica.holdView(Epoch(1))
        let before = try contents(replica, Epoch(1))
        try commit(replica, Epoch(2))
        #expect(try contents(replica, Epoch(1)) == before)
        replica.foldViewsLater()
        #expect(replica.lostView(Epoch(1))?.contains("cannot be set aside") == true)
        try commit(replica, Epoch(3))
    }
}
