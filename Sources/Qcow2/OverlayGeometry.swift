import Units

/// Where the fixed parts of a fresh overlay lie, in clusters from the start of its file.
///
/// ```
/// 0          1                 1+T               1+T+R          1+T+R+L
/// +----------+-----------------+-----------------+--------------+----------------------
/// | header   | refcount table  | refcount blocks | L1 table     | L2, refcounts, data
/// +----------+-----------------+-----------------+--------------+----------------------
/// ```
/// The refcount table has room for a file in which every cluster of the disk is allocated, as far as QEMU opens such a
/// table, so that it never has to move.
struct OverlayGeometry: Equatable, Sendable {
    let virtualSize: UInt64
    let clusterBits: Int
    /// Clusters of the guest's disk; the last may be partial.
    let guestClusters: UInt64
    let l1Entries: Int
    let refcountTableClusters: Int
    /// Refcount blocks for the fixed parts.
    let initialRefcountBlocks: Int
    let l1Clusters: Int

    var clusterSize: UInt64 { 1 << UInt64(clusterBits) }
    /// Entries in an L2 table or in a cluster of the refcount table.
    var entriesPerCluster: Int { 1 << (clusterBits - 3) }
    /// Clusters that one refcount block counts.
    var clustersPerRefcountBlock: Int { 1 << (clusterBits - 1) }
    var refcountTableOffset: UInt64 { clusterSize }
    var refcountBlocksStart: UInt64 { 1 + UInt64(refcountTableClusters) }
    var l1Offset: UInt64 { (refcountBlocksStart + UInt64(initialRefcountBlocks)) * clusterSize }
    /// Clusters that the fixed parts fill.
    var fixedClusters: UInt64 { refcountBlocksStart + UInt64(initialRefcountBlocks + l1Clusters) }
    /// Clusters that the refcount table can count.
    var fileClusterLimit: UInt64 {
        UInt64(refcountTableClusters) * UInt64(entriesPerCluster) * UInt64(clustersPerRefcountBlock)
    }

    /// Bytes that a hidden disk maps together: 4 KiB, or a cluster where clusters are larger.
    var unit: Int { max(Int(clusterSize), Sizes.page) }
    var clustersPerUnit: Int { unit >> clusterBits }
    var unitsPerTable: Int { entriesPerCluster / clustersPerUnit }
    /// Units of the guest's disk; the last may be partial.
    var guestUnits: UInt64 { (virtualSize - 1) / UInt64(unit) + 1 }

    /// The largest disk that an overlay of this cluster size describes, in bytes: QEMU opens L1 tables of 32 MiB.
    static func largestDisk(clusterBits: Int) -> UInt64 {
        UInt64(Qcow2Header.maximumL1Bytes / 8) << UInt64(2 * clusterBits - 3)
    }

    init(virtualSize: UInt64, clusterBits: Int) throws(Qcow2Error) {
        precondition((9...21).contains(clusterBits))
        guard virtualSize > 0, virtualSize % UInt64(Sizes.sector) == 0 else { throw .badDiskSize(virtualSize) }
        let limit = Self.largestDisk(clusterBits: clusterBits)
        guard virtualSize <= limit else { throw .diskTooLarge(size: virtualSize, limit: limit) }

        let bits = UInt64(clusterBits)
        let perTable = UInt64(1) << (bits - 3)
        let perRefcountBlock = UInt64(1) << (bits - 1)
        let clusters = (virtualSize - 1) >> bits + 1
        let tables = (clusters - 1) / perTable + 1
        let l1Clusters = (tables - 1) / perTable + 1
        // One cluster in `perRefcountBlock` is a refcount block; the division below is rounded up generously.
        // Clusters of less than 4 KiB may leave gaps between batches, of less than 4 KiB each.
        let withoutRefcounts = 1 + (bits < 12 ? 2 * clusters : clusters) + tables + l1Clusters
        let blocks = withoutRefcounts / (perRefcountBlock - 1) + 2
        let wantedTable = blocks / perTable + 1
        let largestTable = UInt64(Qcow2Header.maximumRefcountTableBytes) >> bits
        let tableClusters = min(wantedTable, largestTable)
        let fixedWithoutBlocks = 1 + tableClusters + l1Clusters

        self.virtualSize = virtualSize
        self.clusterBits = clusterBits
        self.guestClusters = clusters
        self.l1Entries = Int(tables)
        self.l1Clusters = Int(l1Clusters)
        self.refcountTableClusters = Int(tableClusters)
        self.initialRefcountBlocks = Int((fixedWithoutBlocks - 1) / (perRefcountBlock - 1) + 1)
    }

    func header(backingFile: String, backingFormat: BackingFormat) -> Qcow2Header {
        Qcow2Header(
            virtualSize: virtualSize, clusterBits: clusterBits, l1Entries: l1Entries, l1Offset: l1Offset,
            refcountTableOffset: refcountTableOffset, refcountTableClusters: refcountTableClusters,
            backingFile: backingFile, backingFormat: backingFormat)
    }

    /// The bytes of a fresh overlay; all that is not named is zero.
    func initialWrites(backingFile: String, backingFormat: BackingFormat) throws(Qcow2Error) -> [FileWrite] {
        var list = FileWrites()
        for block in 0..<initialRefcountBlocks {
            let place = refcountTableOffset + UInt64(block) * 8
            list.append(at: place, bigEndian: (refcountBlocksStart + UInt64(block)) * clusterSize)
        }
        for cluster in 0..<fixedClusters {
            list.append(at: refcountBlocksStart * clusterSize + cluster * 2, bigEndian: UInt16(1))
        }
        let header = try header(backingFile: backingFile, backingFormat: backingFormat).encoded()
        return [FileWrite(offset: 0, bytes: header)] + list.separate
    }
}

/// A fresh overlay that QEMU will write to: the disk of a guest that runs on the secondary.
public struct EmptyOverlay: Equatable, Sendable {
    /// What to write; everything else is a hole.
    public let writes: [FileWrite]
    /// Length of the file in bytes.
    public let fileLength: UInt64

    /// - Parameters:
    ///   - virtualSize: size of the disk in bytes, a multiple of 512.
    ///   - backingFile: the file below, relative to this file's directory or absolute.
    ///   - clusterBits: log2 of the cluster size, 12 to 21; 16 is what QEMU itself chooses.
    public init(
        virtualSize: UInt64, backingFile: String, backingFormat: BackingFormat, clusterBits: Int = 16
    ) throws(Qcow2Error) {
        let geometry = try OverlayGeometry(virtualSize: virtualSize, clusterBits: clusterBits)
        writes = try geometry.initialWrites(backingFile: backingFile, backingFormat: backingFormat)
        fileLength = geometry.fixedClusters * geometry.clusterSize
    }
}
