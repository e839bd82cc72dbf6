/// Memory that O_DIRECT accepts: it starts on a 4 KiB boundary and its size is a multiple of 4 KiB.
///
/// The object owns the memory and frees it when it dies; keep it alive for as long as `bytes` is used. Confined to
/// one thread.
public final class AlignedBuffer {
    /// The alignment of the first byte and of the size, in bytes.
    public static let alignment = 4096

    /// The memory. Its contents are zero at first.
    public let bytes: UnsafeMutableRawBufferPointer

    /// Allocates at least `minimumCount` bytes, rounded up to 4 KiB. Traps when the count is negative.
    public init(minimumCount: Int) {
        precondition(minimumCount >= 0)
        let count = max((minimumCount + Self.alignment - 1) / Self.alignment * Self.alignment, Self.alignment)
        bytes = UnsafeMutableRawBufferPointer.allocate(byteCount: count, alignment: Self.alignment)
        bytes.initializeMemory(as: UInt8.self, repeating: 0)
    }

    deinit { bytes.deallocate() }

    /// Size in bytes.
    public var count: Int { bytes.count }

    /// A part of the memory. Traps when it does not lie inside.
    public func slice(_ offset: Int, _ length: Int) -> UnsafeMutableRawBufferPointer {
        UnsafeMutableRawBufferPointer(rebasing: bytes[offset..<offset + length])
    }
}
