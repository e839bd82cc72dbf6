import Units

extension Qcow2Header {
    /// Reads a header; everything in it is checked before it is used. `bytes` are the first 4096 of the file, or fewer
    /// of a shorter one; the tables' places are checked against `fileLength` in bytes.
    public init(parsing bytes: UnsafeRawBufferPointer, fileLength: UInt64) throws(Qcow2Error) {
        guard bytes.count >= Self.length else {
            throw .truncated(what: "the header", needed: Self.length, available: bytes.count)
        }
        var fields = Fields(bytes: bytes)
        let magic = fields.u32(0)
        guard magic == Self.magic else { throw .notQcow2(magic: magic) }
        guard fields.u32(4) == 3 else { throw .unsupportedVersion(fields.u32(4)) }
        try Self.refuseFeatures(fields)

        let bits = Int(fields.u32(20))
        guard (9...21).contains(bits) else {
            throw .badField(name: "cluster_bits", value: UInt64(bits), allowed: "9 to 21")
        }
        let cluster = UInt64(1) << UInt64(bits)
        // All of the header lies in the first cluster.
        fields = Fields(bytes: UnsafeRawBufferPointer(rebasing: bytes.prefix(Int(cluster))))
        let size = fields.u64(24)
        guard size > 0, size % UInt64(Sizes.sector) == 0 else { throw .badDiskSize(size) }
        let bytesPerTable = cluster / 8 * cluster
        let neededEntries = (size - 1) / bytesPerTable + 1
        let l1 = UInt64(fields.u32(36))
        guard l1 <= UInt64(Self.maximumL1Bytes / 8), l1 >= neededEntries else {
            throw .badField(
                name: "l1_size", value: l1, allowed: "\(neededEntries) to \(Self.maximumL1Bytes / 8) for this disk")
        }
        let l1Offset = try Self.table("l1_table_offset", fields.u64(40), l1 * 8, cluster, fileLength)
        let refcountClusters = UInt64(fields.u32(56))
        guard refcountClusters > 0, refcountClusters * cluster <= UInt64(Self.maximumRefcountTableBytes) else {
            throw .badField(
                name: "refcount_table_clusters", value: refcountClusters,
                allowed: "1 to \(UInt64(Self.maximumRefcountTableBytes) / cluster)")
        }
        let refcounts = try Self.table(
            "refcount_table_offset", fields.u64(48), refcountClusters * cluster, cluster, fileLength)

        self.init(
            virtualSize: size, clusterBits: bits, l1Entries: Int(l1), l1Offset: l1Offset,
            refcountTableOffset: refcounts, refcountTableClusters: Int(refcountClusters),
            backingFile: try Self.backingName(fields), backingFormat: try Self.backingFormat(fields))
    }

    /// Big-endian fields at fixed places.
    struct Fields {
        let bytes: UnsafeRawBufferPointer

        func u32(_ offset: Int) -> UInt32 {
            UInt32(bigEndian: bytes.loadUnaligned(fromByteOffset: offset, as: UInt32.self))
        }

        func u64(_ offset: Int) -> UInt64 {
            UInt64(bigEndian: bytes.loadUnaligned(fromByteOffset: offset, as: UInt64.self))
        }
    }

    private static func refuseFeatures(_ fields: Fields) throws(Qcow2Error) {
        let incompatible = fields.u64(72)
        let names = [
            "a dirty bit", "a corrupt bit", "an external data file", "another compression", "extended L2 tables",
        ]
        if incompatible != 0 {
            let bit = incompatible.trailingZeroBitCount
            throw .unsupportedFeature(bit < names.count ? names[bit] : "the unknown incompatible feature \(bit)")
        }
        guard fields.u32(32) == 0 else { throw .unsupportedFeature("encryption") }
        guard fields.u32(60) == 0 else { throw .unsupportedFeature("internal snapshots") }
        guard fields.u32(96) == 4 else {
            throw .badField(name: "refcount_order", value: UInt64(fields.u32(96)), allowed: "4")
        }
        let length = fields.u32(100)
        guard length >= UInt32(Self.length), length % 8 == 0, length <= UInt32(fields.bytes.count) else {
            throw .badField(
                name: "header_length", value: UInt64(length),
                allowed: "multiples of 8 from \(Self.length) to \(fields.bytes.count)")
        }
    }

    /// Checks that a table starts on a cluster behind the header and ends inside the file.
    private static func table(
        _ name: String, _ offset: UInt64, _ length: UInt64, _ cluster: UInt64, _ fileLength: UInt64
    ) throws(Qcow2Error) -> UInt64 {
        guard offset >= cluster, offset % cluster == 0, let range = ByteRange(checking: offset, length: length),
            range.end <= fileLength
        else {
            throw .badField(
                name: name, value: offset,
                allowed: "multiples of \(cluster) with \(length) bytes inside the file's \(fileLength)")
        }
        return offset
    }

    private static func backingName(_ fields: Fields) throws(Qcow2Error) -> String {
        let offset = fields.u64(8)
        let length = Int(fields.u32(16))
        guard offset != 0 else { return "" }
        guard length <= maximumNameLength else {
            throw .backingNameTooLong(bytes: length, limit: maximumNameLength)
        }
        guard offset >= UInt64(Self.length), offset <= UInt64(fields.bytes.count - min(length, fields.bytes.count)),
            length <= fields.bytes.count
        else {
            throw .badField(
                name: "backing_file_offset", value: offset, allowed: "\(Self.length) to the end of the header")
        }
        let slice = fields.bytes[Int(offset)..<Int(offset) + length]
        guard let name = String(validating: slice, as: UTF8.self), !name.utf8.contains(0) else {
            throw .badField(name: "backing_file", value: offset, allowed: "UTF-8 text without zero bytes")
        }
        return name
    }

    /// Walks the header extensions, which are at most the header's bytes, and returns the backing format.
    private static func backingFormat(_ fields: Fields) throws(Qcow2Error) -> BackingFormat? {
        var offset = Int(fields.u32(100))
        let nameOffset = fields.u64(8)
        let end = nameOffset > 0 ? Int(nameOffset) : fields.bytes.count
        var found: BackingFormat? = nil
        while offset + 8 <= end {
            let kind = fields.u32(offset)
            let length = Int(fields.u32(offset + 4))
            if kind == 0 { break }
            guard length <= end - offset - 8 else {
                throw .badField(
                    name: "header extension length", value: UInt64(length), allowed: "0 to \(end - offset - 8)")
            }
            if kind == backingFormatExtension {
                let text = String(validating: fields.bytes[offset + 8..<offset + 8 + length], as: UTF8.self)
                guard let format = text.flatMap(BackingFormat.init(rawValue:)) else {
                    throw .unsupportedFeature("a backing format other than raw or qcow2")
                }
                found = format
            }
            offset += 8 + (length + 7) / 8 * 8
        }
        return found
    }
}
