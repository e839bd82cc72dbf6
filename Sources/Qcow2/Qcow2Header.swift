import Units

/// The format of the file below an overlay, as its header names it.
public enum BackingFormat: String, Sendable, Equatable {
    case raw
    case qcow2
}

/// The header of a qcow2 version 3 image (QEMU's docs/interop/qcow2.txt): 104 bytes, the backing format as a header
/// extension, and the backing file's name in a fixed area.
///
/// All of it lies in the first 512 bytes when the name has at most 256, so that changing the name is one sector. With
/// clusters of less than 4 KiB all of it lies in the first cluster.
public struct Qcow2Header: Equatable, Sendable {
    static let magic: UInt32 = 0x5146_49FB
    static let length = 104
    static let backingFormatExtension: UInt32 = 0xE279_2ACA
    static let nameOffset = 256
    /// The longest backing file name in bytes of UTF-8; QEMU takes no more.
    public static let maximumNameLength = 1023
    /// Bytes that ``encoded()`` returns at most and ``init(parsing:)`` needs.
    public static let encodedLength = 4096
    /// The largest L1 table that QEMU opens, in bytes.
    static let maximumL1Bytes = 32 << 20
    /// The largest refcount table that QEMU opens, in bytes.
    static let maximumRefcountTableBytes = 8 << 20

    /// Size of the guest's disk in bytes.
    public var virtualSize: UInt64
    /// log2 of the cluster size: 9 (512 bytes) to 21 (2 MiB).
    public var clusterBits: Int
    /// Entries of the L1 table.
    public var l1Entries: Int
    /// Offset of the L1 table in the file, in bytes.
    public var l1Offset: UInt64
    /// Offset of the refcount table in the file, in bytes.
    public var refcountTableOffset: UInt64
    /// Size of the refcount table in clusters.
    public var refcountTableClusters: Int
    /// Name of the file below; relative names start at this file's directory. Empty: none.
    public var backingFile: String
    /// Format of the file below; nil when the header does not say.
    public var backingFormat: BackingFormat?

    /// Cluster size in bytes.
    public var clusterSize: Int { 1 << clusterBits }

    /// The header as the first 4096 bytes of the file, or as its first cluster when that is smaller. Throws when the
    /// name is too long.
    public func encoded() throws(Qcow2Error) -> [UInt8] {
        let name = Array(backingFile.utf8)
        let length = min(Self.encodedLength, clusterSize)
        let limit = min(Self.maximumNameLength, length - Self.nameOffset)
        guard name.count <= limit else { throw .backingNameTooLong(bytes: name.count, limit: limit) }
        var writer = ByteWriter(reservingCapacity: Self.encodedLength)
        writer.write(Self.magic)
        writer.write(UInt32(3))
        writer.write(UInt64(name.isEmpty ? 0 : Self.nameOffset))
        writer.write(UInt32(name.count))
        writer.write(UInt32(clusterBits))
        writer.write(virtualSize)
        writer.write(UInt32(0))  // no encryption
        writer.write(UInt32(l1Entries))
        writer.write(l1Offset)
        writer.write(refcountTableOffset)
        writer.write(UInt32(refcountTableClusters))
        writer.writeZeroes(4 + 8)  // no snapshots
        writer.writeZeroes(8 + 8 + 8)  // no incompatible, compatible or autoclear feature
        writer.write(UInt32(4))  // refcounts of 16 bits
        writer.write(UInt32(Self.length))
        if let backingFormat {
            let text = Array(backingFormat.rawValue.utf8)
            writer.write(Self.backingFormatExtension)
            writer.write(UInt32(text.count))
            writer.write(bytes: text)
            writer.writeZeroes((8 - text.count % 8) % 8)
        }
        writer.writeZeroes(Self.nameOffset - writer.count)  // the first eight of these end the extensions
        writer.write(bytes: name)
        writer.writeZeroes(length - writer.count)
        return writer.bytes
    }
}
