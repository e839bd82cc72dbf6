import Units

/// What a check found.
public struct ImageCheckResult: Equatable, Sendable {
    /// Places that are wrong: data may be lost, or further writes would lose it.
    public internal(set) var corruptions = 0
    /// Clusters that are counted but not used.
    public internal(set) var leaks = 0
    /// The first of all findings, in words.
    public internal(set) var findings: [String] = []
    /// Clusters of the disk.
    public internal(set) var totalClusters: UInt64 = 0
    public internal(set) var allocatedClusters: UInt64 = 0
    public internal(set) var fragmentedClusters: UInt64 = 0
    public internal(set) var compressedClusters: UInt64 = 0
    /// First byte of the file behind its last cluster that is used or counted.
    public internal(set) var endOffset: UInt64 = 0

    static let findingsMax = 100
}

/// Checks an image's tables against its refcounts, as `qemu-img check` does. It does no I/O: read what ``next()`` says and
/// give it to ``take(_:)``, until nothing is needed any more; then ask for ``result``.
///
/// ```
/// refcount table ─► refcount blocks ─► active L1 ─► its L2 tables ─► snapshots, their L1 and L2 ─► bitmaps ─► compare
/// ```
/// Memory: 8 bytes for each cluster of the file that is used or counted, 2 GiB at most; jobs for one piece of each table.
public struct ImageCheck: Sendable {
    enum Job: Equatable, Sendable {
        case refcountTable(first: Int)
        case refcountBlock(index: UInt64, offset: UInt64)
        case header
        case l1(ImagePlace, first: Int, isActive: Bool)
        case l2(offset: UInt64, isActive: Bool)
        case snapshots
        case bitmaps
        case bitmapTable(offset: UInt64, entries: Int)
        case compare
    }

    static let entriesPerPiece = ImageReader.pieceBytes / 8

    let reader: ImageReader
    /// What is to be done, last first.
    var jobs: [Job]
    private(set) var current: Job?
    /// What the image says.
    var stored = ClusterCounts()
    /// What is really used.
    var counted = ClusterCounts()
    /// L2 tables of the L1 table that is being walked.
    var seenTables: Set<UInt64> = []
    private var snapshots: ImageSnapshotReader
    public internal(set) var result = ImageCheckResult()

    var header: ImageHeader { reader.header }

    public init(_ reader: ImageReader) {
        self.reader = reader
        snapshots = ImageSnapshotReader(reader)
        jobs = [.compare, .bitmaps, .snapshots]
        if reader.header.l1.count > 0 { jobs.append(.l1(reader.header.l1, first: 0, isActive: true)) }
        jobs += [.header, .refcountTable(first: 0)]
        result.totalClusters = reader.header.guestClusters
    }

    /// Reads the refcounts only; see ``clustersInUse``.
    public init(countingOnly reader: ImageReader) {
        self.init(reader)
        jobs = [.refcountTable(first: 0)]
    }

    /// Clusters whose refcount is not zero, of those that have been read.
    public var clustersInUse: UInt64 { stored.nonzero }

    /// The bytes to read next; nil at the end. Throws when the image is too damaged, or too large, to be checked.
    public mutating func next() throws(ImageError) -> ByteRange? {
        while let job = jobs.popLast() {
            guard !stored.isFull, !counted.isFull else {
                throw .unsupported(
                    feature: "more clusters than can be counted", offset: 0, remedy: "Check it with qemu-img check.")
            }
            if let range = try begin(job) {
                current = job
                return range
            }
        }
        return nil
    }

    /// The range that a job needs; nil when it is done already.
    private mutating func begin(_ job: Job) throws(ImageError) -> ByteRange? {
        switch job {
        case .refcountTable(let first):
            let entries = Int(header.refcountTable.length / 8)
            return tablePiece(header.refcountTable.offset, first, entries)
        case .refcountBlock(_, let offset), .l2(let offset, _):
            return ByteRange(offset: offset, length: header.clusterSize)
        case .header:
            count(0, header.clusterSize)
            count(header.refcountTable.offset, header.refcountTable.length)
            return nil
        case .l1(let place, let first, _):
            if first == 0 {
                count(place.offset, place.length)
                seenTables = []
            }
            return tablePiece(place.offset, first, place.count)
        case .snapshots:
            if let range = snapshots.next() { return range }
            takeSnapshots()
            return nil
        case .bitmaps:
            return try ImageBitmap.directory(reader)
        case .bitmapTable(let offset, let entries):
            return ByteRange(offset: offset, length: UInt64(entries) * 8)
        case .compare:
            compare()
            return nil
        }
    }

