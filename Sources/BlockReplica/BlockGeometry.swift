import Units

/// A disk cut into blocks of 4 KiB, which is the granularity of pre-images; the last block may be shorter.
public struct BlockGeometry: Equatable, Sendable {
    /// Bytes in a block.
    public static let blockSize = Sizes.page
    /// Sectors in a block.
    public static let sectorsPerBlock = Sizes.page / Sizes.sector

    /// Size of the disk in bytes.
    public let diskSize: UInt64

    /// Traps unless the size is a multiple of 512 and more than 0; check values from outside first.
    public init(diskSize: UInt64) {
        precondition(diskSize > 0 && diskSize % UInt64(Sizes.sector) == 0)
        self.diskSize = diskSize
    }

    /// Number of blocks.
    public var blockCount: UInt64 { (diskSize - 1) / UInt64(Self.blockSize) + 1 }

    /// Bytes of the disk in this block: 4096, but for the last one of an odd-sized disk.
    @inline(__always)
    public func length(of block: UInt64) -> Int {
        Int(min(diskSize - block * UInt64(Self.blockSize), UInt64(Self.blockSize)))
    }

    /// One bit for each sector that the block has.
    @inline(__always)
    public func fullMask(of block: UInt64) -> UInt8 {
        UInt8(truncatingIfNeeded: (1 << (length(of: block) / Sizes.sector)) - 1)
    }

    /// Bytes of the disk in these blocks.
    public func bytes(of blocks: Range<UInt64>) -> ByteRange {
        let start = blocks.lowerBound * UInt64(Self.blockSize)
        return ByteRange(offset: start, length: min(blocks.upperBound * UInt64(Self.blockSize), diskSize) - start)
    }

    /// The blocks that a range touches.
    public func blocks(touching range: ByteRange) -> Range<UInt64> {
        guard !range.isEmpty else { return 0..<0 }
        return range.offset / UInt64(Self.blockSize)..<(range.end - 1) / UInt64(Self.blockSize) + 1
    }
}
