import AsyncIO
import Glibc
import RamCache
import Units

/// The pages of the epoch that is arriving, apart from the cache until the epoch is committed.
///
/// `staging.ram` is filled slot by slot, so memory follows the number of changed pages and is used again by the next
/// epoch; `staging.map` says which page each slot is, and after a crash of the daemon lets the copy into the cache be
/// repeated. Memory is taken before it is written, as in ``RamCacheFiles``. Confined to the storage thread.
final class RamStaging {
    /// A page's place in the epoch.
    enum Place {
        case absent
        case zero
        case data(UnsafeMutableRawPointer)
    }

    private static let slotsTakenAtOnce = 256
    private static let entriesTakenAtOnce = 8192
    private static let dataName = "staging.ram"
    private static let mapName = "staging.map"

    private let layout: RamLayout
    private let session: Identifier
    private let data: MappedMemory
    private let map: MappedMemory
    private let headerFile: DirectFile
    private let slots: UnsafeMutableRawPointer
    private let entries: UnsafeMutablePointer<UInt64>
    /// Per page: 1 + index of its entry, 0 = none.
    private let index: AnonymousMemory
    private let retainedSlots: Int

    private(set) var entryCount = 0
    private var slotCount = 0
    private var takenSlots = 0
    private var takenEntries = 0

    /// Makes empty staging in the directory, replacing what is there.
    ///
    /// - Parameter retainedBytes: memory that is kept from one epoch to the next.
    init(directory: String, session: Identifier, layout: RamLayout, retainedBytes: Int) throws(RamStoreError) {
        let (data, map, headerFile) = try RamStoreError.wrap { () throws(IOError) in
            for name in [Self.dataName, Self.mapName] { try Directory.removeFile(directory + "/" + name) }
            let data = try MappedMemory.create(path: directory + "/" + Self.dataName, size: Int(layout.total))
            let mapBytes = StagingMapHeader.entriesOffset + layout.pageCount * 8
            let map = try MappedMemory.create(path: directory + "/" + Self.mapName, size: mapBytes)
            try map.reserve(offset: 0, length: StagingMapHeader.entriesOffset)
            let headerFile = try DirectFile(path: map.path, mode: .readWrite, direct: false)
            return (data, map, headerFile)
        }
        guard let slots = data.bytes.baseAddress, let start = map.bytes.baseAddress else {
            preconditionFailure("a mapping has an address")
        }
        self.layout = layout
        self.session = session
        self.data = data
        self.map = map
        self.headerFile = headerFile
        self.slots = slots
        entries = (start + StagingMapHeader.entriesOffset).bindMemory(to: UInt64.self, capacity: layout.pageCount)
        index = AnonymousMemory(byteCount: layout.pageCount * 4)
        retainedSlots = retainedBytes / Sizes.page
    }

    // MARK: One epoch

    /// Starts an epoch. The staging must be empty.
    func begin(_ epoch: Epoch) throws(RamStoreError) {
        precondition(entryCount == 0)
        try write(StagingMapHeader(session: session, layoutDigest: layout.digest, epoch: epoch))
    }

    /// Where a page (counted through all blocks) is in this epoch.
    @inline(__always)
    func place(_ page: Int) -> Place {
        let position = indexed[page]
        guard position != 0 else { return .absent }
        let entry = StagingEntry(rawValue: entries[Int(position) - 1])
        return entry.isZero ? .zero : .data(slots + Int(entry.slot) * Sizes.page)
    }

    /// The memory that holds the page from now on. Its old contents in this epoch stay there, if there are any.
    @inline(__always)
    func stage(_ page: Int) throws(RamStoreError) -> UnsafeMutableRawPointer {
        let position = indexed[page]
        var slot = StagingEntry.noSlot
        if position != 0 { slot = StagingEntry(rawValue: entries[Int(position) - 1]).slot }
        if slot == StagingEntry.noSlot {
            if slotCount == takenSlots { try takeSlots() }
            slot = UInt32(slotCount)
        }
        try put(StagingEntry(page: page, isZero: false, slot: slot), at: position)
        if Int(slot) == slotCount { slotCount += 1 }
        return slots + Int(slot) * Sizes.page
    }

    /// The page is zero from now on.
    @inline(__always)
    func stageZero(_ page: Int) throws(RamStoreError) {
        let position = indexed[page]
        let slot = position == 0 ? StagingEntry.noSlot : StagingEntry(rawValue: entries[Int(position) - 1]).slot
        try put(StagingEntry(page: page, isZero: true, slot: slot), at: position)
    }

    /// Everything of the epoch is there: from now on a crash of the daemon loses nothing of it.
    func seal(_ epoch: Epoch, digest: RamEpochDigest) throws(RamStoreError) {
        var header = StagingMapHeader(session: session, layoutDigest: layout.digest, epoch: epoch)
        header.entryCount = UInt64(entryCount)
        header.entryChecksum = CRC32C.checksum(UnsafeRawBufferPointer(start: entries, count: entryCount * 8))
        header.state = .sealed
        header.batches = digest.batches
        header.pages = digest.pages
        header.batchBytes = digest.bytes
        header.digest = digest.value
        try write(header)
    }

    /// Calls `body` with every page of the epoch, in the order in which they came; contents nil = zero.
    @inline(__always)
    func forEach(_ body: (_ page: Int, _ contents: UnsafeRawPointer?) throws(RamStoreError) -> Void)
        throws(RamStoreError)
    {
        for position in 0..<entryCount {
            let (page, contents) = entry(position)
            try body(page, contents)
        }
    }

