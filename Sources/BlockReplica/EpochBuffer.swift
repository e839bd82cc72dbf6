import Units

/// Writes of one epoch to one disk, kept until they are drained. The last writer of each sector wins.
///
/// Data takes a slot for each block that it touches; zeroes of whole blocks take no slot, however many they are. All
/// memory is taken when the buffer is made, and used again after ``removeAll()``. Ranges are multiples of 512 inside the
/// disk; anything else traps.
///
/// It belongs to the thread that fills it until ``freeze()``. From then on nobody writes to it; the thread that drains
/// it may put sectors that were not written into their slots, and reads of what was written may go on beside that.
public final class EpochBuffer {
    /// Ranges of zeroes kept at most; a buffer that has more is full.
    static let zeroRangeLimit = 4096

    public let geometry: BlockGeometry
    /// Blocks of data that fit.
    public let capacity: Int
    private let memory: UnsafeMutableRawPointer
    /// Slot number + 1 by hash of the block, linear probing; 0 is free. Twice as many places as slots.
    private let table: UnsafeMutablePointer<UInt32>
    private let tableMask: Int
    /// By slot: its block, and one bit for each sector that was written. No bit: zeroes have covered it.
    private let blocks: UnsafeMutablePointer<UInt64>
    private let masks: UnsafeMutablePointer<UInt32>
    /// Live slots by rising block, once frozen: the block in the upper 48 bits, the slot in the lower 16.
    private let order: UnsafeMutablePointer<UInt64>
    private(set) var liveCount = 0
    /// Slots in use.
    public private(set) var used = 0
    /// Whole blocks of zeroes. A live slot of the same block is newer.
    private(set) var zeroes = RangeSet<UInt64>()
    public private(set) var isFrozen = false
    /// Whether all that was written are whole blocks of data. Set by ``freeze()``.
    public private(set) var isSimple = false

    /// `byteLimit` is rounded down to whole blocks, 1 to 65,536 of them.
    public init(geometry: BlockGeometry, byteLimit: Int) {
        self.geometry = geometry
        capacity = min(max(byteLimit / geometry.unit, 1), 65_536)
        var places = 2
        while places < capacity * 2 { places *= 2 }
        tableMask = places - 1
        memory = .allocate(byteCount: capacity * geometry.unit, alignment: BlockGeometry.blockSize)
        table = .allocate(capacity: places)
        table.initialize(repeating: 0, count: places)
        blocks = .allocate(capacity: capacity)
        masks = .allocate(capacity: capacity)
        order = .allocate(capacity: capacity)
    }

    deinit {
        memory.deallocate()
        table.deallocate()
        blocks.deallocate()
        masks.deallocate()
        order.deallocate()
    }

    public var isEmpty: Bool { used == 0 && zeroes.isEmpty }

    /// Bytes of memory that the buffered data holds.
    public var byteCount: Int { used * geometry.unit }

    // MARK: Filling

    /// Takes a write, or as much of its front as fits; returns how many bytes.
    public func write(at offset: UInt64, _ bytes: UnsafeRawBufferPointer) -> Int {
        let range = ByteRange(offset: offset, length: UInt64(bytes.count))
        check(range)
        guard let source = bytes.baseAddress, !bytes.isEmpty else { return 0 }
        var taken = 0
        for block in geometry.blocks(touching: range) {
            let (within, from) = intersect(block, range)
            guard let slot = slotForWriting(block, sectors: mask(within)) else { break }
            (address(slot) + within.lowerBound).copyMemory(from: source + from, byteCount: within.count)
            taken += within.count
        }
        return taken
    }

