import Units

/// Where one batch of pre-images goes, and the metadata that makes them part of the image. Kept from batch to batch, so
/// that its memory is not taken anew.
///
/// Crash order: the data at ``dataOffset`` and ``refcountWrites``, in order, are durable before the first of
/// ``mappingWrites`` is written, in order. Whatever a crash leaves, QEMU opens the image with the right contents, and
/// leaked clusters are its only flaw.
public struct OverlayGrowth: Equatable, Sendable {
    /// Place of the first unit of data in the file, a multiple of 4096; the others follow it without a gap. Meaningless
    /// without data.
    public internal(set) var dataOffset: UInt64 = 0
    /// Length that the file must have before anything of this is written, in bytes.
    public internal(set) var fileLength: UInt64 = 0
    public internal(set) var refcountWrites = FileWrites()
    public internal(set) var mappingWrites = FileWrites()

    public init() {}
}

/// Plans the growth of an overlay that only ever gains contents: qcow2 version 3, refcounts of 16 bits, everything
/// allocated from the front to the back, nothing ever freed or moved.
///
/// It maps units of 4 KiB, whatever the cluster size below that, so that a block's pre-image costs a block; where
/// clusters are larger than 4 KiB a unit is a cluster. Within the file a unit lies in one piece. It does no I/O.
public struct OverlayWriter: Sendable {
    /// The largest disk in bytes: 128 TiB.
    public static let largestDisk = OverlayGeometry.largestDisk(clusterBits: 14)

    /// log2 of the cluster size for a disk of this size in bytes, 9 to 14. Small clusters have small tables, of which a
    /// sparse epoch needs many; but they need a large L1 table, which QEMU reads as a whole.
    public static func clusterBits(forDiskOf size: UInt64) -> Int {
        for bits in 9..<12 where size <= OverlayGeometry.largestDisk(clusterBits: bits) / 4 { return bits }
        for bits in 12..<14 where size <= OverlayGeometry.largestDisk(clusterBits: bits) { return bits }
        return 14
    }

    private let geometry: OverlayGeometry
    /// The image's header as it should be in the file.
    public private(set) var header: Qcow2Header
    private var map: OverlayMap
    /// First byte of the file that is not in use.
    private var nextByte: UInt64
    /// Refcount blocks that exist.
    private var refcountBlocks: UInt64
    /// Place of the last refcount block, the only one that may still change.
    private var lastRefcountBlock: UInt64
    /// Units that are mapped.
    public private(set) var mappedUnits: UInt64 = 0

    /// - Parameters:
    ///   - virtualSize: size of the disk in bytes, a multiple of 512.
    ///   - backingFile: the file below, relative to the overlay's directory; at most 256 bytes.
    ///   - clusterBits: log2 of the cluster size, 9 to 16; nil chooses what fits the disk.
    public init(
        virtualSize: UInt64, backingFile: String, backingFormat: BackingFormat, clusterBits: Int? = nil
    ) throws(Qcow2Error) {
        let bits = clusterBits ?? Self.clusterBits(forDiskOf: virtualSize)
        precondition((9...16).contains(bits))
        geometry = try OverlayGeometry(virtualSize: virtualSize, clusterBits: bits)
        header = geometry.header(backingFile: backingFile, backingFormat: backingFormat)
        _ = try header.encoded()
        map = OverlayMap(units: geometry.guestUnits, unitsPerTable: geometry.unitsPerTable)
        nextByte = geometry.fixedClusters * geometry.clusterSize
        refcountBlocks = UInt64(geometry.initialRefcountBlocks)
        lastRefcountBlock = (geometry.refcountBlocksStart + refcountBlocks - 1) * geometry.clusterSize
    }

    /// What makes an empty file of ``fileLength`` bytes the empty overlay.
    public func initialWrites() throws(Qcow2Error) -> [FileWrite] {
        precondition(mappedUnits == 0, "initial writes are for an empty overlay")
        return try geometry.initialWrites(
            backingFile: header.backingFile, backingFormat: header.backingFormat ?? .raw)
    }

    /// Length of the file in bytes, as far as it is in use.
    public var fileLength: UInt64 { nextByte }