    /// One page of the epoch, by the order in which they came; contents nil = zero.
    @inline(__always)
    func entry(_ position: Int) -> (page: Int, contents: UnsafeRawPointer?) {
        let entry = StagingEntry(rawValue: entries[position])
        return (entry.page, entry.isZero ? nil : UnsafeRawPointer(slots + Int(entry.slot) * Sizes.page))
    }

    /// Empties the staging; memory above what is retained goes back to the kernel.
    func reset() throws(RamStoreError) {
        for position in 0..<entryCount { indexed[StagingEntry(rawValue: entries[position]).page] = 0 }
        entryCount = 0
        slotCount = 0
        try write(StagingMapHeader(session: session, layoutDigest: layout.digest, epoch: .none))
        guard takenSlots > retainedSlots else { return }
        let kept = retainedSlots * Sizes.page
        try RamStoreError.wrap { () throws(IOError) in
            try data.punchHole(offset: kept, length: takenSlots * Sizes.page - kept)
        }
        takenSlots = retainedSlots
    }

    /// Bytes of shared memory taken.
    var takenBytes: UInt64 { UInt64(takenSlots) * UInt64(Sizes.page) + UInt64(takenEntries) * 8 }

    private var indexed: UnsafeMutablePointer<UInt32> {
        index.base.assumingMemoryBound(to: UInt32.self)
    }

    @inline(__always)
    private func put(_ entry: StagingEntry, at position: UInt32) throws(RamStoreError) {
        if position == 0 {
            if entryCount == takenEntries { try takeEntries() }
            entries[entryCount] = entry.rawValue
            entryCount += 1
            indexed[entry.page] = UInt32(entryCount)
        } else {
            entries[Int(position) - 1] = entry.rawValue
        }
    }

    private func takeSlots() throws(RamStoreError) {
        let count = min(Self.slotsTakenAtOnce, layout.pageCount - takenSlots)
        precondition(count > 0, "a page has at most one slot")
        try RamStoreError.wrap { () throws(IOError) in
            try data.reserve(offset: takenSlots * Sizes.page, length: count * Sizes.page)
        }
        takenSlots += count
    }

    private func takeEntries() throws(RamStoreError) {
        let count = min(Self.entriesTakenAtOnce, layout.pageCount - takenEntries)
        precondition(count > 0, "a page has at most one entry")
        try RamStoreError.wrap { () throws(IOError) in
            try map.reserve(offset: StagingMapHeader.entriesOffset + takenEntries * 8, length: count * 8)
        }
        takenEntries += count
    }

    private func write(_ header: StagingMapHeader) throws(RamStoreError) {
        try RamStoreError.wrap(header.epoch) { () throws(IOError) in
            try headerFile.write(at: 0, from: header.encoded())
        }
    }

    // MARK: After a crash of the daemon

    /// Calls `body` with every page of the sealed epoch `epoch` that a former daemon left in the directory.
    ///
    /// - Returns: false when there is no such epoch, or when it does not match its checksum; `body` was not called.
    static func replay(
        directory: String, session: Identifier, layout: RamLayout, epoch: Epoch,
        _ body: (_ page: Int, _ contents: UnsafeRawPointer?) throws(RamStoreError) -> Void
    ) throws(RamStoreError) -> Bool {
        let dataPath = directory + "/" + dataName
        let mapPath = directory + "/" + mapName
        guard Directory.exists(dataPath), Directory.exists(mapPath) else { return false }
        let mapBytes = UInt64(StagingMapHeader.entriesOffset + layout.pageCount * 8)
        let mappings = try RamStoreError.wrap(epoch) { () throws(IOError) -> (MappedMemory, MappedMemory)? in
            guard try DirectFile(path: dataPath, mode: .readOnly, direct: false).size() == layout.total,
                try DirectFile(path: mapPath, mode: .readOnly, direct: false).size() == mapBytes
            else { return nil }
            return (
                try MappedMemory.open(path: dataPath, writable: false),
                try MappedMemory.open(path: mapPath, writable: false)
            )
        }
        guard let (data, map) = mappings, let slots = data.bytes.baseAddress else { return false }
        let file = UnsafeRawBufferPointer(map.bytes)
        guard let header = try? StagingMapHeader(decoding: file), header.state == .sealed, header.epoch == epoch,
            header.session == session, header.layoutDigest == layout.digest,
            header.entryCount <= UInt64(layout.pageCount)
        else { return false }
        let start = StagingMapHeader.entriesOffset
        let entries = UnsafeRawBufferPointer(rebasing: file[start..<start + Int(header.entryCount) * 8])
        guard CRC32C.checksum(entries) == header.entryChecksum else { return false }
        let all = (0..<Int(header.entryCount)).map {
            StagingEntry(rawValue: entries.loadUnaligned(fromByteOffset: $0 * 8, as: UInt64.self))
        }
        guard all.allSatisfy({ $0.page < layout.pageCount && ($0.isZero || Int($0.slot) < layout.pageCount) }) else {
            return false
        }
        for entry in all {
            try body(entry.page, entry.isZero ? nil : UnsafeRawPointer(slots + Int(entry.slot) * Sizes.page))
        }
        return true
    }
}
