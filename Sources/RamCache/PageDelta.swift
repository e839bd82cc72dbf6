import Glibc
import Units

/// The difference between two versions of a page ("LM8").
///
/// ```
/// u64 (big endian)   line mask: bit i set = the 64-byte line i differs (at least one bit is set)
/// per set bit, lowest line first:
///     u8             word mask: bit j set = the 8-byte word j of the line differs (at least one bit is set)
///     per set bit, lowest word first: 8 bytes, old XOR new, in memory order
/// ```
/// The length follows from the masks. A delta is always shorter than the page it stands for.
enum PageDelta {
    static let lineBytes = 64
    static let lines = Sizes.page / lineBytes
    /// The longest delta that ``encode(_:shadow:into:)`` writes, with the slack that its last store needs, in bytes.
    static let scratchBytes = 8 + lines + Sizes.page + 8
    /// Shortest delta: one line, one word.
    static let minimumBytes = 8 + 1 + 8

    @inline(__always)
    static func fold(_ value: SIMD8<UInt64>) -> UInt64 {
        let four = value.lowHalf | value.highHalf
        let two = four.lowHalf | four.highHalf
        return two[0] | two[1]
    }

    /// Whether all 4096 bytes are zero. Stops at the first line that is not.
    @inline(__always)
    static func isZero(_ page: UnsafeRawPointer) -> Bool {
        guard page.loadUnaligned(as: UInt64.self) == 0 else { return false }
        var offset = 0
        while offset < Sizes.page {
            let first = page.loadUnaligned(fromByteOffset: offset, as: SIMD8<UInt64>.self)
            let second = page.loadUnaligned(fromByteOffset: offset &+ 64, as: SIMD8<UInt64>.self)
            guard fold(first | second) == 0 else { return false }
            offset &+= 128
        }
        return true
    }

    /// Writes the delta from `shadow` to `page` and makes `shadow` equal to `page`.
    ///
    /// - Parameter output: room for ``scratchBytes``.
    /// - Returns: the delta's length in bytes, 0 when both are equal.
    static func encode(
        _ page: UnsafeRawPointer, shadow: UnsafeMutableRawPointer, into output: UnsafeMutableRawPointer
    ) -> Int {
        // First which lines differ, without a branch, then those lines alone, which are in the cache by now.
        var lineMask: UInt64 = 0
        for line in 0..<lines {
            let offset = line &* lineBytes
            let new = page.loadUnaligned(fromByteOffset: offset, as: SIMD8<UInt64>.self)
            let old = shadow.loadUnaligned(fromByteOffset: offset, as: SIMD8<UInt64>.self)
            let differs: UInt64 = fold(new ^ old) == 0 ? 0 : 1
            lineMask |= differs &<< UInt64(truncatingIfNeeded: line)
        }
        guard lineMask != 0 else { return 0 }
        output.storeBytes(of: lineMask.bigEndian, as: UInt64.self)
        var cursor = output + 8
        while lineMask != 0 {
            let offset = lineMask.trailingZeroBitCount &* lineBytes
            lineMask &= lineMask &- 1
            let maskAddress = cursor
            cursor += 1
            var wordMask: UInt64 = 0
            for word in 0..<8 {
                let at = offset &+ word &* 8
                let new = page.loadUnaligned(fromByteOffset: at, as: UInt64.self)
                let difference = new ^ shadow.loadUnaligned(fromByteOffset: at, as: UInt64.self)
                shadow.storeBytes(of: new, toByteOffset: at, as: UInt64.self)
                cursor.storeBytes(of: difference, as: UInt64.self)
                let differs: UInt64 = difference == 0 ? 0 : 1
                wordMask |= differs &<< UInt64(truncatingIfNeeded: word)
                cursor += Int(truncatingIfNeeded: differs &* 8)
            }
            maskAddress.storeBytes(of: UInt8(truncatingIfNeeded: wordMask), as: UInt8.self)
        }
        return cursor - output
    }

    /// The length of the delta at `offset`, nil when it is cut short, has an empty mask or is not shorter than a page.
    static func length(in bytes: UnsafeRawBufferPointer, at offset: Int) -> Int? {
        let available = min(bytes.count - offset, Sizes.page - 1)
        guard available >= minimumBytes else { return nil }
        var lineMask = UInt64(bigEndian: bytes.loadUnaligned(fromByteOffset: offset, as: UInt64.self))
        guard lineMask != 0 else { return nil }
        var length = 8
        while lineMask != 0 {
            guard length < available else { return nil }
            let wordMask = bytes[offset + length]
            guard wordMask != 0 else { return nil }
            length += 1 + 8 * wordMask.nonzeroBitCount
            lineMask &= lineMask &- 1
        }
        return length <= available ? length : nil
    }

    /// Applies a delta that ``length(in:at:)`` accepted to `destination`, which holds the page as it was before.
    static func apply(_ delta: UnsafeRawPointer, to destination: UnsafeMutableRawPointer) {
        var lineMask = UInt64(bigEndian: delta.loadUnaligned(as: UInt64.self))
        var cursor = delta + 8
        while lineMask != 0 {
            let line = destination + lineMask.trailingZeroBitCount &* lineBytes
            var wordMask = cursor.load(as: UInt8.self)
            cursor += 1
            while wordMask != 0 {
                let at = wordMask.trailingZeroBitCount &* 8
                let value =
                    line.loadUnaligned(fromByteOffset: at, as: UInt64.self) ^ cursor.loadUnaligned(as: UInt64.self)
                line.storeBytes(of: value, toByteOffset: at, as: UInt64.self)
                cursor += 8
                wordMask &= wordMask &- 1
            }
            lineMask &= lineMask &- 1
        }
    }
}