    /// Takes a write of zeroes, or a discard, which reads as zeroes. Returns false, with nothing changed, when there is
    /// no room.
    public func writeZeroes(_ range: ByteRange) -> Bool {
        check(range)
        guard !range.isEmpty else { return true }
        let touched = geometry.blocks(touching: range)
        // Only the first and the last block may be covered in part.
        var whole = touched
        if !isCovered(touched.lowerBound, range) { whole = whole.lowerBound + 1..<whole.upperBound }
        if !whole.isEmpty, !isCovered(whole.upperBound - 1, range) { whole = whole.lowerBound..<whole.upperBound - 1 }
        let hasHead = whole.lowerBound > touched.lowerBound
        let hasTail = whole.upperBound < touched.upperBound && (!hasHead || touched.count > 1)
        var missing = 0
        if hasHead, slot(of: touched.lowerBound) == nil { missing += 1 }
        if hasTail, slot(of: touched.upperBound - 1) == nil { missing += 1 }
        guard used + missing <= capacity, zeroes.ranges.count < Self.zeroRangeLimit else { return false }
        if hasHead { zeroSectors(of: touched.lowerBound, range) }
        if hasTail { zeroSectors(of: touched.upperBound - 1, range) }
        if !whole.isEmpty {
            dropSlots(in: whole)
            zeroes.insert(contentsOf: whole)
        }
        return true
    }

    /// Forgets everything; the memory stays.
    public func removeAll() {
        table.update(repeating: 0, count: tableMask + 1)
        used = 0
        liveCount = 0
        zeroes = RangeSet()
        isFrozen = false
    }

    // MARK: Reading

    /// The contents of a block that has data, and which of its sectors were written; nil otherwise.
    public func data(of block: UInt64) -> (bytes: UnsafeRawPointer, mask: UInt32)? {
        guard let slot = slot(of: block), masks[slot] != 0 else { return nil }
        return (UnsafeRawPointer(address(slot)), masks[slot])
    }

    /// Whether the block is zeroed as a whole and has not been written since.
    public func isZeroed(_ block: UInt64) -> Bool { data(of: block) == nil && zeroes.contains(block) }

    /// Puts what was written over the older contents of a range of the disk, which may start anywhere. Returns whether
    /// the older contents were covered as a whole.
    @discardableResult
    public func overlay(onto target: UnsafeMutableRawBufferPointer, at offset: UInt64) -> Bool {
        let range = ByteRange(offset: offset, length: UInt64(target.count))
        var isWhole = true
        for block in geometry.blocks(touching: range) {
            let (within, from) = intersect(block, range)
            let place = UnsafeMutableRawBufferPointer(rebasing: target[from..<from + within.count])
            if let (bytes, mask) = data(of: block) {
                if !copy(bytes, mask, within, place) { isWhole = false }
            } else if !zeroes.isEmpty, zeroes.contains(block) {
                place.initializeMemory(as: UInt8.self, repeating: 0)
            } else {
                isWhole = false
            }
        }
        return isWhole
    }

    /// Copies the sectors that were written, as far as they lie within; returns whether that is everything.
    private func copy(
        _ bytes: UnsafeRawPointer, _ mask: UInt32, _ within: Range<Int>, _ target: UnsafeMutableRawBufferPointer
    ) -> Bool {
        var isWhole = true
        var start = within.lowerBound
        while start < within.upperBound {
            let end = min((start / Sizes.sector + 1) * Sizes.sector, within.upperBound)
            if mask & 1 << UInt32(start / Sizes.sector) != 0 {
                UnsafeMutableRawBufferPointer(
                    rebasing: target[start - within.lowerBound..<end - within.lowerBound]
                ).copyMemory(from: UnsafeRawBufferPointer(start: bytes + start, count: end - start))
            } else {
                isWhole = false
            }
            start = end
        }
        return isWhole
    }

    // MARK: Draining

    /// Nothing more is written. Sorts what there is.
    public func freeze() {
        guard !isFrozen else { return }
        isFrozen = true
        var isSorted = true
        liveCount = 0
        isSimple = zeroes.isEmpty
        for slot in 0..<used where masks[slot] != 0 {
            if masks[slot] != geometry.fullMask(of: blocks[slot]) { isSimple = false }
            order[liveCount] = blocks[slot] << 16 | UInt64(slot)
            if liveCount > 0, order[liveCount - 1] > order[liveCount] { isSorted = false }
            liveCount += 1
        }
        guard !isSorted else { return }
        var entries = UnsafeMutableBufferPointer(start: order, count: liveCount)
        entries.sort()
    }

