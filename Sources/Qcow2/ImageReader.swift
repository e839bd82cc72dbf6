import Units

/// Reads any qcow2 image, version 2 or 3, in which every entry is checked before it is believed. It does no I/O: it says
/// which bytes of a table it needs next, and takes them.
///
/// ```
/// begin(at:) ─► read L1 piece ─► resume ─► read L2 piece ─► resume ─► extent ─► the caller reads or unpacks it
/// ```
/// Pieces are so small and so few that a caller can keep them: a piece depends on ``ImageTablePiece/range`` alone.
public struct ImageReader: Sendable {
    /// The most bytes of a table that are asked for at a time.
    public static let pieceBytes = 4096

    public let header: ImageHeader
    /// Length of the file in bytes.
    public let fileLength: UInt64

    /// `bytes`: as many of the file's first as ``ImageHeader/bytesNeeded(start:fileLength:)`` says.
    public init(headerBytes bytes: UnsafeRawBufferPointer, fileLength: UInt64) throws(ImageError) {
        header = try ImageHeader(parsing: bytes, fileLength: fileLength)
        self.fileLength = fileLength
    }

    /// Begins to look up what the image holds at a byte of the disk; what is found never goes beyond `end`. Traps when
    /// `offset` lies behind it or behind the disk's end.
    public func begin(at offset: UInt64, upTo end: UInt64 = .max) -> ImageTablePiece {
        precondition(offset < header.virtualSize && offset < end)
        let entriesPerPiece = UInt64(Self.pieceBytes / 8)
        let first = (offset >> header.tableShift) / entriesPerPiece * entriesPerPiece
        let count = min(entriesPerPiece, UInt64(header.l1.count) - first)
        let range = ByteRange(offset: header.l1.offset + first * 8, length: count * 8)
        return ImageTablePiece(
            level: .l1, range: range, firstEntry: first, guestOffset: offset, guestEnd: min(end, header.virtualSize))
    }

    /// Goes on with the bytes of a piece. Traps when there are fewer than the piece's range has.
    public func resume(_ piece: ImageTablePiece, bytes: UnsafeRawBufferPointer) throws(ImageError) -> ImagePlan {
        precondition(UInt64(bytes.count) >= piece.range.length)
        switch piece.level {
        case .l1: return try resumeL1(piece, bytes)
        case .l2(let table): return .found(try resumeL2(piece, bytes, table))
        }
    }

    // MARK: L1

    private func resumeL1(_ piece: ImageTablePiece, _ bytes: UnsafeRawBufferPointer) throws(ImageError) -> ImagePlan {
        let index = piece.guestOffset >> header.tableShift
        let last = piece.firstEntry + piece.range.length / 8
        func entry(_ index: UInt64) -> UInt64 {
            UInt64(
                bigEndian: bytes.loadUnaligned(
                    fromByteOffset: Int(index - piece.firstEntry) * 8, as: UInt64.self))
        }
        if let table = try tableOffset(entry: entry(index), at: header.l1.offset + index * 8) {
            return .read(l2Piece(table, piece))
        }
        var next = index + 1
        while next < last, entry(next) == 0 { next += 1 }
        let end = min(next << header.tableShift, piece.guestEnd)
        return .found(
            ImageExtent(
                range: ByteRange(offset: piece.guestOffset, length: end - piece.guestOffset), content: .unallocated(nil)
            ))
    }

    /// The place of the L2 table that an L1 entry names; nil when there is none. `at` is the entry's own place.
    func tableOffset(entry: UInt64, at place: UInt64, in name: String = "L1") throws(ImageError) -> UInt64? {
        guard entry & ~(ImageEntry.copiedFlag | ImageEntry.offsetMask) == 0 else {
            throw .badEntry(table: name, offset: place, value: entry, reason: "reserved bits are set")
        }
        let offset = entry & ImageEntry.offsetMask
        guard offset != 0 else { return nil }
        if let reason = fault(offset, header.clusterSize, whole: true) {
            throw .badEntry(table: name, offset: place, value: entry, reason: reason)
        }
        return offset
    }

