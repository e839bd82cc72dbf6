import Units

/// The bits of L1 and L2 entries.
enum OverlayEntry {
    static let copiedFlag: UInt64 = 1 << 63
    static let compressedFlag: UInt64 = 1 << 62
    static let zeroFlag: UInt64 = 1
    static let offsetMask: UInt64 = 0x00FF_FFFF_FFFF_FE00
}

/// What an overlay holds for one cluster of the disk.
public enum OverlayCluster: Equatable, Sendable {
    /// Nothing: look into the file below.
    case unallocated
    /// Zeroes.
    case zero
    /// Data at this offset of the overlay's file, in bytes.
    case data(UInt64)

    /// Whether it is zeroes; nil when the overlay has nothing.
    public var isZero: Bool? {
        switch self {
        case .unallocated: nil
        case .zero: true
        case .data: false
        }
    }
}

/// Consecutive clusters of the disk that lie in one piece of the overlay's file, or are all zero.
public struct OverlayRun: Equatable, Sendable {
    /// First cluster of the disk.
    public var guestCluster: UInt64
    /// Number of clusters.
    public var count: UInt64
    /// Offset in the file in bytes; nil for zeroes.
    public var fileOffset: UInt64?
}

/// Reads an overlay's tables; every entry is checked before it is believed. It does no I/O.
///
/// To list all of an image: read the L1 table in pieces, ask ``tableOffset(entry:at:)`` for each entry, read each L2 table
/// and give it to ``runs(table:index:tableOffset:)``.
public struct OverlayReader: Sendable {
    public let header: Qcow2Header
    /// Length of the file in bytes; set it again when the file has grown.
    public var fileLength: UInt64

    /// `headerBytes`: the first 4096 bytes of the file.
    public init(headerBytes: UnsafeRawBufferPointer, fileLength: UInt64) throws(Qcow2Error) {
        header = try Qcow2Header(parsing: headerBytes, fileLength: fileLength)
        self.fileLength = fileLength
    }

    /// Clusters of the disk; the last may be partial.
    public var guestClusters: UInt64 { (header.virtualSize - 1) >> UInt64(header.clusterBits) + 1 }

    /// Entries in one L2 table.
    public var entriesPerTable: UInt64 { UInt64(header.clusterSize) / 8 }

    /// Place of an L1 entry in the file. Traps behind the table's end.
    public func l1EntryOffset(_ index: Int) -> UInt64 {
        precondition(index >= 0 && index < header.l1Entries)
        return header.l1Offset + UInt64(index) * 8
    }

    /// The place of the L2 table that an L1 entry names; nil when there is none. `at` is the entry's own place, for the
    /// message.
    public func tableOffset(entry: UInt64, at place: UInt64) throws(Qcow2Error) -> UInt64? {
        guard entry & ~(OverlayEntry.copiedFlag | OverlayEntry.offsetMask) == 0 else {
            throw .badEntry(table: "L1", offset: place, value: entry, reason: "reserved bits are set")
        }
        let offset = entry & OverlayEntry.offsetMask
        guard offset != 0 else { return nil }
        try check(offset, "L1", place, entry)
        return offset
    }

    /// What an L2 entry says. `at` is the entry's own place, for the message.
    public func cluster(entry: UInt64, at place: UInt64) throws(Qcow2Error) -> OverlayCluster {
        guard entry & OverlayEntry.compressedFlag == 0 else {
            throw .badEntry(table: "L2", offset: place, value: entry, reason: "compressed clusters are not supported")
        }
        let known = OverlayEntry.copiedFlag | OverlayEntry.offsetMask | OverlayEntry.zeroFlag
        guard entry & ~known == 0 else {
            throw .badEntry(table: "L2", offset: place, value: entry, reason: "reserved bits are set")
        }
        let offset = entry & OverlayEntry.offsetMask
        if offset != 0 { try check(offset, "L2", place, entry) }
        if entry & OverlayEntry.zeroFlag != 0 { return .zero }
        return offset == 0 ? .unallocated : .data(offset)
    }

    private func check(_ offset: UInt64, _ table: String, _ place: UInt64, _ entry: UInt64) throws(Qcow2Error) {
        let cluster = UInt64(header.clusterSize)
        guard offset % cluster == 0 else {
            throw .badEntry(table: table, offset: place, value: entry, reason: "it points between clusters")
        }
        guard offset >= cluster else {
            throw .badEntry(table: table, offset: place, value: entry, reason: "it points into the header")
        }
        guard offset <= fileLength, cluster <= fileLength - offset else {
            throw .badEntry(
                table: table, offset: place, value: entry, reason: "it points behind the file's \(fileLength) bytes")
        }
    }

    /// The runs that one L2 table maps, rising. `table` are its bytes (one cluster), `index` its place in the L1 table,
    /// `tableOffset` its place in the file.
    public func runs(
        table: UnsafeRawBufferPointer, index: Int, tableOffset: UInt64
    ) throws(Qcow2Error) -> [OverlayRun] {
        guard table.count >= header.clusterSize else {
            throw .truncated(what: "an L2 table", needed: header.clusterSize, available: table.count)
        }
        let cluster = UInt64(header.clusterSize)
        let first = UInt64(index) * entriesPerTable
        var runs: [OverlayRun] = []
        for position in 0..<entriesPerTable {
            let place = Int(position) * 8
            let entry = UInt64(bigEndian: table.loadUnaligned(fromByteOffset: place, as: UInt64.self))
            if entry == 0 { continue }
            let found = try self.cluster(entry: entry, at: tableOffset + UInt64(place))
            if found == .unallocated { continue }
            let guest = first + position
            guard guest < guestClusters else {
                throw .badEntry(
                    table: "L2", offset: tableOffset + UInt64(place), value: entry,
                    reason: "it maps a cluster behind the end of the disk")
            }
            let offset: UInt64? = if case .data(let offset) = found { offset } else { nil }
            if let last = runs.last, last.guestCluster + last.count == guest,
                last.fileOffset.map({ $0 + last.count * cluster }) == offset
            {
                runs[runs.count - 1].count += 1
            } else {
                runs.append(OverlayRun(guestCluster: guest, count: 1, fileOffset: offset))
            }
        }
        return runs
    }
}
