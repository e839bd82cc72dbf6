import Units

/// The writes of one epoch to one disk, kept until they are drained. The last writer of each sector wins.
///
/// Data takes a 4 KiB slot of the pool for each block that it touches; zeroes of whole blocks take no slot, however
/// many they are. Ranges are multiples of 512 inside the disk; anything else traps. Confined to one thread.
public final class EpochBuffer {
    /// Ranges of zeroes kept at most; a caller that has more drains first.
    static let zeroRangeLimit = 65_536

    struct Slot {
        var index: Int32
        /// One bit for each sector that has been written.
        var mask: UInt8
    }

    public let geometry: BlockGeometry
    let pool: SlabPool
    private(set) var slots: [UInt64: Slot] = [:]
    /// Whole blocks of zeroes. A slot of the same block is newer.
    private(set) var zeroes = RangeSet<UInt64>()

    public init(geometry: BlockGeometry, pool: SlabPool) {
        self.geometry = geometry
        self.pool = pool
    }

    deinit { removeAll() }

    public var isEmpty: Bool { slots.isEmpty && zeroes.isEmpty }

    /// Bytes of memory that the buffered data holds.
    public var byteCount: Int { slots.count * BlockGeometry.blockSize }

    /// Takes a write. Returns false, with nothing changed, when the pool has too few free slots.
    public func write(at offset: UInt64, _ bytes: UnsafeRawBufferPointer) -> Bool {
        let range = ByteRange(offset: offset, length: UInt64(bytes.count))
        check(range)
        guard let source = bytes.baseAddress, !bytes.isEmpty else { return true }
        guard hasRoom(geometry.blocks(touching: range)) else { return false }
        for block in geometry.blocks(touching: range) {
            let (within, from) = intersect(block, range)
            let target = slotForWriting(block, sectors: mask(within))
            (target + within.lowerBound).copyMemory(from: source + from, byteCount: within.count)
        }
        return true
    }

    /// Takes a write of zeroes, or a discard, which reads as zeroes. Returns false, with nothing changed, when there is
    /// no room.
    public func writeZeroes(_ range: ByteRange) -> Bool {
        check(range)
        guard !range.isEmpty else { return true }
        let touched = geometry.blocks(touching: range)
        // Only the first and the last block may be covered in part.
        var whole = touched
        var partial: [UInt64] = []
        if !isCovered(touched.lowerBound, range) {
            partial.append(touched.lowerBound)
            whole = whole.lowerBound + 1..<whole.upperBound
        }
        if !whole.isEmpty, !isCovered(whole.upperBound - 1, range) {
            partial.append(whole.upperBound - 1)
            whole = whole.lowerBound..<whole.upperBound - 1
        }
        let missing = partial.count { slots[$0] == nil }
        guard missing <= pool.available, zeroes.ranges.count < Self.zeroRangeLimit else { return false }
        for block in partial {
            let (within, _) = intersect(block, range)
            let target = slotForWriting(block, sectors: mask(within))
            (target + within.lowerBound).initializeMemory(as: UInt8.self, repeating: 0, count: within.count)
        }
        if !whole.isEmpty {
            dropSlots(in: whole)
            zeroes.insert(contentsOf: whole)
        }
        return true
    }

    /// Forgets everything and gives the memory back to the pool.
    public func removeAll() {
        for slot in slots.values { pool.giveBack(slot.index) }
        slots.removeAll(keepingCapacity: slots.count < 65_536)
        zeroes = RangeSet()
    }

    /// The contents of a block that has a slot, and which of its sectors were written; nil otherwise.
    public func data(of block: UInt64) -> (bytes: UnsafeRawPointer, mask: UInt8)? {
        slots[block].map { (UnsafeRawPointer(pool.address($0.index)), $0.mask) }
    }

    /// Whether the block is zeroed as a whole and has not been written since.
    public func isZeroed(_ block: UInt64) -> Bool { slots[block] == nil && zeroes.contains(block) }

    // MARK: Parts

    private func check(_ range: ByteRange) {
        precondition(range.fits(in: geometry.diskSize), "a write behind the end of the disk")
        precondition((range.offset | range.length) % UInt64(Sizes.sector) == 0, "a write of part of a sector")
    }

    private func hasRoom(_ blocks: Range<UInt64>) -> Bool {
        if blocks.count <= pool.available { return true }
        let missing = blocks.count { slots[$0] == nil }
        return missing <= pool.available
    }

    /// The part of the block that the range covers, in bytes from the block's start, and where that part begins in the
    /// range's data.
    private func intersect(_ block: UInt64, _ range: ByteRange) -> (within: Range<Int>, from: Int) {
        let start = block * UInt64(BlockGeometry.blockSize)
        let lower = max(start, range.offset)
        let upper = min(start + UInt64(BlockGeometry.blockSize), range.end)
        return (Int(lower - start)..<Int(upper - start), Int(lower - range.offset))
    }

    private func isCovered(_ block: UInt64, _ range: ByteRange) -> Bool {
        intersect(block, range).within.count == geometry.length(of: block)
    }

    private func mask(_ within: Range<Int>) -> UInt8 {
        let low = within.lowerBound / Sizes.sector
        let high = within.upperBound / Sizes.sector
        return UInt8(truncatingIfNeeded: (1 << high) - (1 << low))
    }

    /// The block's slot with these sectors marked as written; what lay below as zeroes stays visible.
    private func slotForWriting(_ block: UInt64, sectors: UInt8) -> UnsafeMutableRawPointer {
        if let slot = slots[block] {
            slots[block] = Slot(index: slot.index, mask: slot.mask | sectors)
            return pool.address(slot.index)
        }
        let index = pool.take()
        let address = pool.address(index)
        var mask = sectors
        let full = geometry.fullMask(of: block)
        if sectors != full {
            address.initializeMemory(as: UInt8.self, repeating: 0, count: BlockGeometry.blockSize)
            if zeroes.contains(block) { mask = full }
        }
        slots[block] = Slot(index: index, mask: mask)
        return address
    }

    private func dropSlots(in blocks: Range<UInt64>) {
        if blocks.count <= slots.count {
            for block in blocks { drop(block) }
        } else {
            for block in slots.keys.filter(blocks.contains) { drop(block) }
        }
    }

    private func drop(_ block: UInt64) {
        if let slot = slots.removeValue(forKey: block) { pool.giveBack(slot.index) }
    }
}
