/// How clusters of an image are compressed.
public enum ImageCompression: UInt8, Sendable, Equatable {
    /// Raw deflate.
    case zlib = 0
    case zstd = 1

    public var name: String { self == .zlib ? "zlib" : "zstd" }
}

/// A piece of the file that the header names: a table, its place and its size.
public struct ImagePlace: Equatable, Sendable {
    /// Offset in the file, in bytes.
    public var offset: UInt64
    /// Bytes.
    public var length: UInt64
    /// Things in it.
    public var count: Int

    /// First byte behind it.
    public var end: UInt64 { offset + length }
}

/// The header of any qcow2 image, version 2 or 3 (QEMU's docs/interop/qcow2.txt), checked.
///
/// ```
/// 0            72 or header_length                          cluster size
/// +------------+--------------------+--------+-------------+
/// | fields     | header extensions  | 0 or 8 | backing name |
/// +------------+--------------------+--------+-------------+
/// ```
public struct ImageHeader: Equatable, Sendable {
    /// Bytes with which reading begins: they tell how many are needed. See ``bytesNeeded(start:fileLength:)``.
    public static let startBytes = 104
    /// The largest L1 table that QEMU opens, in bytes.
    static let maximumL1Bytes: UInt64 = 32 << 20
    /// The largest refcount table that QEMU opens, in bytes.
    static let maximumRefcountTableBytes: UInt64 = 8 << 20
    static let maximumSnapshots = 65536
    static let maximumBackingNameBytes = 1023

    /// 2 or 3.
    public let version: Int
    /// Size of the guest's disk in bytes, a multiple of 512.
    public let virtualSize: UInt64
    /// log2 of the cluster size: 9 (512 B) to 21 (2 MiB).
    public let clusterBits: Int
    /// The active L1 table.
    public let l1: ImagePlace
    /// The refcount table; its count is in clusters.
    public let refcountTable: ImagePlace
    /// log2 of the bits of a refcount: 0 to 6.
    public let refcountOrder: Int
    /// Where the snapshots are listed, and how many there are. The length is not known here.
    public let snapshots: ImagePlace
    /// File below, as the header names it; nil: none.
    public let backingFile: String?
    /// Format of the file below, as the header names it; nil when it does not say.
    public let backingFormat: String?
    /// Refcounts may be behind the tables (lazy refcounts): whoever writes must repair them first.
    public let isDirty: Bool
    /// A writer found the image damaged and marked it.
    public let isMarkedCorrupt: Bool
    public let hasLazyRefcounts: Bool
    /// Clusters have 32 subclusters, and L2 entries have 16 bytes.
    public let hasExtendedL2: Bool
    public let compression: ImageCompression
    /// The list of persistent bitmaps, when there are any and they are said to be consistent.
    public let bitmaps: ImagePlace?

    /// Cluster size in bytes.
    public var clusterSize: UInt64 { 1 << UInt64(clusterBits) }
    /// Bytes of an L2 entry.
    public var entryBytes: Int { hasExtendedL2 ? 16 : 8 }
    /// log2 of the entries of an L2 table.
    var tableBits: Int { clusterBits - (hasExtendedL2 ? 4 : 3) }
    /// log2 of the bytes of the disk that one L2 table maps.
    var tableShift: UInt64 { UInt64(clusterBits + tableBits) }
    /// Bits of a refcount.
    public var refcountBits: Int { 1 << refcountOrder }
    /// Bytes in which an extended entry tells clusters apart; the cluster size otherwise.
    public var subclusterSize: UInt64 { hasExtendedL2 ? clusterSize / 32 : clusterSize }
    /// Clusters of the disk; the last may be partial.
    public var guestClusters: UInt64 { virtualSize == 0 ? 0 : (virtualSize - 1) >> UInt64(clusterBits) + 1 }
}
