import Units

extension ImageReader {
    /// What is wrong with an L2 entry.
    struct EntryFault {
        let text: String
        /// The fault is in the subclusters' bits.
        var isBitmap = false
    }

    /// Why a cluster (or table) cannot lie at a place; nil when it can. `whole`: all of it must be in the file.
    func fault(_ offset: UInt64, _ length: UInt64, whole: Bool) -> String? {
        guard offset % header.clusterSize == 0 else { return "it points between clusters" }
        guard offset >= header.clusterSize else { return "it points into the header" }
        guard offset < fileLength, !whole || length <= fileLength - offset else {
            return "it points behind the file's \(fileLength) bytes"
        }
        if offset < header.l1.end, header.l1.offset < offset + length { return "it points into the L1 table" }
        if offset < header.refcountTable.end, header.refcountTable.offset < offset + length {
            return "it points into the refcount table"
        }
        return nil
    }

    /// Why an L2 entry cannot be right; nil when it can. `table` is the place of its own table.
    func fault(_ entry: ImageEntry, table: UInt64) -> EntryFault? {
        if entry.isCompressed { return compressedFault(entry) }
        if entry.word == 0 && entry.bitmap == 0 { return nil }
        var known = ImageEntry.copiedFlag | ImageEntry.offsetMask
        if header.version >= 3 && !header.hasExtendedL2 { known |= ImageEntry.zeroFlag }
        guard entry.word & ~known == 0 else { return EntryFault(text: "reserved bits are set") }
        let offset = entry.offset
        if offset != 0 {
            if let text = fault(offset, header.clusterSize, whole: false) { return EntryFault(text: text) }
            if offset == table { return EntryFault(text: "it points to its own table") }
        }
        guard header.hasExtendedL2 else { return nil }
        let allocated = UInt32(truncatingIfNeeded: entry.bitmap)
        let zero = UInt32(truncatingIfNeeded: entry.bitmap >> 32)
        if allocated & zero != 0 { return EntryFault(text: "subclusters are both data and zero", isBitmap: true) }
        if offset == 0 && allocated != 0 {
            return EntryFault(text: "subclusters have data, but the cluster has no place", isBitmap: true)
        }
        return nil
    }

    private func compressedFault(_ entry: ImageEntry) -> EntryFault? {
        if entry.isCopied { return EntryFault(text: "a compressed cluster is marked as copied") }
        if entry.bitmap != 0 { return EntryFault(text: "a compressed cluster has subclusters", isBitmap: true) }
        let range = entry.compressedRange(clusterBits: header.clusterBits)
        guard range.offset >= header.clusterSize else { return EntryFault(text: "it points into the header") }
        guard range.offset < fileLength else {
            return EntryFault(text: "it points behind the file's \(fileLength) bytes")
        }
        let places = [(header.l1, "L1"), (header.refcountTable, "refcount")]
        for (place, name) in places where range.offset < place.end && range.offset >= place.offset {
            return EntryFault(text: "it points into the \(name) table")
        }
        return nil
    }
}
