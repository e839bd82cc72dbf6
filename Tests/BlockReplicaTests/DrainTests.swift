import BlockReplica
import Testing
import Units

/// SplitMix64: small, seeded, the same everywhere.
private struct SplitMix64: RandomNumberGenerator {
    var state: UInt64

    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var value = state
        value = (value ^ value >> 30) &* 0xBF58_476D_1CE4_E5B9
        value = (value ^ value >> 27) &* 0x94D0_49BB_1331_11EB
        return value ^ value >> 31
    }
}

/// A disk in memory, with the hidden disk of one epoch, on which drains are performed.
private struct MemoryDisk {
    var bytes: [UInt8]
    /// Block to old contents, padded to 4 KiB.
    var hidden: [UInt64: [UInt8]] = [:]

    func block(_ block: UInt64) -> [UInt8] {
        let start = Int(block) * 4096
        let part = Array(bytes[start..<min(start + 4096, bytes.count)])
        return part + [UInt8](repeating: 0, count: 4096 - part.count)
    }

    mutating func store(_ block: UInt64, _ contents: ArraySlice<UInt8>) {
        let start = Int(block) * 4096
        let count = min(4096, bytes.count - start)
        bytes.replaceSubrange(start..<start + count, with: contents.prefix(count))
    }

    /// Drains the buffer; returns how many blocks were written, preserved and left out.
    mutating func drain(_ buffer: EpochBuffer, preserve: Bool, capacity: Int) -> (
        written: Int, preserved: Int, left: Int
    ) {
        var planner = DrainPlanner(buffer: buffer, preserve: preserve, capacity: capacity)
        var counts = (written: 0, preserved: 0, left: 0)
        while true {
            let (hidden, disk) = (self.hidden, self)
            let size = UInt64(bytes.count)
            let batch = planner.next(
                isPreserved: { hidden[$0] != nil },
                nextData: { offset in
                    var block = offset / 4096
                    while block * 4096 < size, disk.block(block).allSatisfy({ $0 == 0 }) { block += 1 }
                    return block * 4096 < size ? max(block * 4096, offset) : nil
                })
            guard let batch else { break }
            precondition(batch.entries.count <= capacity)
            perform(batch, buffer, &counts)
        }
        counts.left += Int(planner.unchanged)
        buffer.removeAll()
        return counts
    }

    private mutating func perform(
        _ batch: DrainBatch, _ buffer: EpochBuffer, _ counts: inout (written: Int, preserved: Int, left: Int)
    ) {
        let count = max(batch.entries.count, 1) * 4096
        var old = [UInt8](repeating: 0xEE, count: count)
        var new = [UInt8](repeating: 0xDD, count: count)
        for run in batch.reads {
            for step in 0..<run.count {
                let place = (run.position + step) * 4096
                old.replaceSubrange(place..<place + 4096, with: block(run.block + UInt64(step)))
            }
        }
        let actions = old.withUnsafeMutableBytes { old in
            new.withUnsafeMutableBytes { new in DrainPlanner.resolve(batch, buffer: buffer, old: old, new: new) }
        }
        var order = actions.preImageBlocks.makeIterator()
        for run in actions.preImages {
            for step in 0..<run.count {
                guard let block = order.next() else { preconditionFailure("more pre-images than blocks") }
                precondition(hidden[block] == nil, "preserved twice")
                let place = (run.position + step) * 4096
                hidden[block] = Array(old[place..<place + 4096])
            }
        }
        precondition(order.next() == nil, "more blocks than pre-images")
        for block in actions.zeroPreImageBlocks { hidden[block] = [UInt8](repeating: 0, count: 4096) }
        for run in actions.writes {
            for step in 0..<run.count {
                let place = (run.position + step) * 4096
                store(run.block + UInt64(step), new[place..<place + 4096])
            }
            counts.written += run.count
        }
        for blocks in actions.zeroRanges {
            for block in blocks { store(block, ArraySlice(repeating: 0, count: 4096)) }
            counts.written += blocks.count
        }
        counts.preserved += actions.preImageBlocks.count + actions.zeroPreImageBlocks.count
        counts.left += actions.unchanged
    }
}

