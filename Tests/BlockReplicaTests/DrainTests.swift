import BlockReplica
import TestSupport
import Testing
import Units

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

    /// First stretch of bytes at or behind an offset that is not all zero, as far as blocks tell.
    func data(at offset: UInt64) -> Range<UInt64>? {
        let size = UInt64(bytes.count)
        func isHole(_ block: UInt64) -> Bool { self.block(block).allSatisfy { $0 == 0 } }
        var first = offset / 4096
        while first * 4096 < size, isHole(first) { first += 1 }
        guard first * 4096 < size else { return nil }
        var last = first
        while last * 4096 < size, !isHole(last) { last += 1 }
        return max(first * 4096, offset)..<last * 4096
    }

    /// Drains the buffer; returns how many blocks were written, preserved and left out.
    mutating func drain(_ buffer: EpochBuffer, preserve: Bool, capacity: Int) -> (
        written: Int, preserved: Int, left: Int
    ) {
        buffer.freeze()
        var planner = DrainPlanner(buffer: buffer, preserve: preserve, capacity: capacity)
        let batch = DrainBatch(capacity: capacity)
        var counts = (written: 0, preserved: 0, left: 0)
        while true {
            let (hidden, disk) = (self.hidden, self)
            planner.next(into: batch, isPreserved: { hidden[$0] != nil }, data: { disk.data(at: $0) })
            if batch.isEmpty { break }
            precondition(batch.count <= capacity)
            perform(batch, buffer, &counts)
        }
        buffer.removeAll()
        return counts
    }

    private mutating func perform(
        _ batch: DrainBatch, _ buffer: EpochBuffer, _ counts: inout (written: Int, preserved: Int, left: Int)
    ) {
        var old = [UInt8](repeating: 0xEE, count: max(batch.count, 1) * 4096)
        for run in batch.reads {
            for step in 0..<run.count {
                let place = (run.position + step) * 4096
                old.replaceSubrange(place..<place + 4096, with: block(run.block + UInt64(step)))
            }
        }
        old.withUnsafeMutableBytes { batch.resolve(buffer, old: $0) }
        var order = batch.preImageBlocks.makeIterator()
        for run in batch.preImages {
            for step in 0..<run.count {
                guard let block = order.next() else { preconditionFailure("more pre-images than blocks") }
                precondition(hidden[block] == nil, "preserved twice")
                let place = (run.position + step) * 4096
                hidden[block] = Array(old[place..<place + 4096])
            }
        }
        precondition(order.next() == nil, "more blocks than pre-images")
        for block in batch.zeroPreImageBlocks { hidden[block] = [UInt8](repeating: 0, count: 4096) }
        for run in batch.writes {
            for step in 0..<run.count {
                let new = UnsafeRawBufferPointer(start: buffer.address(run.position + step), count: 4096)
                store(run.block + UInt64(step), [UInt8](new)[...])
            }
            counts.written += run.count
        }
        for blocks in batch.zeroRanges {
            for block in blocks { store(block, ArraySlice(repeating: 0, count: 4096)) }
            counts.written += blocks.count
        }
        counts.preserved += batch.preImageBlocks.count + batch.zeroPreImageBlocks.count
        counts.left += Int(batch.unchanged)
    }
}

