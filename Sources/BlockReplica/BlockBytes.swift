/// Comparing blocks, 64 bytes at a time. All counts are multiples of 64; the memory is aligned to 16 at least.
public enum BlockBytes {
    static func areEqual(_ left: UnsafeRawPointer, _ right: UnsafeRawPointer, count: Int) -> Bool {
        var offset = 0
        while offset < count {
            let a = left.loadUnaligned(fromByteOffset: offset, as: SIMD8<UInt64>.self)
            let b = right.loadUnaligned(fromByteOffset: offset, as: SIMD8<UInt64>.self)
            if a != b { return false }
            offset += 64
        }
        return true
    }

    public static func isZero(_ bytes: UnsafeRawPointer, count: Int) -> Bool {
        var offset = 0
        while offset < count {
            if bytes.loadUnaligned(fromByteOffset: offset, as: SIMD8<UInt64>.self) != SIMD8<UInt64>() { return false }
            offset += 64
        }
        return true
    }
}