    /// Bytes of the disk that are mapped together: 4096, more on disks of more than 8 TiB.
    public var unit: Int { geometry.unit }

    /// Whether the overlay has contents of its own for this unit of the disk.
    @inline(__always)
    public func contains(_ unit: UInt64) -> Bool { map.contains(unit) }

    /// Names another file below; returns the one write that does it, which lies within one sector for names of at most
    /// 256 bytes.
    public mutating func setBackingFile(_ name: String, format: BackingFormat) throws(Qcow2Error) -> FileWrite {
        var changed = header
        changed.backingFile = name
        changed.backingFormat = format
        let bytes = try changed.encoded()
        header = changed
        return FileWrite(offset: 0, bytes: bytes)
    }

    /// Maps more units, and says in `growth` what must be written for it. Both lists rise, share nothing, and hold no
    /// unit that is mapped already; anything else traps. Throws, with nothing changed, when the file would outgrow its
    /// refcount table. When a write fails, the file and this value disagree: throw both away.
    public mutating func extend(
        data: [UInt64], zeroes: [UInt64], _ growth: inout OverlayGrowth
    ) throws(Qcow2Error) {
        let cluster = geometry.clusterSize
        let page = UInt64(Sizes.page)
        let dataStart = data.isEmpty ? nextByte : (nextByte + page - 1) / page * page
        let tablesStart = dataStart + UInt64(data.count * geometry.unit)
        let newTables = countNewTables(data, zeroes)
        let used = tablesStart / cluster + newTables
        // Refcount blocks go behind the rest and count themselves too.
        let perBlock = UInt64(geometry.clustersPerRefcountBlock)
        var blocks = refcountBlocks
        while blocks * perBlock < used + (blocks - refcountBlocks) { blocks += 1 }
        let end = used + (blocks - refcountBlocks)
        guard end <= geometry.fileClusterLimit else {
            throw .imageFull(clusters: end, limit: geometry.fileClusterLimit)
        }
        growth.dataOffset = dataStart
        growth.fileLength = end * cluster
        growth.refcountWrites.removeAll()
        growth.mappingWrites.removeAll()
        // What the last unit of an odd-sized disk does not have stays free.
        let hasLast = data.last == geometry.guestUnits - 1
        let beyond = hasLast ? geometry.guestUnits * UInt64(geometry.clustersPerUnit) - geometry.guestClusters : 0
        countClusters(
            dataStart / cluster..<end, but: (tablesStart / cluster - beyond)..<tablesStart / cluster,
            newBlocksAt: used, count: blocks - refcountBlocks, &growth.refcountWrites)
        mapUnits(data, zeroes, dataStart: dataStart, tablesStart: tablesStart, newTables, &growth.mappingWrites)
        mappedUnits += UInt64(data.count + zeroes.count)
        if blocks > refcountBlocks { lastRefcountBlock = (end - 1) * cluster }
        refcountBlocks = blocks
        nextByte = end * cluster
    }

    // MARK: Parts

    private func countNewTables(_ data: [UInt64], _ zeroes: [UInt64]) -> UInt64 {
        var count: UInt64 = 0
        var last = UInt64.max
        MergedUnits(data, zeroes).forEach { unit, _ in
            precondition(unit < geometry.guestUnits, "a unit behind the end of the disk")
            let table = map.table(of: unit)
            if table != last, map.tableOffset(table) == 0 { count += 1 }
            last = table
        }
        return count
    }

    /// First the blocks' contents, then the table entries that make new blocks count. New blocks lie side by side and
    /// count clusters that do, so that all their counts are one write.
    private func countClusters(
        _ clusters: Range<UInt64>, but unused: Range<UInt64>, newBlocksAt first: UInt64, count: UInt64,
        _ writes: inout FileWrites
    ) {
        let perBlock = UInt64(geometry.clustersPerRefcountBlock)
        let boundary = max(clusters.lowerBound, min(refcountBlocks * perBlock, clusters.upperBound))
        func fill(_ part: Range<UInt64>, at place: UInt64) {
            guard !part.isEmpty else { return }
            let start = writes.appendZeroes(at: place, count: part.count * 2)
            for (index, cluster) in part.enumerated() where !unused.contains(cluster) {
                writes.store(bigEndian: UInt16(1), at: start + index * 2)
            }
        }
        fill(clusters.lowerBound..<boundary, at: lastRefcountBlock + clusters.lowerBound % perBlock * 2)
        guard count > 0 else { return }
        let within = boundary - refcountBlocks * perBlock
        fill(boundary..<clusters.upperBound, at: first * geometry.clusterSize + within * 2)
        for index in 0..<count {
            writes.append(
                at: geometry.refcountTableOffset + (refcountBlocks + index) * 8,
                bigEndian: (first + index) * geometry.clusterSize)
        }
    }