@Suite("Epoch buffers and their drains")
struct DrainTests {
    @Test(
        "after random writes, zeroes and drains the disk holds what was written last, and the hidden disk what was there",
        arguments: [512, 4096, 4608, 40_960, 151_040], [true, false])
    func randomWrites(size: Int, preserve: Bool) {
        let seed = UInt64(size) &+ (preserve ? 1 : 0)
        var random = SplitMix64(state: seed)
        let pool = SlabPool(byteLimit: 1 << 20)
        let geometry = BlockGeometry(diskSize: UInt64(size))
        var disk = MemoryDisk(
            bytes: (0..<size).map { $0 / 8192 % 2 == 0 ? 0 : UInt8(truncatingIfNeeded: $0 / 512 + 1) })
        for _ in 0..<20 {
            disk.hidden = [:]
            let start = disk.bytes
            var model = disk.bytes
            for _ in 0..<Int.random(in: 1...3, using: &random) {
                let buffer = EpochBuffer(geometry: geometry, pool: pool)
                for _ in 0..<Int.random(in: 0...8, using: &random) {
                    let sectors = size / 512
                    let first = Int.random(in: 0..<sectors, using: &random)
                    let count = Int.random(in: 1...min(sectors - first, 40), using: &random)
                    let range = first * 512..<(first + count) * 512
                    if random.next() % 3 == 0 {
                        #expect(
                            buffer.writeZeroes(ByteRange(offset: UInt64(range.lowerBound), length: UInt64(range.count)))
                        )
                        model.replaceSubrange(range, with: repeatElement(0, count: range.count))
                    } else {
                        let value = UInt8.random(in: 0...3, using: &random)
                        let data = [UInt8](repeating: value, count: range.count)
                        #expect(data.withUnsafeBytes { buffer.write(at: UInt64(range.lowerBound), $0) })
                        model.replaceSubrange(range, with: data)
                    }
                }
                _ = disk.drain(buffer, preserve: preserve, capacity: Int.random(in: 1...7, using: &random))
                #expect(disk.bytes == model, "seed \(seed)")
            }
            if preserve {
                var restored = disk
                for (block, contents) in disk.hidden { restored.store(block, contents[...]) }
                #expect(restored.bytes == start, "seed \(seed)")
            } else {
                #expect(disk.hidden.isEmpty)
            }
        }
        #expect(pool.used == 0)
    }

    @Test("blocks that hold their new contents already are neither preserved nor written")
    func equalBlocks() {
        let geometry = BlockGeometry(diskSize: 8 * 4096)
        let buffer = EpochBuffer(geometry: geometry, pool: SlabPool(byteLimit: 1 << 20))
        var disk = MemoryDisk(bytes: [UInt8](repeating: 6, count: 4 * 4096) + [UInt8](repeating: 0, count: 4 * 4096))
        let same = [UInt8](repeating: 6, count: 3 * 4096 + 512)
        #expect(same.withUnsafeBytes { buffer.write(at: 0, $0) })
        #expect([UInt8](repeating: 9, count: 512).withUnsafeBytes { buffer.write(at: 2 * 4096, $0) })
        #expect(buffer.writeZeroes(ByteRange(offset: 4 * 4096, length: 4 * 4096)))
        let counts = disk.drain(buffer, preserve: true, capacity: 100)
        #expect(counts.written == 1)
        #expect(counts.preserved == 1)
        #expect(counts.left == 7)
        #expect(Array(disk.hidden.keys) == [2])
    }

    @Test("neighbouring blocks become one read and one write")
    func mergedRuns() {
        let buffer = EpochBuffer(geometry: BlockGeometry(diskSize: 1 << 20), pool: SlabPool(byteLimit: 1 << 20))
        for block in [7, 5, 6, 20, 4] {
            #expect([UInt8](repeating: 1, count: 4096).withUnsafeBytes { buffer.write(at: UInt64(block) * 4096, $0) })
        }
        var planner = DrainPlanner(buffer: buffer, preserve: true, capacity: 64)
        let batch = planner.next(isPreserved: { _ in false }, nextData: { $0 })
        #expect(
            batch?.reads == [BlockRun(block: 4, position: 0, count: 4), BlockRun(block: 20, position: 4, count: 1)])
        #expect(planner.next(isPreserved: { _ in false }, nextData: { $0 }) == nil)
        var first = DrainPlanner(buffer: buffer, preserve: false, capacity: 64)
        #expect(
            first.next(isPreserved: { _ in false }, nextData: { $0 })?.reads == [], "nothing to keep, nothing to read")
        var kept = DrainPlanner(buffer: buffer, preserve: true, capacity: 64)
        #expect(kept.next(isPreserved: { _ in true }, nextData: { $0 })?.reads == [], "kept already, nothing to read")
    }

    @Test("a full pool refuses a write as a whole, and zeroes of a whole disk need no memory")
    func bounds() {
        let pool = SlabPool(byteLimit: 1 << 20)
        let buffer = EpochBuffer(geometry: BlockGeometry(diskSize: 8 << 40), pool: pool)
        let big = [UInt8](repeating: 1, count: 1 << 20)
        #expect(big.withUnsafeBytes { buffer.write(at: 0, $0) })
        #expect(pool.available == 0)
        #expect(!big.withUnsafeBytes { buffer.write(at: 4096, $0) }, "one block too many")
        #expect(big.withUnsafeBytes { buffer.write(at: 0, $0) }, "overwriting needs no more")
        #expect(!buffer.writeZeroes(ByteRange(offset: 1 << 30, length: 512)))
        #expect(buffer.writeZeroes(ByteRange(offset: 0, length: 8 << 40)))
        #expect(pool.used == 0)
        #expect(buffer.isZeroed(12345))
        var planner = DrainPlanner(buffer: buffer, preserve: false, capacity: 4)
        #expect(planner.next(isPreserved: { _ in false }, nextData: { $0 })?.zeroRanges == [0..<(8 << 28)])
        var sparse = DrainPlanner(buffer: buffer, preserve: true, capacity: 4)
        #expect(sparse.next(isPreserved: { _ in false }, nextData: { _ in nil }) == nil)
        #expect(sparse.unchanged == 8 << 28)
    }

    @Test("writes outside the disk or within a sector are bugs of the caller")
    func preconditions() async {
        await #expect(processExitsWith: .failure) {
            let buffer = EpochBuffer(geometry: BlockGeometry(diskSize: 4096), pool: SlabPool(byteLimit: 1 << 20))
            _ = buffer.writeZeroes(ByteRange(offset: 4096, length: 512))
        }
        await #expect(processExitsWith: .failure) {
            let buffer = EpochBuffer(geometry: BlockGeometry(diskSize: 4096), pool: SlabPool(byteLimit: 1 << 20))
            _ = buffer.writeZeroes(ByteRange(offset: 0, length: 100))
        }
    }
}
