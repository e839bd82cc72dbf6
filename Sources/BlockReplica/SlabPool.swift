/// Memory for buffered blocks: slots of 4 KiB, taken from slabs of 1 MiB that are allocated when first needed, never
/// more than a limit. All buffers of one disk share one pool. Confined to one thread.
public final class SlabPool {
    static let slotsPerSlab = 256

    /// Slots that may be in use at once.
    public let capacity: Int
    /// Slots in use.
    public private(set) var used = 0
    private var slabs: [UnsafeMutableRawPointer] = []
    private var free: [Int32] = []

    /// `byteLimit` is rounded down to whole slots, of which there is at least one slab's worth.
    public init(byteLimit: Int) {
        capacity = max(byteLimit / BlockGeometry.blockSize, Self.slotsPerSlab)
    }

    deinit { for slab in slabs { slab.deallocate() } }

    /// Slots that can still be taken.
    public var available: Int { capacity - used }

    /// Takes a slot; its contents are undefined. Traps when none is available.
    func take() -> Int32 {
        precondition(used < capacity, "the pool is empty")
        used += 1
        if let slot = free.popLast() { return slot }
        let first = slabs.count * Self.slotsPerSlab
        slabs.append(
            UnsafeMutableRawPointer.allocate(
                byteCount: Self.slotsPerSlab * BlockGeometry.blockSize, alignment: BlockGeometry.blockSize))
        for slot in (first + 1..<first + Self.slotsPerSlab).reversed() { free.append(Int32(slot)) }
        return Int32(first)
    }

    func giveBack(_ slot: Int32) {
        used -= 1
        free.append(slot)
    }

    /// The slot's 4 KiB.
    @inline(__always)
    func address(_ slot: Int32) -> UnsafeMutableRawPointer {
        slabs[Int(slot) / Self.slotsPerSlab] + Int(slot) % Self.slotsPerSlab * BlockGeometry.blockSize
    }
}
