/// Cuts a frozen buffer's writes into batches, and decides block by block what must be looked at.
///
/// It does no I/O. Blocks come in rising order, each once.
public struct DrainPlanner {
    private let buffer: EpochBuffer
    private let preserve: Bool
    private let capacity: Int
    private let zeroes: [Range<UInt64>]
    private var nextWritten = 0
    private var nextZero = 0
    /// First block of the current range of zeroes that has not been looked at.
    private var zeroCursor: UInt64 = 0
    /// Bytes of the disk known to hold data, from an earlier answer.
    private var knownData: Range<UInt64> = 0..<0

    /// - Parameters:
    ///   - buffer: frozen.
    ///   - preserve: whether blocks must be preserved; false only before the first commit ever.
    ///   - capacity: blocks in a batch at most.
    public init(buffer: EpochBuffer, preserve: Bool, capacity: Int) {
        precondition(capacity > 0 && buffer.isFrozen)
        self.buffer = buffer
        self.preserve = preserve
        self.capacity = capacity
        self.zeroes = Array(buffer.zeroes.ranges)
        self.zeroCursor = zeroes.first?.lowerBound ?? 0
    }

    /// Whether everything has been handed out.
    public var isDone: Bool { nextWritten == buffer.liveCount && nextZero == zeroes.count }

    /// The next batch; empty when everything has been handed out.
    ///
    /// - Parameters:
    ///   - isPreserved: whether the hidden disk of this epoch has the block already.
    ///   - data: the first bytes at or behind an offset at which the disk may hold something else than zeroes; nil when
    ///     there are none.
    public mutating func next<Failure: Error>(
        into batch: DrainBatch, isPreserved: (UInt64) -> Bool,
        data nextData: (UInt64) throws(Failure) -> Range<UInt64>?
    ) throws(Failure) {
        batch.removeAll()
        while batch.count < capacity && batch.zeroRanges.count < capacity {
            let data = nextWritten < buffer.liveCount ? buffer.entry(nextWritten) : nil
            let zero = nextZero < zeroes.count ? zeroes[nextZero] : nil
            if let data, zero == nil || data.block <= zeroCursor {
                appendData(data.block, data.slot, isPreserved, batch)
                nextWritten += 1
                if zero != nil, data.block == zeroCursor { advanceZero(to: zeroCursor + 1) }
            } else if let zero {
                let limit = min(zero.upperBound, data?.block ?? UInt64.max)
                try appendZeroes(upTo: limit, isPreserved, nextData, batch)
            } else {
                break
            }
        }
    }

    private mutating func advanceZero(to block: UInt64) {
        zeroCursor = block
        guard block >= zeroes[nextZero].upperBound else { return }
        nextZero += 1
        if nextZero < zeroes.count { zeroCursor = zeroes[nextZero].lowerBound }
    }

    private func appendData(_ block: UInt64, _ slot: Int, _ isPreserved: (UInt64) -> Bool, _ batch: DrainBatch) {
        let isPartial = buffer.mask(ofSlot: slot) != buffer.geometry.fullMask(of: block)
        let needsPreImage = preserve && !isPreserved(block)
        batch.append(
            DrainBatch.Entry(
                block: block, slot: slot, needsOld: isPartial || needsPreImage, needsPreImage: needsPreImage))
    }

    private mutating func appendZeroes<Failure: Error>(
        upTo limit: UInt64, _ isPreserved: (UInt64) -> Bool,
        _ nextData: (UInt64) throws(Failure) -> Range<UInt64>?, _ batch: DrainBatch
    ) throws(Failure) {
        guard preserve else {
            batch.appendZeroes(zeroCursor..<limit)
            advanceZero(to: limit)
            return
        }
        let unit = UInt64(buffer.geometry.unit)
        var block = zeroCursor
        while block < limit && batch.count < capacity && batch.zeroRanges.count < capacity {
            if isPreserved(block) {
                batch.appendZeroes(block..<block + 1)
                block += 1
                continue
            }
            if !knownData.contains(block * unit) {
                knownData = try nextData(block * unit) ?? limit * unit..<limit * unit
            }
            let dataBlock = max(min(knownData.lowerBound / unit, limit), block)
            if dataBlock > block {
                // A hole: old and new are both zero.
                batch.countUnchanged(dataBlock - block)
                block = dataBlock
            } else {
                batch.append(DrainBatch.Entry(block: block, slot: -1, needsOld: true, needsPreImage: true))
                block += 1
            }
        }
        advanceZero(to: block)
    }
}
