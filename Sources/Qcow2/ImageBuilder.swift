import Units

/// Plans a whole new image without a file below it, from the front to the back: qcow2 version 3, refcounts of 16 bits,
/// nothing but data clusters in rising order. It does no I/O.
///
/// ```
/// | header (last) | L1 (last) | L2, its data, L2, its data ... | refcount blocks | refcount table |
/// ```
/// Ask for a place with ``place(cluster:)`` for each cluster that has data, write what it gives, and at the end write
/// what ``finish()`` gives until it gives nothing. The header comes last, so that an image that was never finished is no
/// image. Memory: the L1 table and one L2 table.
public struct ImageBuilder: Sendable {
    /// Size of the disk in bytes.
    public let virtualSize: UInt64
    public let clusterBits: Int
    private let entriesPerTable: UInt64
    private let l1Clusters: UInt64
    private var l1: [UInt64]
    /// The L2 table that is being filled: its index and its entries.
    private var table: (index: Int, entries: [UInt64])?
    /// First cluster of the file that is free.
    private var next: UInt64
    private var ending: Ending?

    private struct Ending {
        /// First cluster of the refcount blocks, how many there are, and how many are planned.
        let blocks: UInt64
        let blockCount: UInt64
        var planned: UInt64 = 0
        let tableClusters: UInt64
        var step = 0
        var total: UInt64 { blocks + blockCount + tableClusters }
    }

    public var clusterSize: UInt64 { 1 << UInt64(clusterBits) }

    /// `virtualSize`: a multiple of 512. Throws when QEMU would not open such an image.
    public init(virtualSize: UInt64, clusterBits: Int = 16) throws(ImageError) {
        precondition((9...21).contains(clusterBits) && virtualSize % 512 == 0)
        let entries = UInt64(1) << UInt64(clusterBits - 3)
        let clusters = virtualSize == 0 ? 0 : (virtualSize - 1) >> UInt64(clusterBits) + 1
        let tables = (clusters + entries - 1) / entries
        guard tables <= ImageHeader.maximumL1Bytes / 8 else {
            throw .unsupported(
                feature: "a disk of \(virtualSize) bytes", offset: 24, remedy: "Use larger clusters, or raw.")
        }
        self.virtualSize = virtualSize
        self.clusterBits = clusterBits
        entriesPerTable = entries
        l1 = Array(repeating: 0, count: Int(max(tables, 1)))
        l1Clusters = (UInt64(l1.count) + entries - 1) / entries
        next = 1 + l1Clusters
    }

    /// The place for a cluster of the disk; clusters come in rising order. First write what `writes` holds.
    public mutating func place(cluster: UInt64) -> (offset: UInt64, writes: [FileWrite]) {
        let index = Int(cluster / entriesPerTable)
        var writes: [FileWrite] = []
        if table?.index != index {
            precondition((table?.index ?? -1) < index, "clusters come in rising order")
            writes = finishTable()
            l1[index] = next << UInt64(clusterBits) | ImageEntry.copiedFlag
            table = (index, Array(repeating: 0, count: Int(entriesPerTable)))
            next += 1
        }
        let offset = next << UInt64(clusterBits)
        table?.entries[Int(cluster % entriesPerTable)] = offset | ImageEntry.copiedFlag
        next += 1
        return (offset, writes)
    }

    private mutating func finishTable() -> [FileWrite] {
        guard let done = table else { return [] }
        table = nil
        let offset = l1[done.index] & ImageEntry.offsetMask
        return [FileWrite(offset: offset, bytes: Self.bytes(done.entries))]
    }

    private static func bytes(_ words: [UInt64]) -> [UInt8] {
        var writer = ByteWriter(reservingCapacity: words.count * 8)
        for word in words { writer.write(word) }
        return writer.bytes
    }

    /// The next write that completes the image; nil when it is complete. The writes before are to be durable before the
    /// last, which is at offset 0.
    public mutating func finish() -> FileWrite? {
        if let write = finishTable().first { return write }
        var ending = self.ending ?? planEnding()
        defer { self.ending = ending }
        if ending.planned < ending.blockCount {
            defer { ending.planned += 1 }
            return refcountBlock(ending.planned, total: ending.total, at: ending.blocks + ending.planned)
        }
        ending.step += 1
        switch ending.step {
        case 1:
            let table = (0..<ending.blockCount).map { (ending.blocks + $0) << UInt64(clusterBits) }
            let offset = (ending.blocks + ending.blockCount) << UInt64(clusterBits)
            let room = Int(ending.tableClusters * entriesPerTable) - table.count
            return FileWrite(offset: offset, bytes: Self.bytes(table + Array(repeating: 0, count: room)))
        case 2: return FileWrite(offset: clusterSize, bytes: Self.bytes(l1))
        case 3: return FileWrite(offset: 0, bytes: header(ending))
        default: return nil
        }
    }

    /// Clusters for the refcounts count themselves, too.
    private func planEnding() -> Ending {
        let perBlock = UInt64(1) << UInt64(clusterBits - 1)
        var blocks: UInt64 = 1
        var table: UInt64 = 1
        while true {
            let total = next + blocks + table
            let wanted = (total + perBlock - 1) / perBlock
            let wantedTable = (wanted + entriesPerTable - 1) / entriesPerTable
            if wanted <= blocks && wantedTable <= table { break }
            blocks = max(blocks, wanted)
            table = max(table, wantedTable)
        }
        return Ending(blocks: next, blockCount: blocks, tableClusters: table)
    }

    private func refcountBlock(_ index: UInt64, total: UInt64, at cluster: UInt64) -> FileWrite {
        let perBlock = UInt64(1) << UInt64(clusterBits - 1)
        let first = index * perBlock
        let used = Int(min(perBlock, total > first ? total - first : 0))
        var bytes = [UInt8](repeating: 0, count: Int(clusterSize))
        for position in 0..<used { bytes[position * 2 + 1] = 1 }
        return FileWrite(offset: cluster << UInt64(clusterBits), bytes: bytes)
    }

    private func header(_ ending: Ending) -> [UInt8] {
        var writer = ByteWriter(reservingCapacity: 512)
        writer.write(UInt32(0x5146_49FB))
        writer.write(UInt32(3))
        writer.writeZeroes(12)  // no backing file
        writer.write(UInt32(clusterBits))
        writer.write(virtualSize)
        writer.write(UInt32(0))  // no encryption
        writer.write(UInt32(l1.count))
        writer.write(clusterSize)
        writer.write((ending.blocks + ending.blockCount) << UInt64(clusterBits))
        writer.write(UInt32(ending.tableClusters))
        writer.writeZeroes(12)  // no snapshots
        writer.writeZeroes(24)  // no feature of any kind
        writer.write(UInt32(4))  // refcounts of 16 bits
        writer.write(UInt32(104))
        writer.writeZeroes(512 - writer.count)
        return writer.bytes
    }
}