@Suite("Epoch buffers and their drains")
struct DrainTests {
    @Test(
        "after random writes, zeroes and drains the disk holds what was written last, and the hidden disk what was there",
        arguments: [512, 4096, 4608, 40_960, 151_040], [true, false])
    func randomWrites(size: Int, preserve: Bool) {
        let seed = UInt64(size) &+ (preserve ? 1 : 0)
        var random = SplitMix64(seed: seed)
        let geometry = BlockGeometry(diskSize: UInt64(size))
        let pool = EpochBufferPool(geometry: geometry, byteLimit: 4 << 20)
        var disk = MemoryDisk(
            bytes: (0..<size).map { $0 / 8192 % 2 == 0 ? 0 : UInt8(truncatingIfNeeded: $0 / 512 + 1) })
        for _ in 0..<20 {
            disk.hidden = [:]
            let start = disk.bytes
            var model = disk.bytes
            for _ in 0..<Int.random(in: 1...3, using: &random) {
                guard let buffer = pool.take() else { preconditionFailure("the pool is empty") }
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
                        #expect(data.withUnsafeBytes { buffer.write(at: UInt64(range.lowerBound), $0) } == data.count)
                        model.replaceSubrange(range, with: data)
                    }
                    // The newest contents can be read at any moment.
                    let start = Int.random(in: 0..<size, using: &random)
                    var seen = Array(disk.bytes[start..<min(start + 9000, size)])
                    let length = seen.count
                    _ = seen.withUnsafeMutableBytes { buffer.overlay(onto: $0, at: UInt64(start)) }
                    let same = seen == Array(model[start..<start + length])
                    #expect(same, "seed \(seed)")
                }
                _ = disk.drain(buffer, preserve: preserve, capacity: Int.random(in: 1...7, using: &random))
                let same = disk.bytes == model
                #expect(same, "seed \(seed)")
                pool.giveBack(buffer)
            }
            if preserve {
                var restored = disk
                for (block, contents) in disk.hidden { restored.store(block, contents[...]) }
                #expect(restored.bytes == start, "seed \(seed)")
            } else {
                #expect(disk.hidden.isEmpty)
            }
        }
        #expect(pool.available == pool.capacity)
    }

    @Test("blocks that hold their new contents already are neither preserved nor written")
    func equalBlocks() {
        let geometry = BlockGeometry(diskSize: 8 * 4096)
        let buffer = EpochBuffer(geometry: geometry, byteLimit: 1 << 20)
        var disk = MemoryDisk(bytes: [UInt8](repeating: 6, count: 4 * 4096) + [UInt8](repeating: 0, count: 4 * 4096))
        let same = [UInt8](repeating: 6, count: 3 * 4096 + 512)
        #expect(same.withUnsafeBytes { buffer.write(at: 0, $0) } == same.count)
        #expect([UInt8](repeating: 9, count: 512).withUnsafeBytes { buffer.write(at: 2 * 4096, $0) } == 512)
        #expect(buffer.writeZeroes(ByteRange(offset: 4 * 4096, length: 4 * 4096)))
        let counts = disk.drain(buffer, preserve: true, capacity: 100)
        #expect(counts.written == 1)
        #expect(counts.preserved == 1)
        #expect(counts.left == 7)
        #expect(Array(disk.hidden.keys) == [2])
    }

    @Test("neighbouring blocks become one read and one write, however they came")
    func mergedRuns() {
        let buffer = EpochBuffer(geometry: BlockGeometry(diskSize: 1 << 20), byteLimit: 1 << 20)
        for block in [7, 5, 6, 20, 4] {
            let bytes = [UInt8](repeating: 1, count: 4096)
            #expect(bytes.withUnsafeBytes { buffer.write(at: UInt64(block) * 4096, $0) } == 4096)
        }
        buffer.freeze()
        #expect(buffer.isSimple)
        let batch = DrainBatch(capacity: 64)
        func plan(preserve: Bool, isPreserved: Bool) -> [BlockRun] {
            var planner = DrainPlanner(buffer: buffer, preserve: preserve, capacity: 64)
            planner.next(into: batch, isPreserved: { _ in isPreserved }, data: { $0..<$0 + 4096 })
            #expect(planner.isDone)
            return batch.reads
        }
        #expect(
            plan(preserve: true, isPreserved: false) == [
                BlockRun(block: 4, position: 0, count: 4), BlockRun(block: 20, position: 4, count: 1),
            ])
        #expect(plan(preserve: false, isPreserved: false) == [], "nothing to keep, nothing to read")
        #expect(plan(preserve: true, isPreserved: true) == [], "kept already, nothing to read")
        let nothing = UnsafeMutableRawBufferPointer.allocate(byteCount: 5 * 4096, alignment: 4096)
        defer { nothing.deallocate() }
        batch.resolve(buffer, old: nothing)
        #expect(
            batch.writes == [
                BlockRun(block: 4, position: 4, count: 1), BlockRun(block: 5, position: 1, count: 2),
                BlockRun(block: 7, position: 0, count: 1), BlockRun(block: 20, position: 3, count: 1),
            ])
    }

    @Test("a full buffer takes what fits, and zeroes of a whole disk need no memory")
    func bounds() {
        let size: UInt64 = 100 << 40
        let buffer = EpochBuffer(geometry: BlockGeometry(diskSize: size), byteLimit: 1 << 20)
        let big = [UInt8](repeating: 1, count: 1 << 20)
        #expect(big.withUnsafeBytes { buffer.write(at: 4096, $0) } == 1 << 20)
        #expect(buffer.used == buffer.capacity)
        #expect(big.withUnsafeBytes { buffer.write(at: 0, $0) } == 0, "one block too many")
        #expect(big.withUnsafeBytes { buffer.write(at: 8192, $0) } == 255 * 4096, "overwriting needs no more")
        #expect(!buffer.writeZeroes(ByteRange(offset: 1 << 30, length: 512)))
        #expect(buffer.writeZeroes(ByteRange(offset: 0, length: size)))
        #expect(buffer.isZeroed(12345) && buffer.isZeroed(1))
        buffer.freeze()
        #expect(!buffer.isSimple)
        let batch = DrainBatch(capacity: 4)
        var planner = DrainPlanner(buffer: buffer, preserve: false, capacity: 4)
        planner.next(into: batch, isPreserved: { _ in false }, data: { $0..<$0 + 1 })
        #expect(batch.zeroRanges == [0..<size / 4096])
        var sparse = DrainPlanner(buffer: buffer, preserve: true, capacity: 4)
        sparse.next(into: batch, isPreserved: { _ in false }, data: { _ in nil })
        #expect(batch.unchanged == size / 4096)
        #expect(batch.count == 0 && sparse.isDone)
    }

    @Test("blocks of 16 KiB keep their sectors apart like those of 4 KiB")
    func largeUnit() {
        let geometry = BlockGeometry(diskSize: 5 * 16_384 + 512, unit: 16_384)
        let buffer = EpochBuffer(geometry: geometry, byteLimit: 1 << 20)
        let bytes = [UInt8](repeating: 3, count: 1024)
        #expect(bytes.withUnsafeBytes { buffer.write(at: 16_384 - 512, $0) } == 1024)
        #expect(buffer.data(of: 0)?.mask == 1 << 31)
        #expect(buffer.data(of: 1)?.mask == 1)
        #expect(geometry.fullMask(of: 0) == UInt32.max && geometry.fullMask(of: 5) == 1)
        #expect(buffer.writeZeroes(ByteRange(offset: 0, length: 16_384)))
        #expect(buffer.isZeroed(0) && !buffer.isZeroed(1))
    }

    @Test("writes outside the disk or within a sector are bugs of the caller")
    func preconditions() async {
        await #expect(processExitsWith: .failure) {
            let buffer = EpochBuffer(geometry: BlockGeometry(diskSize: 4096), byteLimit: 1 << 20)
            _ = buffer.writeZeroes(ByteRange(offset: 4096, length: 512))
        }
        await #expect(processExitsWith: .failure) {
            let buffer = EpochBuffer(geometry: BlockGeometry(diskSize: 4096), byteLimit: 1 << 20)
            _ = buffer.writeZeroes(ByteRange(offset: 0, length: 100))
        }
    }
}
