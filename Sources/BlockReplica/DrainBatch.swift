/// Neighbouring blocks that lie side by side in memory too.
public struct BlockRun: Equatable, Sendable {
    /// First block on the disk.
    public var block: UInt64
    /// Place of the first block in its memory, in blocks.
    public var position: Int
    /// Number of blocks.
    public var count: Int

    public init(block: UInt64, position: Int, count: Int) {
        self.block = block
        self.position = position
        self.count = count
    }

    /// The blocks on the disk.
    public var blocks: Range<UInt64> { block..<block + UInt64(count) }
}

/// A bounded part of an epoch's writes: what must be read, then what must be preserved and written. Its memory is kept
/// from one use to the next.
///
/// Order of use: ``DrainPlanner/next(into:isPreserved:data:)``, read ``reads`` into a staging area,
/// ``resolve(_:old:)``, preserve, and only then write.
public final class DrainBatch {
    /// One block. Its position in the batch is its place in the staging area, in blocks.
    struct Entry {
        let block: UInt64
        /// Where the new contents are in the buffer; negative when they are all zero.
        let slot: Int
        /// Whether the old contents must be read: for the pre-image, or because only some sectors are new.
        let needsOld: Bool
        /// Whether the old contents belong into the hidden disk before the block is overwritten.
        let needsPreImage: Bool
    }

    private(set) var entries: [Entry] = []
    /// Old contents to read into the staging area.
    public private(set) var reads: [BlockRun] = []
    /// Blocks whose old contents go into the hidden disk, rising.
    public private(set) var preImageBlocks: [UInt64] = []
    /// The same blocks in the staging area; ``BlockRun/block`` means nothing.
    public private(set) var preImages: [BlockRun] = []
    /// Blocks whose old contents are all zero, rising; the hidden disk only notes them.
    public private(set) var zeroPreImageBlocks: [UInt64] = []
    /// Blocks to write from the buffer; positions are its slots.
    public private(set) var writes: [BlockRun] = []
    /// Blocks to zero.
    public private(set) var zeroRanges: [Range<UInt64>] = []
    /// Blocks left out because they hold their new contents already.
    public private(set) var unchanged: UInt64 = 0

    public init(capacity: Int) {
        entries.reserveCapacity(capacity)
        reads.reserveCapacity(capacity)
        preImageBlocks.reserveCapacity(capacity)
        preImages.reserveCapacity(capacity)
        writes.reserveCapacity(capacity)
    }

    public var isEmpty: Bool { entries.isEmpty && zeroRanges.isEmpty && unchanged == 0 }

    /// Blocks that are looked at one by one.
    public var count: Int { entries.count }

    func removeAll() {
        entries.removeAll(keepingCapacity: true)
        reads.removeAll(keepingCapacity: true)
        preImageBlocks.removeAll(keepingCapacity: true)
        preImages.removeAll(keepingCapacity: true)
        zeroPreImageBlocks.removeAll(keepingCapacity: true)
        writes.removeAll(keepingCapacity: true)
        zeroRanges.removeAll(keepingCapacity: true)
        unchanged = 0
    }

    func append(_ entry: Entry) {
        if entry.needsOld { reads.append(block: entry.block, position: entries.count) }
        entries.append(entry)
    }

    func appendZeroes(_ blocks: Range<UInt64>) { zeroRanges.append(blocks: blocks) }

    func countUnchanged(_ count: UInt64) { unchanged += count }

    /// Decides what happens to each block, and completes blocks that were written in part, in the buffer.
    ///
    /// `old` has a block for each entry, in order. What the disk does not have of its last block must be zero in it.
    public func resolve(_ buffer: EpochBuffer, old: UnsafeMutableRawBufferPointer) {
        let unit = buffer.geometry.unit
        precondition(old.count >= entries.count * unit)
        guard let base = old.baseAddress else { return }
        for (position, entry) in entries.enumerated() {
            let before = UnsafeRawPointer(base + position * unit)
            if entry.needsOld, isUnchanged(entry, buffer, before) {
                unchanged += 1
                continue
            }
            if entry.needsPreImage {
                if BlockBytes.isZero(before, count: unit) {
                    zeroPreImageBlocks.append(entry.block)
                } else {
                    preImageBlocks.append(entry.block)
                    preImages.append(position: position)
                }
            }
            if entry.slot < 0 {
                zeroRanges.append(blocks: entry.block..<entry.block + 1)
            } else {
                writes.append(block: entry.block, position: entry.slot)
            }
        }
    }

    private func isUnchanged(_ entry: Entry, _ buffer: EpochBuffer, _ before: UnsafeRawPointer) -> Bool {
        guard entry.slot >= 0 else { return BlockBytes.isZero(before, count: buffer.geometry.unit) }
        let length = buffer.geometry.length(of: entry.block)
        let after = buffer.address(entry.slot)
        let mask = buffer.mask(ofSlot: entry.slot)
        if mask != buffer.geometry.fullMask(of: entry.block) {
            let sector = 512
            for index in 0..<length / sector where mask & 1 << UInt32(index) == 0 {
                (after + index * sector).copyMemory(from: before + index * sector, byteCount: sector)
            }
        }
        return BlockBytes.areEqual(before, after, count: length)
    }
}

extension [BlockRun] {
    /// Adds a block; it joins the last run when it follows on the disk and in memory.
    @inline(__always)
    mutating func append(block: UInt64, position: Int) {
        if let last = last, last.blocks.upperBound == block, last.position + last.count == position {
            self[count - 1].count += 1
        } else {
            append(BlockRun(block: block, position: position, count: 1))
        }
    }

    /// Adds a block that goes to the end of a file: it joins when it follows in memory.
    @inline(__always)
    mutating func append(position: Int) {
        if let last = last, last.position + last.count == position {
            self[count - 1].count += 1
        } else {
            append(BlockRun(block: 0, position: position, count: 1))
        }
    }
}

extension [Range<UInt64>] {
    /// Adds blocks; they join the last range when they follow it.
    mutating func append(blocks: Range<UInt64>) {
        if let last = last, last.upperBound == blocks.lowerBound {
            self[count - 1] = last.lowerBound..<blocks.upperBound
        } else {
            append(blocks)
        }
    }
}
