import Foundation
import TestSupport
import Testing
import Units

@testable import Node

@Suite("A disk that is drained in the background")
struct DiskPipelineOverlapTests {
    private static let place = FileManager.default.temporaryDirectory.path

    @Test(
        "writes faster than the disk keep order, the newest contents can be read at any moment, and checkpoints stay exact",
        arguments: [(9 << 20 + 512, 9), (9 << 20 + 512, 12), (9 << 20 + 512, 14)], [true, false])
    func overlap(shape: (size: Int, bits: Int), durable: Bool) throws {
        let seed = UInt64(shape.bits) &* 1000 &+ (durable ? 1 : 0)
        var random = SplitMix64(seed: seed)
        let scratch = try DiskScratch(below: Self.place)
        var limits = DiskReplica.Limits()
        limits.bufferBytes = 2 << 20
        limits.batchBlocks = 32
        limits.hiddenClusterBits = shape.bits
        let replica = try DiskReplica.create(
            directory: scratch.path + "/vda", size: UInt64(shape.size), durable: durable, limits: limits)
        var model = [UInt8](repeating: 0, count: shape.size)
        var checkpoints: [Epoch: [UInt8]] = [:]
        for number in UInt64(1)...4 {
            let epoch = Epoch(number)
            try replica.beginEpoch(epoch, preserve: number > 1)
            for _ in 0..<120 {
                let sectors = shape.size / 512
                let first = Int.random(in: 0..<sectors, using: &random)
                let count = Int.random(in: 1...min(sectors - first, 300), using: &random)
                let range = first * 512..<(first + count) * 512
                if random.next() % 7 == 0 {
                    try replica.discard(
                        epoch: epoch, range: ByteRange(offset: UInt64(range.lowerBound), length: UInt64(range.count)))
                    model.replaceSubrange(range, with: repeatElement(0, count: range.count))
                } else {
                    let data = [UInt8](repeating: UInt8.random(in: 1...255, using: &random), count: range.count)
                    try data.withUnsafeBytes {
                        try replica.write(epoch: epoch, offset: UInt64(range.lowerBound), bytes: $0)
                    }
                    model.replaceSubrange(range, with: data)
                }
                let start = Int.random(in: 0..<shape.size, using: &random)
                var seen = [UInt8](repeating: 0xAA, count: min(70_000, shape.size - start))
                try seen.withUnsafeMutableBytes { try replica.readNewest(offset: UInt64(start), into: $0) }
                let same = seen == Array(model[start..<start + seen.count])
                #expect(same, "seed \(seed), epoch \(number)")
            }
            #expect(replica.bufferedBytes <= limits.bufferBytes, "the budget holds")
            _ = try replica.seal(epoch: epoch)
            checkpoints[epoch] = model
            if number > 1 {
                let same = try replica.contents(after: Epoch(number - 1)) == checkpoints[Epoch(number - 1)]
                #expect(same, "seed \(seed), checkpoint \(number - 1)")
                try replica.committed(Epoch(number - 1))
                replica.reclaimLater()
            }
        }
        guard DiskTool.isInstalled else { return }
        for path in replica.overlayChain(after: Epoch(3)) where path.hasSuffix(".qcow2") {
            let check = try DiskTool.run("qemu-img", ["check", "-f", "qcow2", path])
            #expect(check.status == 0, "seed \(seed): \(check.output)")
            let same = try DiskTool.contents(path) == checkpoints[Epoch(3)]
            #expect(same, "seed \(seed): what QEMU reads")
        }
        #expect(try replica.recover(committed: Epoch(3)) > 0)
        let same = try replica.contents(after: Epoch(3)) == checkpoints[Epoch(3)]
        #expect(same, "seed \(seed): rolled back")
    }

    @Test("disks of tens of TiB are made, written at their end, checked by QEMU and rolled back in no time")
    func hugeDisk() throws {
        guard FileManager.default.isWritableFile(atPath: "/dev/shm") else { return }
        let scratch = try DiskScratch(below: "/dev/shm")
        let size: UInt64 = 40 << 40 + 512
        let began = Date()
        let replica = try DiskReplica.create(directory: scratch.path + "/vda", size: size, durable: false)
        let ones = [UInt8](repeating: 1, count: 70_144)
        let twos = [UInt8](repeating: 2, count: 4608)
        try replica.beginEpoch(Epoch(1), preserve: false)
        try ones.withUnsafeBytes { try replica.write(epoch: Epoch(1), offset: size - 70_144, bytes: $0) }
        _ = try replica.seal(epoch: Epoch(1))
        try replica.committed(Epoch(1))
        try replica.beginEpoch(Epoch(2))
        try twos.withUnsafeBytes { try replica.write(epoch: Epoch(2), offset: size - 4608, bytes: $0) }
        try replica.discard(epoch: Epoch(2), range: ByteRange(offset: 0, length: 30 << 40))
        let seal = try replica.seal(epoch: Epoch(2))
        #expect(seal.blocksPreserved == 2, "blocks of 16 KiB: the last one has one sector")
        var tail = [UInt8](repeating: 0, count: 70_144)
        try tail.withUnsafeMutableBytes { try replica.readView(after: Epoch(1), offset: size - 70_144, into: $0) }
        #expect(tail == ones)
        if DiskTool.isInstalled, let top = replica.overlayChain(after: Epoch(1)).first {
            let check = try DiskTool.run("qemu-img", ["check", "-f", "qcow2", top])
            #expect(check.status == 0, "\(check.output)")
            let command = "read -P 1 \(size - 70_144) 70144"
            let read = try DiskTool.run("qemu-io", ["-r", "-f", "qcow2", "-c", command, top])
            #expect(read.output.contains("read 70144/70144") && !read.output.contains("failed"), "\(read.output)")
        }
        _ = try replica.recover(committed: Epoch(1))
        try tail.withUnsafeMutableBytes { try replica.readNewest(offset: size - 70_144, into: $0) }
        #expect(tail == ones)
        #expect(Date().timeIntervalSince(began) < 60)
    }
}
