/// One block of a batch. Its position in the batch is its place in both staging areas, in units of 4 KiB.
public struct DrainEntry: Equatable, Sendable {
    public let block: UInt64
    /// Whether the new contents are all zero; otherwise the epoch buffer has them.
    public let isZero: Bool
    /// Whether the old contents must be read: for the pre-image, or because only some sectors are new.
    public let needsOld: Bool
    /// Whether the old contents belong into the hidden disk before the block is overwritten.
    public let needsPreImage: Bool
}

/// Neighbouring blocks that lie side by side in a staging area too.
public struct BlockRun: Equatable, Sendable {
    /// First block on the disk.
    public var block: UInt64
    /// Place of the first block in the staging area, in blocks.
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

/// A bounded part of an epoch's writes.
public struct DrainBatch: Equatable, Sendable {
    public internal(set) var entries: [DrainEntry] = []
    /// Old contents to read into the old staging area.
    public internal(set) var reads: [BlockRun] = []
    /// Blocks to zero without a look at what they held.
    public internal(set) var zeroRanges: [Range<UInt64>] = []
}

/// What is to be done with a batch when its old contents have been read.
public struct DrainActions: Equatable, Sendable {
    /// Blocks whose old contents go into the hidden disk, rising.
    public internal(set) var preImageBlocks: [UInt64] = []
    /// The same blocks in the old staging area.
    public internal(set) var preImages: [BlockRun] = []
    /// Blocks whose old contents are all zero, rising; the hidden disk only notes them.
    public internal(set) var zeroPreImageBlocks: [UInt64] = []
    /// Blocks to write from the new staging area.
    public internal(set) var writes: [BlockRun] = []
    /// Blocks to zero.
    public internal(set) var zeroRanges: [Range<UInt64>] = []
    /// Blocks left out because they hold their new contents already.
    public internal(set) var unchanged = 0
}

/// Cuts an epoch's writes into batches and decides, block by block, what must be read, preserved and written.
///
/// It does no I/O: the caller reads the batch's old contents, asks ``resolve(_:buffer:old:new:)``, preserves, and only
/// then writes. Blocks come in rising order, each once.
public struct DrainPlanner {
    private let geometry: BlockGeometry
    private let preserve: Bool
    private let capacity: Int
    private let written: [(block: UInt64, mask: UInt8)]
    private let zeroes: [Range<UInt64>]
    private var nextWritten = 0
    private var nextZero = 0
    /// First block of the current range of zeroes that has not been looked at.
    private var zeroCursor: UInt64 = 0
    /// Blocks of zeroes left out because the disk has a hole there.
    public private(set) var unchanged: UInt64 = 0

    /// - Parameters:
    ///   - preserve: whether blocks must be preserved; false only before the first commit ever.
    ///   - capacity: blocks in a batch at most.
    public init(buffer: EpochBuffer, preserve: Bool, capacity: Int) {
        precondition(capacity > 0)
        self.geometry = buffer.geometry
        self.preserve = preserve
        self.capacity = capacity
        self.written = buffer.slots.map { ($0.key, $0.value.mask) }.sorted { $0.0 < $1.0 }
        self.zeroes = Array(buffer.zeroes.ranges)
        self.zeroCursor = zeroes.first?.lowerBound ?? 0
    }

    /// The next batch; nil when everything has been handed out.
    ///
    /// - Parameters:
    ///   - isPreserved: whether the hidden disk of this epoch has the block already.
    ///   - nextData: first byte at or behind an offset at which the disk may hold something else than zeroes; nil when
    ///     there is none.
    public mutating func next<Failure: Error>(
        isPreserved: (UInt64) -> Bool, nextData: (UInt64) throws(Failure) -> UInt64?
    ) throws(Failure) -> DrainBatch? {
        var batch = DrainBatch()
        while batch.entries.count < capacity && batch.zeroRanges.count < capacity {
            let data = nextWritten < written.count ? written[nextWritten] : nil
            let zero = nextZero < zeroes.count ? zeroes[nextZero] : nil
            if let data, zero.map({ _ in data.block <= zeroCursor }) ?? true {
                appendData(data.block, data.mask, isPreserved, &batch)
                nextWritten += 1
                if zero != nil, data.block == zeroCursor { advanceZero(to: zeroCursor + 1) }
            } else if let zero {
                let limit = min(zero.upperBound, data?.block ?? UInt64.max)
                try appendZeroes(upTo: limit, isPreserved, nextData, &batch)
            } else {
                break
            }
        }
        return batch.entries.isEmpty && batch.zeroRanges.isEmpty ? nil : batch
    }

    private mutating func advanceZero(to block: UInt64) {
        zeroCursor = block
        guard block >= zeroes[nextZero].upperBound else { return }
        nextZero += 1
        if nextZero < zeroes.count { zeroCursor = zeroes[nextZero].lowerBound }
    }