    /// The live slot at a place of the order by block.
    @inline(__always)
    func entry(_ index: Int) -> (block: UInt64, slot: Int) {
        (order[index] >> 16, Int(order[index] & 0xFFFF))
    }

    @inline(__always)
    func mask(ofSlot slot: Int) -> UInt32 { masks[slot] }

    /// The slot's block of memory.
    @inline(__always)
    public func address(_ slot: Int) -> UnsafeMutableRawPointer { memory + slot * geometry.unit }

    // MARK: Parts

    private func check(_ range: ByteRange) {
        precondition(!isFrozen, "a write into a buffer that is being drained")
        precondition(range.fits(in: geometry.diskSize), "a write behind the end of the disk")
        precondition((range.offset | range.length) % UInt64(Sizes.sector) == 0, "a write of part of a sector")
    }

    /// The part of the block that the range covers, in bytes from the block's start, and where that part begins in the
    /// range's data.
    @inline(__always)
    private func intersect(_ block: UInt64, _ range: ByteRange) -> (within: Range<Int>, from: Int) {
        let start = block * UInt64(geometry.unit)
        let lower = max(start, range.offset)
        let upper = min(start + UInt64(geometry.unit), range.end)
        return (Int(lower - start)..<Int(upper - start), Int(lower - range.offset))
    }

    private func isCovered(_ block: UInt64, _ range: ByteRange) -> Bool {
        intersect(block, range).within.count == geometry.length(of: block)
    }

    @inline(__always)
    private func mask(_ within: Range<Int>) -> UInt32 {
        let low = UInt64(within.lowerBound / Sizes.sector)
        let high = UInt64(within.upperBound / Sizes.sector)
        return UInt32(truncatingIfNeeded: (UInt64(1) << high) - (UInt64(1) << low))
    }

    @inline(__always)
    private func place(of block: UInt64) -> Int {
        Int(truncatingIfNeeded: (block &* 0x9E37_79B9_7F4A_7C15) >> 32) & tableMask
    }

    /// The block's slot, live or not.
    @inline(__always)
    private func slot(of block: UInt64) -> Int? {
        var place = place(of: block)
        while table[place] != 0 {
            let slot = Int(table[place]) - 1
            if blocks[slot] == block { return slot }
            place = (place + 1) & tableMask
        }
        return nil
    }

    /// The block's slot with these sectors marked as written; what lay below as zeroes stays visible. Nil when full.
    @inline(__always)
    private func slotForWriting(_ block: UInt64, sectors: UInt32) -> Int? {
        var place = place(of: block)
        while table[place] != 0 {
            let slot = Int(table[place]) - 1
            if blocks[slot] == block {
                if masks[slot] != 0 { masks[slot] |= sectors } else { begin(slot, block, sectors) }
                return slot
            }
            place = (place + 1) & tableMask
        }
        guard used < capacity else { return nil }
        let slot = used
        used += 1
        table[place] = UInt32(slot + 1)
        blocks[slot] = block
        begin(slot, block, sectors)
        return slot
    }

    private func begin(_ slot: Int, _ block: UInt64, _ sectors: UInt32) {
        let full = geometry.fullMask(of: block)
        masks[slot] = sectors
        if sectors != full || geometry.length(of: block) < geometry.unit {
            address(slot).initializeMemory(as: UInt8.self, repeating: 0, count: geometry.unit)
            if !zeroes.isEmpty, zeroes.contains(block) { masks[slot] = full }
        }
    }

    private func zeroSectors(of block: UInt64, _ range: ByteRange) {
        let (within, _) = intersect(block, range)
        guard let slot = slotForWriting(block, sectors: mask(within)) else {
            preconditionFailure("room was promised")
        }
        (address(slot) + within.lowerBound).initializeMemory(as: UInt8.self, repeating: 0, count: within.count)
    }

    private func dropSlots(in range: Range<UInt64>) {
        if range.count <= used {
            for block in range { if let slot = slot(of: block) { masks[slot] = 0 } }
        } else {
            for slot in 0..<used where range.contains(blocks[slot]) { masks[slot] = 0 }
        }
    }
}