    private func tablePiece(_ offset: UInt64, _ first: Int, _ entries: Int) -> ByteRange {
        ByteRange(
            offset: offset + UInt64(first) * 8, length: UInt64(min(Self.entriesPerPiece, entries - first)) * 8)
    }

    /// Takes the bytes that ``next()`` asked for; traps when there are fewer.
    public mutating func take(_ bytes: UnsafeRawBufferPointer) throws(ImageError) {
        guard let job = current else { preconditionFailure("nothing was asked for") }
        current = nil
        switch job {
        case .refcountTable(let first): takeRefcountTable(bytes, first)
        case .refcountBlock(let index, _): takeRefcountBlock(bytes, index)
        case .l1(let place, let first, let isActive): takeL1(bytes, place, first, isActive)
        case .l2(let offset, let isActive): takeL2(bytes, offset, isActive)
        case .snapshots:
            try snapshots.take(bytes)
            jobs.append(.snapshots)
        case .bitmaps: try takeBitmaps(bytes)
        case .bitmapTable(let offset, _): takeBitmapTable(bytes, offset)
        case .header, .compare: break
        }
    }

    // MARK: Words

    mutating func corrupt(_ text: String) {
        result.corruptions += 1
        say("ERROR " + text)
    }

    mutating func say(_ text: String) {
        if result.findings.count < ImageCheckResult.findingsMax { result.findings.append(text) }
    }

    /// Counts the clusters that a range of the file touches.
    mutating func count(_ offset: UInt64, _ length: UInt64) {
        guard length > 0 else { return }
        let bits = UInt64(header.clusterBits)
        for cluster in offset >> bits...(offset + length - 1) >> bits { counted.add(cluster) }
    }

    // MARK: Snapshots and bitmaps

    private mutating func takeSnapshots() {
        guard let list = snapshots.list, !list.isEmpty else { return }
        count(header.snapshots.offset, snapshots.listLength)
        for snapshot in list {
            let length = UInt64(snapshot.l1Entries) * 8
            guard length > 0 else { continue }
            guard snapshot.l1Offset % header.clusterSize == 0, length <= ImageHeader.maximumL1Bytes,
                let range = ByteRange(checking: snapshot.l1Offset, length: length), range.end <= reader.fileLength
            else {
                corrupt("snapshot \(snapshot.id) (\(snapshot.name)): its L1 table cannot be at \(snapshot.l1Offset)")
                continue
            }
            let place = ImagePlace(offset: snapshot.l1Offset, length: length, count: snapshot.l1Entries)
            jobs.append(.l1(place, first: 0, isActive: false))
        }
    }

    private mutating func takeBitmaps(_ bytes: UnsafeRawBufferPointer) throws(ImageError) {
        guard let place = header.bitmaps else { return }
        count(place.offset, place.length)
        for bitmap in try ImageBitmap.parse(bytes, count: place.count, at: place.offset) {
            let length = UInt64(bitmap.tableEntries) * 8
            guard length > 0 else { continue }
            guard bitmap.tableOffset % header.clusterSize == 0, length <= ImageHeader.maximumL1Bytes,
                let range = ByteRange(checking: bitmap.tableOffset, length: length), range.end <= reader.fileLength
            else {
                corrupt("bitmap \(bitmap.name): its table cannot be at \(bitmap.tableOffset)")
                continue
            }
            count(bitmap.tableOffset, length)
            jobs.append(.bitmapTable(offset: bitmap.tableOffset, entries: bitmap.tableEntries))
        }
    }

    private mutating func takeBitmapTable(_ bytes: UnsafeRawBufferPointer, _ offset: UInt64) {
        let fields = ImageFields(bytes: bytes)
        for place in stride(from: 0, to: bytes.count, by: 8) {
            let entry = fields.u64(place)
            let data = entry & ImageEntry.offsetMask
            guard entry & ~(ImageEntry.offsetMask | 1) == 0, data == 0 || entry & 1 == 0 else {
                corrupt("bitmap table entry at byte \(offset + UInt64(place)): reserved bits are set")
                continue
            }
            guard data != 0 else { continue }
            guard reader.fault(data, header.clusterSize, whole: false) == nil else {
                corrupt("bitmap table entry at byte \(offset + UInt64(place)) points to \(data)")
                continue
            }
            count(data, header.clusterSize)
        }
    }
}
