import Units

/// Where the clusters of one batch go, and the metadata that makes them part of the image.
///
/// Crash order: the clusters' data at ``dataOffset`` and ``refcountWrites``, in order, are durable before the first of
/// ``mappingWrites`` is written, in order. Whatever a crash leaves, QEMU opens the image with the right contents, and
/// leaked clusters are its only flaw.
public struct OverlayAllocation: Equatable, Sendable {
    /// Guest clusters with data, rising.
    public let dataClusters: [UInt64]
    /// Guest clusters that are all zero, rising; they take no space.
    public let zeroClusters: [UInt64]
    /// Place of the first data cluster in the file; the others follow it without a gap. Meaningless without data.
    public let dataOffset: UInt64
    /// Length that the file must have before anything of this is written, in bytes.
    public let fileLength: UInt64
    public let refcountWrites: [FileWrite]
    public let mappingWrites: [FileWrite]
    /// New L2 tables: index in the L1 table, place in the file.
    let newTables: [(index: Int, offset: UInt64)]

    public static func == (lhs: OverlayAllocation, rhs: OverlayAllocation) -> Bool {
        lhs.dataClusters == rhs.dataClusters && lhs.zeroClusters == rhs.zeroClusters
            && lhs.dataOffset == rhs.dataOffset && lhs.fileLength == rhs.fileLength
            && lhs.refcountWrites == rhs.refcountWrites && lhs.mappingWrites == rhs.mappingWrites
    }
}

/// Plans the growth of an overlay that only ever gains clusters: qcow2 version 3, clusters of 4 KiB, refcounts of
/// 16 bits, everything allocated from the front to the back, nothing ever freed or moved.
///
/// It does no I/O. ``plan(data:zeroes:)`` changes nothing; ``apply(_:)`` is called when all of the plan has been
/// written. When a write failed, the file and this value may disagree: throw both away.
public struct OverlayWriter: Sendable {
    /// log2 of the cluster size.
    public static let clusterBits = 12
    /// The largest disk in bytes: 8 TiB.
    public static let largestDisk = OverlayGeometry.largestDisk(clusterBits: clusterBits)

    private let geometry: OverlayGeometry
    /// The image's header as it should be in the file.
    public private(set) var header: Qcow2Header
    /// The next free cluster of the file.
    private var nextCluster: UInt64
    /// Refcount blocks that exist.
    private var refcountBlocks: Int
    /// Places of the refcount blocks that may still change: the last one.
    private var lastRefcountBlockOffset: UInt64
    /// L1 index to position in the two arrays below.
    private var tables: [Int: Int] = [:]
    private var tableOffsets: [UInt64] = []
    /// Eight words of 64 bits for each L2 table: which of its 512 clusters are mapped.
    private var tableBits: [UInt64] = []
    /// Guest clusters that are mapped.
    public private(set) var mappedClusters: UInt64 = 0

    /// - Parameters:
    ///   - virtualSize: size of the disk in bytes, a multiple of 512.
    ///   - backingFile: the file below, relative to the overlay's directory.
    public init(virtualSize: UInt64, backingFile: String, backingFormat: BackingFormat) throws(Qcow2Error) {
        geometry = try OverlayGeometry(virtualSize: virtualSize, clusterBits: Self.clusterBits)
        header = geometry.header(backingFile: backingFile, backingFormat: backingFormat)
        _ = try header.encoded()
        nextCluster = geometry.fixedClusters
        refcountBlocks = geometry.initialRefcountBlocks
        lastRefcountBlockOffset =
            (geometry.refcountBlocksStart + UInt64(geometry.initialRefcountBlocks - 1)) * geometry.clusterSize
    }

    /// What makes an empty file of ``fileLength`` bytes the empty overlay.
    public func initialWrites() throws(Qcow2Error) -> [FileWrite] {
        precondition(nextCluster == geometry.fixedClusters, "initial writes are for an empty overlay")
        return try geometry.initialWrites(
            backingFile: header.backingFile, backingFormat: header.backingFormat ?? .raw)
    }

    /// Length of the file in bytes, as far as it is in use.
    public var fileLength: UInt64 { nextCluster * geometry.clusterSize }

    /// Whether the overlay has contents of its own for this cluster of the disk.
    public func contains(guestCluster: UInt64) -> Bool {
        guard let slot = tables[Int(guestCluster >> 9)] else { return false }
        let bit = Int(guestCluster & 511)
        return tableBits[slot * 8 + bit >> 6] & 1 << UInt64(bit & 63) != 0
    }

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

    /// Plans to map more clusters. Both lists rise, share nothing, and hold no cluster that is mapped already; anything
    /// else traps. Throws when the file would outgrow its refcount table.
    public func plan(data: [UInt64], zeroes: [UInt64]) throws(Qcow2Error) -> OverlayAllocation {
        let newTables = placeTables(data, zeroes)
        let dataStart = nextCluster + UInt64(newTables.count)
        let dataEnd = dataStart + UInt64(data.count)
        // Refcount blocks go behind the data and count themselves too.
        let perBlock = UInt64(geometry.clustersPerRefcountBlock)
        var blocks = UInt64(refcountBlocks)
        while blocks * perBlock < dataEnd + (blocks - UInt64(refcountBlocks)) { blocks += 1 }
        let end = dataEnd + (blocks - UInt64(refcountBlocks))
        guard end <= geometry.fileClusterLimit else {
            throw .imageFull(clusters: end, limit: geometry.fileClusterLimit)
        }
        return OverlayAllocation(
            dataClusters: data, zeroClusters: zeroes, dataOffset: dataStart * geometry.clusterSize,
            fileLength: end * geometry.clusterSize,
            refcountWrites: refcountWrites(from: nextCluster, to: end, newBlocksAt: dataEnd),
            mappingWrites: mappingWrites(data, zeroes, newTables, dataStart), newTables: newTables)
    }

