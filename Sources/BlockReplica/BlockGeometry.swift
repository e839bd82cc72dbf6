import Units

/// A disk cut into blocks, which are read, preserved and written as a whole: 4 KiB, or a larger unit where the hidden
/// disk maps larger ones. The last block may be shorter.
public struct BlockGeometry: Equatable, Sendable {
    /// Bytes in a block of most disks, and the smallest.
    public static let blockSize = Sizes.page

    /// Size of the disk in bytes.
    public let diskSize: UInt64
    /// Bytes in a block: 4096, 8192 or 16384.
    public let unit: Int

    /// Traps unless the size is a multiple of 512 and more than 0; check values from outside first.
    public init(diskSize: UInt64, unit: Int = Self.blockSize) {
        precondition(diskSize > 0 && diskSize % UInt64(Sizes.sector) == 0)
        precondition(unit % Self.blockSize == 0 && unit / Sizes.sector <= 32)
        self.diskSize = diskSize
        self.unit = unit
    }

    /// Number of blocks.
    public var blockCount: UInt64 { (diskSize - 1) / UInt64(unit) + 1 }

    /// Bytes of the disk in this block: all of it, but for the last one of an odd-sized disk.
    @inline(__always)
    public func length(of block: UInt64) -> Int {
        Int(min(diskSize - block * UInt64(unit), UInt64(unit)))
    }

    /// One bit for each sector that the block has.
    @inline(__always)
    public func fullMask(of block: UInt64) -> UInt32 {
        UInt32(truncatingIfNeeded: (UInt64(1) << UInt64(length(of: block) / Sizes.sector)) - 1)
    }

    /// Bytes of the disk in these blocks.
    public func bytes(of blocks: Range<UInt64>) -> ByteRange {
        let start = blocks.lowerBound * UInt64(unit)
        return ByteRange(offset: start, length: min(blocks.upperBound * UInt64(unit), diskSize) - start)
    }

    /// The blocks that a range touches.
    public func blocks(touching range: ByteRange) -> Range<UInt64> {
        guard !range.isEmpty else { return 0..<0 }
        return range.offset / UInt64(unit)..<(range.end - 1) / UInt64(unit) + 1
    }
}