    /// First the L2 entries, then the L1 entries that make new tables count.
    private mutating func mapUnits(
        _ data: [UInt64], _ zeroes: [UInt64], dataStart: UInt64, tablesStart: UInt64, _ newTables: UInt64,
        _ writes: inout FileWrites
    ) {
        let cluster = geometry.clusterSize
        let perUnit = geometry.clustersPerUnit
        let entryBytes = perUnit * 8
        // New tables are written as a whole, all in one.
        let fresh =
            newTables > 0 ? writes.appendZeroes(at: tablesStart, count: Int(newTables * cluster)) : 0
        var nextTable = tablesStart
        var nextData = dataStart
        MergedUnits(data, zeroes).forEach { unit, isZero in
            let table = map.table(of: unit)
            if map.tableOffset(table) == 0 {
                map.setTable(table, offset: nextTable)
                nextTable += cluster
            }
            let place = map.tableOffset(table)
            let within = Int(unit % UInt64(geometry.unitsPerTable)) * entryBytes
            let start =
                place >= tablesStart
                ? fresh + Int(place - tablesStart) + within
                : writes.appendZeroes(at: place + UInt64(within), count: entryBytes)
            let existing = min(UInt64(perUnit), geometry.guestClusters - unit * UInt64(perUnit))
            for index in 0..<existing {
                let value =
                    isZero ? OverlayEntry.zeroFlag : (nextData + index * cluster) | OverlayEntry.copiedFlag
                writes.store(bigEndian: value, at: start + Int(index) * 8)
            }
            if !isZero { nextData += UInt64(geometry.unit) }
            precondition(map.insert(unit), "a unit that is mapped already")
        }
        linkTables(data, zeroes, from: tablesStart, &writes)
    }

    /// L1 entries of new tables; short gaps between them are written as they are, which saves many small writes.
    private func linkTables(_ data: [UInt64], _ zeroes: [UInt64], from start: UInt64, _ writes: inout FileWrites) {
        var next = UInt64.max
        MergedUnits(data, zeroes).forEach { unit, _ in
            let table = map.table(of: unit)
            guard map.tableOffset(table) >= start, next == UInt64.max || table >= next else { return }
            let first = next != UInt64.max && table - next <= 64 ? next : table
            for entry in first...table {
                let offset = map.tableOffset(entry)
                writes.append(
                    at: geometry.l1Offset + entry * 8,
                    bigEndian: offset == 0 ? offset : offset | OverlayEntry.copiedFlag)
            }
            next = table + 1
        }
    }
}

/// Two rising lists of units walked as one.
private struct MergedUnits {
    let data: [UInt64]
    let zeroes: [UInt64]

    init(_ data: [UInt64], _ zeroes: [UInt64]) {
        self.data = data
        self.zeroes = zeroes
    }

    @inline(__always)
    func forEach(_ body: (_ unit: UInt64, _ isZero: Bool) -> Void) {
        var dataIndex = 0
        var zeroIndex = 0
        var lowest: UInt64 = 0
        while dataIndex < data.count || zeroIndex < zeroes.count {
            let isZero = dataIndex == data.count || (zeroIndex < zeroes.count && zeroes[zeroIndex] < data[dataIndex])
            let unit = isZero ? zeroes[zeroIndex] : data[dataIndex]
            if isZero { zeroIndex += 1 } else { dataIndex += 1 }
            precondition(unit >= lowest, "units must rise")
            lowest = unit + 1
            body(unit, isZero)
        }
    }
}