    /// Takes over a plan that has been written.
    public mutating func apply(_ allocation: OverlayAllocation) {
        for table in allocation.newTables {
            tables[table.index] = tableOffsets.count
            tableOffsets.append(table.offset)
            tableBits.append(contentsOf: repeatElement(0, count: 8))
        }
        for cluster in allocation.dataClusters { insert(cluster) }
        for cluster in allocation.zeroClusters { insert(cluster) }
        mappedClusters += UInt64(allocation.dataClusters.count + allocation.zeroClusters.count)
        let end = allocation.fileLength / geometry.clusterSize
        let perBlock = geometry.clustersPerRefcountBlock
        let dataEnd = allocation.dataOffset / geometry.clusterSize + UInt64(allocation.dataClusters.count)
        refcountBlocks += Int(end - dataEnd)
        if end > dataEnd { lastRefcountBlockOffset = (end - 1) * geometry.clusterSize }
        precondition(UInt64(refcountBlocks * perBlock) >= end)
        nextCluster = end
    }

    private mutating func insert(_ cluster: UInt64) {
        let bit = Int(cluster & 511)
        guard let slot = tables[Int(cluster >> 9)] else { preconditionFailure("a cluster without its table") }
        tableBits[slot * 8 + bit >> 6] |= 1 << UInt64(bit & 63)
    }

    // MARK: Plans

    /// New L2 tables for both lists, at the front of the new space.
    private func placeTables(_ data: [UInt64], _ zeroes: [UInt64]) -> [(index: Int, offset: UInt64)] {
        var placed: [(index: Int, offset: UInt64)] = []
        MergedClusters(data, zeroes).forEach { cluster, _ in
            precondition(cluster < geometry.guestClusters, "a cluster behind the end of the disk")
            precondition(!contains(guestCluster: cluster), "a cluster that is mapped already")
            let index = Int(cluster >> 9)
            guard placed.last?.index != index, tables[index] == nil else { return }
            placed.append((index, (nextCluster + UInt64(placed.count)) * geometry.clusterSize))
        }
        return placed
    }

    /// First the blocks' contents, then the table entries that make new blocks count.
    private func refcountWrites(from start: UInt64, to end: UInt64, newBlocksAt first: UInt64) -> [FileWrite] {
        let perBlock = UInt64(geometry.clustersPerRefcountBlock)
        var contents = FileWriteList()
        for cluster in start..<end {
            let block = cluster / perBlock
            let base =
                block < UInt64(refcountBlocks)
                ? lastRefcountBlockOffset : (first + block - UInt64(refcountBlocks)) * geometry.clusterSize
            contents.append(at: base + cluster % perBlock * 2, bigEndian: UInt16(1))
        }
        var entries = FileWriteList()
        for cluster in first..<end {
            let block = UInt64(refcountBlocks) + cluster - first
            entries.append(at: geometry.refcountTableOffset + block * 8, bigEndian: cluster * geometry.clusterSize)
        }
        return contents.writes + entries.writes
    }

    /// First the L2 entries, then the L1 entries that make new tables count.
    private func mappingWrites(
        _ data: [UInt64], _ zeroes: [UInt64], _ newTables: [(index: Int, offset: UInt64)], _ dataStart: UInt64
    ) -> [FileWrite] {
        var entries = FileWriteList()
        var dataCluster = dataStart
        var nextNew = 0
        MergedClusters(data, zeroes).forEach { cluster, isZero in
            let index = Int(cluster >> 9)
            while nextNew < newTables.count, newTables[nextNew].index < index { nextNew += 1 }
            let base: UInt64
            if let slot = tables[index] {
                base = tableOffsets[slot]
            } else {
                base = newTables[nextNew].offset
            }
            let value = isZero ? OverlayEntry.zeroFlag : dataCluster * geometry.clusterSize | OverlayEntry.copiedFlag
            if !isZero { dataCluster += 1 }
            entries.append(at: base + (cluster & 511) * 8, bigEndian: value)
        }
        var links = FileWriteList()
        for table in newTables {
            links.append(
                at: geometry.l1Offset + UInt64(table.index) * 8, bigEndian: table.offset | OverlayEntry.copiedFlag)
        }
        return entries.writes + links.writes
    }
}

/// Two rising lists of clusters walked as one.
private struct MergedClusters {
    let data: [UInt64]
    let zeroes: [UInt64]

    init(_ data: [UInt64], _ zeroes: [UInt64]) {
        self.data = data
        self.zeroes = zeroes
    }

    func forEach(_ body: (_ cluster: UInt64, _ isZero: Bool) -> Void) {
        var dataIndex = 0
        var zeroIndex = 0
        var previous: UInt64? = nil
        while dataIndex < data.count || zeroIndex < zeroes.count {
            let isZero = dataIndex == data.count || (zeroIndex < zeroes.count && zeroes[zeroIndex] < data[dataIndex])
            let cluster = isZero ? zeroes[zeroIndex] : data[dataIndex]
            if isZero { zeroIndex += 1 } else { dataIndex += 1 }
            precondition(previous.map { $0 < cluster } ?? true, "clusters must rise")
            previous = cluster
            body(cluster, isZero)
        }
    }
}
