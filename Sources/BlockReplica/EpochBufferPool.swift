/// The buffers of one disk: made when first needed, used again, never more than a limit. Confined to one thread.
public final class EpochBufferPool {
    /// Buffers that may be in use at once, two at least.
    public let capacity: Int
    private let geometry: BlockGeometry
    private let bytesEach: Int
    private var free: [EpochBuffer] = []
    /// Buffers that exist.
    private var made = 0

    /// `byteLimit`: bytes of data that all buffers hold at most. They are cut into buffers of up to 8 MiB.
    public init(geometry: BlockGeometry, byteLimit: Int) {
        self.geometry = geometry
        bytesEach = max(min(byteLimit / 4, 8 << 20), geometry.unit)
        capacity = max(byteLimit / bytesEach, 2)
    }

    /// Buffers that can still be taken.
    public var available: Int { capacity - made + free.count }

    /// An empty buffer; nil when all are in use.
    public func take() -> EpochBuffer? {
        if let buffer = free.popLast() { return buffer }
        guard made < capacity else { return nil }
        made += 1
        return EpochBuffer(geometry: geometry, byteLimit: bytesEach)
    }

    /// Takes back what ``take()`` gave, with whatever is in it.
    public func giveBack(_ buffer: EpochBuffer) {
        buffer.removeAll()
        free.append(buffer)
    }

    /// Frees memory of unused buffers but for `count` of them.
    public func trim(keeping count: Int) {
        guard free.count > count else { return }
        made -= free.count - count
        free.removeLast(free.count - count)
    }
}
