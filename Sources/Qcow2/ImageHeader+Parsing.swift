import Units

extension ImageHeader {
    /// How many bytes from the file's start ``init(parsing:fileLength:)`` wants: the first cluster, at most 2 MiB.
    ///
    /// `start` are the first ``startBytes`` of the file, or all of a shorter one.
    public static func bytesNeeded(start: UnsafeRawBufferPointer, fileLength: UInt64) throws(ImageError) -> Int {
        let bits = try checkedStart(ImageFields(bytes: start))
        return Int(min(UInt64(1) << UInt64(bits), fileLength))
    }

    private static func checkedStart(_ fields: ImageFields) throws(ImageError) -> Int {
        guard fields.bytes.count >= 4 else {
            throw .truncated(what: "the header", offset: 0, needed: 72, available: UInt64(fields.bytes.count))
        }
        guard fields.u32(0) == 0x5146_49FB else { throw .notQcow2(magic: fields.u32(0)) }
        guard fields.bytes.count >= 72 else {
            throw .truncated(what: "the header", offset: 0, needed: 72, available: UInt64(fields.bytes.count))
        }
        let version = fields.u32(4)
        guard version == 2 || version == 3 else { throw .unsupportedVersion(version) }
        guard version == 2 || fields.bytes.count >= 104 else {
            throw .truncated(what: "the header", offset: 0, needed: 104, available: UInt64(fields.bytes.count))
        }
        let bits = fields.u32(20)
        guard (9...21).contains(bits) else {
            throw .badField(name: "cluster_bits", offset: 20, value: UInt64(bits), allowed: "9 to 21")
        }
        return Int(bits)
    }

    /// Reads a header; everything in it is checked before it is used.
    ///
    /// `bytes` are as many as ``bytesNeeded(start:fileLength:)`` says. Tables must lie inside the file's `fileLength`
    /// bytes.
    public init(parsing bytes: UnsafeRawBufferPointer, fileLength: UInt64) throws(ImageError) {
        let fields = ImageFields(bytes: bytes)
        clusterBits = try Self.checkedStart(fields)
        let cluster = UInt64(1) << UInt64(clusterBits)
        guard UInt64(bytes.count) >= min(cluster, fileLength) else {
            throw .truncated(
                what: "the header", offset: 0, needed: min(cluster, fileLength), available: UInt64(bytes.count))
        }
        version = Int(fields.u32(4))
        let headerLength = try Self.headerLength(fields, version: version)
        let extensions = try ImageExtensions(fields, from: headerLength, cluster: cluster)
        let features = try ImageFeatures(fields, version: version, length: headerLength, extensions)
        isDirty = features.isDirty
        isMarkedCorrupt = features.isMarkedCorrupt
        hasLazyRefcounts = features.hasLazyRefcounts
        hasExtendedL2 = features.hasExtendedL2
        compression = features.compression
        backingFile = try Self.backingName(fields, cluster: cluster)
        backingFormat = backingFile == nil ? nil : extensions.backingFormat
        bitmaps = features.bitmapsAreConsistent ? extensions.bitmaps : nil

        virtualSize = fields.u64(24) / 512 * 512
        let tableShift = UInt64(clusterBits * 2 - (hasExtendedL2 ? 4 : 3))
        let neededEntries = virtualSize == 0 ? 0 : (virtualSize - 1) >> tableShift + 1
        let entries = UInt64(fields.u32(36))
        guard entries <= Self.maximumL1Bytes / 8, entries >= neededEntries else {
            throw .badField(
                name: "l1_size", offset: 36, value: entries,
                allowed: neededEntries <= Self.maximumL1Bytes / 8
                    ? "\(neededEntries) to \(Self.maximumL1Bytes / 8) for this disk"
                    : "nothing: a disk of \(virtualSize) bytes needs more than QEMU opens")
        }
        l1 = try Self.place("l1_table_offset", at: 40, fields, count: entries, bytes: entries * 8, cluster, fileLength)
        let refcountClusters = UInt64(fields.u32(56))
        guard refcountClusters > 0, refcountClusters * cluster <= max(Self.maximumRefcountTableBytes, cluster) else {
            throw .badField(
                name: "refcount_table_clusters", offset: 56, value: refcountClusters,
                allowed: "1 to \(max(Self.maximumRefcountTableBytes / cluster, 1))")
        }
        refcountTable = try Self.place(
            "refcount_table_offset", at: 48, fields, count: refcountClusters, bytes: refcountClusters * cluster,
            cluster, fileLength)
        refcountOrder = try Self.refcountOrder(fields, version: version)
        snapshots = try Self.snapshotPlace(fields, cluster, fileLength)
    }