    private func appendData(
        _ block: UInt64, _ mask: UInt8, _ isPreserved: (UInt64) -> Bool, _ batch: inout DrainBatch
    ) {
        let isPartial = mask != geometry.fullMask(of: block)
        let needsPreImage = preserve && !isPreserved(block)
        append(
            DrainEntry(
                block: block, isZero: false, needsOld: isPartial || needsPreImage, needsPreImage: needsPreImage), &batch
        )
    }

    private func append(_ entry: DrainEntry, _ batch: inout DrainBatch) {
        if entry.needsOld { batch.reads.append(block: entry.block, position: batch.entries.count) }
        batch.entries.append(entry)
    }

    private mutating func appendZeroes<Failure: Error>(
        upTo limit: UInt64, _ isPreserved: (UInt64) -> Bool, _ nextData: (UInt64) throws(Failure) -> UInt64?,
        _ batch: inout DrainBatch
    ) throws(Failure) {
        guard preserve else {
            batch.zeroRanges.append(blocks: zeroCursor..<limit)
            advanceZero(to: limit)
            return
        }
        var block = zeroCursor
        while block < limit && batch.entries.count < capacity && batch.zeroRanges.count < capacity {
            if isPreserved(block) {
                batch.zeroRanges.append(blocks: block..<block + 1)
                block += 1
                continue
            }
            let place = try nextData(block * UInt64(BlockGeometry.blockSize))
            let dataBlock = min(place.map { $0 / UInt64(BlockGeometry.blockSize) } ?? limit, limit)
            if dataBlock > block {
                // A hole: old and new are both zero.
                unchanged += dataBlock - block
                block = dataBlock
            } else {
                append(DrainEntry(block: block, isZero: true, needsOld: true, needsPreImage: true), &batch)
                block += 1
            }
        }
        advanceZero(to: block)
    }

    /// Builds the new contents in `new` and decides what happens to each block of the batch.
    ///
    /// Both staging areas have 4 KiB for each entry, in order. In `old`, what the disk does not have of its last block
    /// must be zero.
    public static func resolve(
        _ batch: DrainBatch, buffer: EpochBuffer, old: UnsafeMutableRawBufferPointer, new: UnsafeMutableRawBufferPointer
    ) -> DrainActions {
        let size = BlockGeometry.blockSize
        precondition(old.count >= batch.entries.count * size && new.count >= batch.entries.count * size)
        var actions = DrainActions()
        actions.zeroRanges = batch.zeroRanges
        guard let oldBase = old.baseAddress, let newBase = new.baseAddress else { return actions }
        for (position, entry) in batch.entries.enumerated() {
            let before = UnsafeRawPointer(oldBase + position * size)
            let after = newBase + position * size
            if !entry.isZero { compose(entry, buffer, before, after) }
            let isUnchanged =
                entry.needsOld
                && (entry.isZero
                    ? BlockBytes.isZero(before, count: size) : BlockBytes.areEqual(before, after, count: size))
            if isUnchanged {
                actions.unchanged += 1
                continue
            }
            if entry.needsPreImage {
                if BlockBytes.isZero(before, count: size) {
                    actions.zeroPreImageBlocks.append(entry.block)
                } else {
                    actions.preImageBlocks.append(entry.block)
                    actions.preImages.append(position: position, block: entry.block)
                }
            }
            if entry.isZero {
                actions.zeroRanges.append(blocks: entry.block..<entry.block + 1)
            } else {
                actions.writes.append(block: entry.block, position: position)
            }
        }
        return actions
    }

    /// Puts the block's new contents together: the sectors that were written, the others as they were.
    private static func compose(
        _ entry: DrainEntry, _ buffer: EpochBuffer, _ before: UnsafeRawPointer, _ after: UnsafeMutableRawPointer
    ) {
        guard let (source, mask) = buffer.data(of: entry.block) else {
            preconditionFailure("the buffer changed while it was drained")
        }
        let length = buffer.geometry.length(of: entry.block)
        after.copyMemory(from: source, byteCount: length)
        if length < BlockGeometry.blockSize {
            (after + length).initializeMemory(as: UInt8.self, repeating: 0, count: BlockGeometry.blockSize - length)
        }
        guard mask != buffer.geometry.fullMask(of: entry.block) else { return }
        let sector = BlockGeometry.blockSize / BlockGeometry.sectorsPerBlock
        for index in 0..<length / sector where mask & 1 << UInt8(index) == 0 {
            (after + index * sector).copyMemory(from: before + index * sector, byteCount: sector)
        }
    }
}

extension [BlockRun] {
    /// Adds a block; it joins the last run when it follows on the disk and in the staging area.
    mutating func append(block: UInt64, position: Int) {
        if let last = last, last.blocks.upperBound == block, last.position + last.count == position {
            self[count - 1].count += 1
        } else {
            append(BlockRun(block: block, position: position, count: 1))
        }
    }

    /// Adds a block that goes to the end of a file: it joins when it follows in the staging area only.
    mutating func append(position: Int, block: UInt64) {
        if let last = last, last.position + last.count == position {
            self[count - 1].count += 1
        } else {
            append(BlockRun(block: block, position: position, count: 1))
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