    // MARK: L2

    private func l2Piece(_ table: UInt64, _ l1: ImageTablePiece) -> ImageTablePiece {
        let length = min(UInt64(Self.pieceBytes), header.clusterSize)
        let entriesPerPiece = length / UInt64(header.entryBytes)
        let index = l1.guestOffset >> UInt64(header.clusterBits) & ((1 << UInt64(header.tableBits)) - 1)
        let first = index / entriesPerPiece * entriesPerPiece
        return ImageTablePiece(
            level: .l2(table: table),
            range: ByteRange(offset: table + first * UInt64(header.entryBytes), length: length), firstEntry: first,
            guestOffset: l1.guestOffset, guestEnd: l1.guestEnd)
    }

    private func resumeL2(
        _ piece: ImageTablePiece, _ bytes: UnsafeRawBufferPointer, _ table: UInt64
    ) throws(ImageError) -> ImageExtent {
        let cluster = header.clusterSize
        let entryBytes = UInt64(header.entryBytes)
        let index = piece.guestOffset >> UInt64(header.clusterBits) & ((1 << UInt64(header.tableBits)) - 1)
        let end = piece.firstEntry + piece.range.length / entryBytes
        var guest = piece.guestOffset / cluster * cluster
        var extent: ImageExtent?
        for position in index..<end where guest < piece.guestEnd {
            let place = Int((position - piece.firstEntry) * entryBytes)
            let entry = ImageEntry(bytes, at: place, extended: header.hasExtendedL2)
            // Only the entry that was asked for is judged; the run ends before one that is wrong.
            if let reason = fault(entry, table: table) {
                if extent != nil { break }
                throw .badEntry(
                    table: "L2", offset: piece.range.offset + UInt64(place),
                    value: reason.isBitmap ? entry.bitmap : entry.word, reason: reason.text)
            }
            guard grow(&extent, with: entry, guest: guest, piece) else { break }
            guest += cluster
        }
        guard let extent else { preconditionFailure("a lookup begins inside the disk") }
        return extent
    }

    /// Adds a cluster to the run, or as many of its subclusters as continue it; returns whether the run may go on.
    private func grow(
        _ extent: inout ImageExtent?, with entry: ImageEntry, guest: UInt64, _ piece: ImageTablePiece
    ) -> Bool {
        let start = piece.guestOffset
        let limit = min(guest + header.clusterSize, piece.guestEnd)
        if entry.isCompressed {
            guard extent == nil else { return false }
            let range = entry.compressedRange(clusterBits: header.clusterBits)
            let available = ByteRange(offset: range.offset, length: min(range.length, fileLength - range.offset))
            extent = ImageExtent(
                range: ByteRange(offset: start, length: limit - start), content: .compressed(available))
            return false
        }
        let size = header.subclusterSize
        var position = max(guest, start)
        while position < limit {
            let subcluster = (position - guest) / size
            let next = min(guest + (subcluster + 1) * size, limit)
            var content = entry.content(
                subcluster: subcluster, subclusterSize: size, extended: header.hasExtendedL2)
            content = content.advanced(by: position - (guest + subcluster * size))
            if let found = extent {
                guard found.content.advanced(by: found.range.length) == content else { return false }
                extent?.range = ByteRange(offset: found.range.offset, length: next - found.range.offset)
            } else {
                extent = ImageExtent(range: ByteRange(offset: position, length: next - position), content: content)
            }
            position = next
        }
        return true
    }
}

extension ImageExtent.Content {
    /// The same contents from a later byte on.
    @inline(__always)
    public func advanced(by count: UInt64) -> ImageExtent.Content {
        switch self {
        case .unallocated(let place): .unallocated(place.map { $0 + count })
        case .zero(let place): .zero(place.map { $0 + count })
        case .data(let place): .data(place + count)
        case .compressed: self
        }
    }
}