    private static func headerLength(_ fields: ImageFields, version: Int) throws(ImageError) -> Int {
        guard version == 3 else { return 72 }
        let length = fields.u32(100)
        guard length >= 104, length % 8 == 0, length <= UInt32(fields.bytes.count) else {
            throw .badField(
                name: "header_length", offset: 100, value: UInt64(length),
                allowed: "multiples of 8 from 104 to \(fields.bytes.count)")
        }
        return Int(length)
    }

    private static func refcountOrder(_ fields: ImageFields, version: Int) throws(ImageError) -> Int {
        guard version == 3 else { return 4 }
        let order = fields.u32(96)
        guard order <= 6 else {
            throw .badField(name: "refcount_order", offset: 96, value: UInt64(order), allowed: "0 to 6")
        }
        return Int(order)
    }

    /// Checks that a table starts on a cluster behind the header and ends inside the file.
    private static func place(
        _ name: String, at field: Int, _ fields: ImageFields, count: UInt64, bytes: UInt64, _ cluster: UInt64,
        _ fileLength: UInt64
    ) throws(ImageError) -> ImagePlace {
        let offset = fields.u64(field)
        guard count > 0 else { return ImagePlace(offset: 0, length: 0, count: 0) }
        guard offset >= cluster, offset % cluster == 0, let range = ByteRange(checking: offset, length: bytes),
            range.end <= fileLength
        else {
            throw .badField(
                name: name, offset: UInt64(field), value: offset,
                allowed: "multiples of \(cluster) behind the header with \(bytes) bytes inside the file's \(fileLength)"
            )
        }
        return ImagePlace(offset: offset, length: bytes, count: Int(count))
    }

    private static func snapshotPlace(
        _ fields: ImageFields, _ cluster: UInt64, _ fileLength: UInt64
    ) throws(ImageError) -> ImagePlace {
        let count = fields.u32(60)
        guard count <= UInt32(maximumSnapshots) else {
            throw .badField(
                name: "nb_snapshots", offset: 60, value: UInt64(count), allowed: "0 to \(maximumSnapshots)")
        }
        return try place(
            "snapshots_offset", at: 64, fields, count: UInt64(count), bytes: UInt64(count) * 40, cluster, fileLength)
    }

    private static func backingName(_ fields: ImageFields, cluster: UInt64) throws(ImageError) -> String? {
        let offset = fields.u64(8)
        let length = UInt64(fields.u32(16))
        guard offset != 0, length != 0 else { return nil }
        guard offset <= cluster, offset <= UInt64(fields.bytes.count) else {
            throw .badField(
                name: "backing_file_offset", offset: 8, value: offset, allowed: "0 to the end of the first cluster")
        }
        let limit = min(UInt64(maximumBackingNameBytes), cluster - offset, UInt64(fields.bytes.count) - offset)
        guard length <= limit else {
            throw .badField(name: "backing_file_size", offset: 16, value: length, allowed: "0 to \(limit)")
        }
        guard let name = fields.text(Int(offset), Int(length)) else {
            throw .badField(
                name: "backing_file", offset: offset, value: length, allowed: "UTF-8 text without zero bytes")
        }
        return name
    }
}
