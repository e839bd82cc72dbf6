import Units

/// What one L2 entry says about one cluster, or one of its 32 subclusters.
struct ImageEntry {
    static let copiedFlag: UInt64 = 1 << 63
    static let compressedFlag: UInt64 = 1 << 62
    static let zeroFlag: UInt64 = 1
    static let offsetMask: UInt64 = 0x00FF_FFFF_FFFF_FE00

    let word: UInt64
    /// Bits of the subclusters: 32 allocated, 32 zero; only with extended entries.
    let bitmap: UInt64

    var isCompressed: Bool { word & Self.compressedFlag != 0 }
    var isCopied: Bool { word & Self.copiedFlag != 0 }
    /// Place of the cluster; 0: none.
    var offset: UInt64 { word & Self.offsetMask }

    @inline(__always)
    init(_ bytes: UnsafeRawBufferPointer, at place: Int, extended: Bool) {
        word = UInt64(bigEndian: bytes.loadUnaligned(fromByteOffset: place, as: UInt64.self))
        bitmap = extended ? UInt64(bigEndian: bytes.loadUnaligned(fromByteOffset: place + 8, as: UInt64.self)) : 0
    }

    init(word: UInt64, bitmap: UInt64 = 0) {
        self.word = word
        self.bitmap = bitmap
    }

    /// Bytes of the file that hold the compressed cluster, before the file's end is considered.
    func compressedRange(clusterBits: Int) -> ByteRange {
        let shift = UInt64(62 - (clusterBits - 8))
        let offset = word & ((1 << shift) - 1)
        let sectors = (word >> shift) & ((1 << UInt64(clusterBits - 8)) - 1) + 1
        return ByteRange(offset: offset, length: sectors * 512 - offset % 512)
    }

    /// Contents of a subcluster. The entry has been checked, and is not compressed.
    @inline(__always)
    func content(subcluster: UInt64, subclusterSize: UInt64, extended: Bool) -> ImageExtent.Content {
        let place: UInt64? = offset == 0 ? nil : offset + subcluster * subclusterSize
        if extended {
            if bitmap >> (32 + subcluster) & 1 != 0 { return .zero(place) }
            if bitmap >> subcluster & 1 == 0 { return .unallocated(place) }
        } else if word & Self.zeroFlag != 0 {
            return .zero(place)
        }
        return place.map { .data($0) } ?? .unallocated(nil)
    }
}
