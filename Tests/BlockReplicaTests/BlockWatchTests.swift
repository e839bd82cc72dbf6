import BlockReplica
import TestSupport
import Testing
import Units

@Suite("Blocks that are read while the guest writes")
struct BlockWatchTests {
    private static let block = UInt64(BlockWatch.blockSize)

    private func digest(_ value: UInt64) -> BlockDigest { BlockDigest(high: value, low: ~value) }

    @Test("a block that nobody touches is told at the next boundary, once")
    func quiet() {
        var watch = BlockWatch(diskSize: 10 * Self.block + 512, first: 8, count: 3)
        #expect(watch.range(of: 10) == ByteRange(offset: 10 * Self.block, length: 512))
        #expect(watch.take(atMost: 2) == 8..<10)
        #expect(watch.boundary().isEmpty, "nothing has been read yet")
        watch.finished(8, digest(8))
        watch.finished(9, digest(9))
        #expect(watch.take(atMost: 2) == 10..<11)
        #expect(watch.boundary().map(\.block) == [8, 9])
        watch.finished(10, digest(10))
        #expect(watch.boundary().map(\.digest) == [digest(10)])
        #expect(watch.left == 0 && watch.boundary().isEmpty && watch.take(atMost: 9) == nil)
    }

    @Test("a write while a block is read, or behind it, has it read again, and in the end told in a pause")
    func restless() {
        var watch = BlockWatch(diskSize: 4 * Self.block, first: 0, count: 2)
        #expect(watch.take(atMost: 2) == 0..<2)
        watch.touched(ByteRange(offset: Self.block - 1, length: 1))
        watch.finished(0, digest(1))
        watch.finished(1, digest(2))
        watch.touched(ByteRange(offset: Self.block + 5, length: 3 * Self.block - 5))
        #expect(watch.boundary().isEmpty)
        #expect(watch.take(atMost: 2) == 0..<2)
        watch.finished(1, digest(3))
        watch.touched(ByteRange(offset: 0, length: 4 * Self.block))
        watch.finished(0, digest(4))
        #expect(watch.boundary().isEmpty && watch.restless(atMost: 9).isEmpty)
        #expect(watch.take(atMost: 2) == 0..<2)
        watch.touched(ByteRange(offset: 0, length: 1))
        watch.finished(0, digest(5))
        watch.finished(1, digest(6))
        #expect(watch.restless(atMost: 9) == [0])
        #expect(watch.boundary().map(\.block) == [1])
        watch.tellRestless(0)
        #expect(watch.left == 0)
    }

    /// A guest, a mirror that tells later than it writes, and reads that see a disk in the midst of it.
    @Test("what is told is what the disk is at the boundary", arguments: 1...200 as ClosedRange<UInt64>)
    func random(seed: UInt64) {
        var random = SplitMix64(seed: seed)
        let count = 6
        var disk = (0..<count).map { UInt64($0) }
        var untold: [Int] = []
        var reading: [(block: UInt64, seen: UInt64)] = []
        var watch = BlockWatch(diskSize: UInt64(count) * Self.block, first: 0, count: count)
        var told = 0
        for step in 0..<4000 where watch.left > 0 {
            switch Int.random(in: 0..<8, using: &random) {
            case 0, 1:
                // Some blocks are hot.
                let block = Int.random(in: 0..<(Bool.random(using: &random) ? 2 : count), using: &random)
                disk[block] = UInt64(1000 + step)
                untold.append(block)
            case 2, 3:
                guard !untold.isEmpty else { continue }
                let block = untold.remove(at: Int.random(in: 0..<untold.count, using: &random))
                watch.touched(ByteRange(offset: UInt64(block) * Self.block, length: 1))
            case 4:
                for block in watch.take(atMost: 2) ?? 0..<0 { reading.append((block, disk[Int(block)])) }
            case 5, 6:
                guard let index = reading.indices.randomElement(using: &random) else { continue }
                let read = reading.remove(at: index)
                // What a read sees is the disk at some moment between its start and its end.
                watch.finished(read.block, digest(Bool.random(using: &random) ? read.seen : disk[Int(read.block)]))
            default:
                for block in untold { watch.touched(ByteRange(offset: UInt64(block) * Self.block, length: 1)) }
                untold = []
                for found in watch.boundary() {
                    #expect(found.digest == digest(disk[Int(found.block)]), "seed \(seed), step \(step)")
                    told += 1
                }
                for block in watch.restless(atMost: 1) {
                    watch.tellRestless(block)
                    told += 1
                }
            }
        }
        #expect(watch.left == 0 && told == count, "seed \(seed)")
    }
}
