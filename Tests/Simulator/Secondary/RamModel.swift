import RamCache
import Units

/// Stands for Node's RamStore, RamCacheFiles and RamStaging: the cache of the last commit in shared memory, the epoch
/// that arrives beside it, and with disk durability the log and the base.
final class RamModel {
    private enum State: Equatable {
        case idle
        case open(Epoch)
        case sealed(Epoch)
        case dead
    }

    let session: Identifier
    let layout: RamLayout
    private let storage: Storage
    private let cache: CacheDirectory
    private let disk: RamDiskModel?
    private let decoder = PageBatchDecoder()
    private var marker: RamMarker
    private var state = State.idle
    private(set) var applied: Epoch?
    private var digest = RamEpochDigest()
    private var vouched: [RamFileReference] = []
    private var isFirstCommit: Bool
    /// Page to 1 + index of its entry.
    private var index: [Int]
    private var slotCount = 0

    /// For the judge: pages staged, and the most there can be.
    var pressure: (used: Int, limit: Int) { (cache.entries.count, layout.pageCount) }
    var recoveryFiles: [RamFileReference] { vouched }
    var contents: [UInt8] { cache.ram.bytes }

    // MARK: Making and opening

    static func create(
        _ storage: Storage, session: Identifier, layout: RamLayout, firstEpoch: Epoch, durable: Bool
    ) throws -> RamModel {
        let cache = CacheDirectory(layout: layout)
        try storage.step("create cache", session.hex)
        storage.shared.caches[session] = cache
        let marker = RamMarker(
            session: session, layoutDigest: layout.digest, epoch: firstEpoch, sequence: 0, state: .filling)
        let disk =
            durable ? try RamDiskModel(storage, session: session, layout: layout, firstEpoch: firstEpoch) : nil
        let model = try RamModel(storage, session, layout, cache, marker, disk, applied: nil)
        try model.mark(.filling, firstEpoch)
        return model
    }

    static func open(
        _ storage: Storage, session: Identifier, layout: RamLayout, committed: Epoch, files: [RamFileReference],
        durable: Bool
    ) throws -> RamModel {
        let cache: CacheDirectory
        if let survivor = try survivingCache(storage, session, layout, committed) {
            cache = survivor
        } else {
            guard durable else {
                throw StoreModel.Failed("the RAM of epoch \(committed) was in memory only; it is lost")
            }
            cache = CacheDirectory(layout: layout)
            storage.shared.caches[session] = cache
            let archive = RamArchiveModel(
                storage: storage, session: session, layout: layout, epoch: committed, files: files)
            try archive.rebuild(into: cache)
            try write(storage, cache, Self.next(nil, session, layout, .filled, committed))
        }
        var marker = try Self.marker(of: cache) ?? Self.next(nil, session, layout, .filled, committed)
        if marker.state != .applied {
            marker = Self.next(marker, session, layout, .applied, committed)
            try write(storage, cache, marker)
        }
        let disk = durable ? try RamDiskModel(storage, session: session, layout: layout, files: files) : nil
        try disk?.removeOthers()
        let model = try RamModel(storage, session, layout, cache, marker, disk, applied: committed)
        model.vouched = files
        storage.shared.caches = storage.shared.caches.filter { $0.key == session }
        return model
    }

    private init(
        _ storage: Storage, _ session: Identifier, _ layout: RamLayout, _ cache: CacheDirectory, _ marker: RamMarker,
        _ disk: RamDiskModel?, applied: Epoch?
    ) throws {
        self.storage = storage
        self.session = session
        self.layout = layout
        self.cache = cache
        self.marker = marker
        self.disk = disk
        self.applied = applied
        isFirstCommit = applied == nil
        index = [Int](repeating: 0, count: layout.pageCount)
        cache.entries = []
        cache.mapHeader = []
    }

    /// The cache if it holds the epoch or can be brought to it.
    private static func survivingCache(
        _ storage: Storage, _ session: Identifier, _ layout: RamLayout, _ epoch: Epoch
    ) throws -> CacheDirectory? {
        guard let cache = storage.shared.caches[session], let marker = try marker(of: cache),
            marker.session == session, marker.layoutDigest == layout.digest
        else { return nil }
        switch marker.state {
        case .applied where marker.epoch == epoch, .filled where marker.epoch == epoch:
            return cache
        case .applied where marker.epoch.next == epoch, .applying where marker.epoch == epoch:
            return try replay(storage, cache, session, layout, epoch, marker) ? cache : nil
        default:
            return nil
        }
    }

    /// Applies the sealed epoch that a former daemon left.
    private static func replay(
        _ storage: Storage, _ cache: CacheDirectory, _ session: Identifier, _ layout: RamLayout, _ epoch: Epoch,
        _ marker: RamMarker
    ) throws -> Bool {
        let found = cache.mapHeader.withUnsafeBytes { try? StagingMapHeader(decoding: $0) }
        guard let header = found, header.state == .sealed, header.epoch == epoch, header.session == session,
            header.layoutDigest == layout.digest, header.entryCount == UInt64(cache.entries.count),
            cache.entries.withUnsafeBytes({ CRC32C.checksum($0) }) == header.entryChecksum
        else { return false }
        if marker.state != .applying { try write(storage, cache, next(marker, session, layout, .applying, epoch)) }
        for raw in cache.entries {
            try storage.step("apply", "ram")
            put(StagingEntry(rawValue: raw), of: cache)
        }
        return true
    }

    private static func put(_ entry: StagingEntry, of cache: CacheDirectory) {
        let target = cache.ram.base + entry.page * Sizes.page
        if entry.isZero {
            target.initializeMemory(as: UInt8.self, repeating: 0, count: Sizes.page)
        } else {
            target.copyMemory(from: cache.slots.base + Int(entry.slot) * Sizes.page, byteCount: Sizes.page)
        }
    }

    // MARK: Marker

    private static func marker(of cache: CacheDirectory) throws -> RamMarker? {
        cache.marker.withUnsafeBytes { RamMarker.newest(in: $0) }
    }

    private static func next(
        _ marker: RamMarker?, _ session: Identifier, _ layout: RamLayout, _ state: RamMarker.State, _ epoch: Epoch
    ) -> RamMarker {
        RamMarker(
            session: session, layoutDigest: layout.digest, epoch: epoch, sequence: (marker?.sequence ?? 0) + 1,
            state: state)
    }

    private static func write(_ storage: Storage, _ cache: CacheDirectory, _ marker: RamMarker) throws {
        try storage.step("mark", "applied")
        let start = Int(marker.offset)
        cache.marker.replaceSubrange(start..<start + RamMarker.slotBytes, with: marker.encoded())
    }

    private func mark(_ state: RamMarker.State, _ epoch: Epoch) throws {
        let new = Self.next(marker, session, layout, state, epoch)
        try Self.write(storage, cache, new)
        marker = new
    }

    // MARK: Epochs

    func beginEpoch(_ epoch: Epoch) throws {
        precondition(state == .idle, "the epoch before must be applied or discarded")
        if let applied {
            precondition(epoch == applied.next, "epochs follow one another")
            try disk?.startCompactionIfDue(cache: cache, applied: applied)
            cache.mapHeader =
                StagingMapHeader(session: session, layoutDigest: layout.digest, epoch: epoch).encoded()
        }
        digest = RamEpochDigest()
        state = .open(epoch)
    }

    func stage(epoch: Epoch, batch: UnsafeRawBufferPointer) throws {
        precondition(state == .open(epoch))
        try decoder.prepare(batch, layout: layout)
        digest.add(batch)
        try disk?.append(batch, epoch: epoch, digest: digest)
        try storage.step("stage", "ram")
        if applied == nil || storage.mutation == .applyBeforeSeal {
            var target = FillTarget(cache: cache, layout: layout)
            decoder.apply(to: &target)
        } else {
            var target = StagingTarget(model: self)
            decoder.apply(to: &target)
        }
    }

    func seal(epoch: Epoch) throws {
        precondition(state == .open(epoch))
        if applied == nil {
            try mark(.filled, epoch)
        } else {
            var header = StagingMapHeader(session: session, layoutDigest: layout.digest, epoch: epoch)
            header.entryCount = UInt64(cache.entries.count)
            header.entryChecksum = cache.entries.withUnsafeBytes { CRC32C.checksum($0) }
            header.state = .sealed
            try storage.step("seal staging", "ram")
            cache.mapHeader = header.encoded()
        }
        try disk?.seal(epoch, digest: digest)
        vouched = disk?.references ?? []
        if storage.mutation == .retireTooEarly {
            disk?.retire(but: vouched)
            try disk?.removeRetired()
        }
        state = .sealed(epoch)
    }

    /// For a planted bug only.
    func lateSync() throws { try disk?.lateSync() }

    func apply(epoch: Epoch) throws {
        precondition(state == .sealed(epoch))
        if applied != nil {
            try mark(.applying, epoch)
            for raw in cache.entries {
                try storage.step("apply", "ram")
                let entry = StagingEntry(rawValue: raw)
                try disk?.preserve(entry.page)
                Self.put(entry, of: cache)
            }
        }
        try mark(.applied, epoch)
        applied = epoch
        disk?.applied()
        state = .idle
        resetStaging()
    }

    func committed(_ epoch: Epoch) throws {
        precondition(state == .sealed(epoch) || applied == epoch)
        if isFirstCommit {
            storage.shared.caches = storage.shared.caches.filter { $0.key == session }
            disk?.retireOthers()
            isFirstCommit = false
        }
        disk?.retire(but: vouched)
    }

    var isIdle: Bool { state == .idle }

    func discardOpenEpoch() throws {
        guard state != .idle, state != .dead else { return }
        guard applied != nil else {
            state = .dead
            try disk?.removeOwn()
            storage.shared.caches[session] = nil
            return
        }
        resetStaging()
        try disk?.cutToLastApplied()
        vouched = disk?.references ?? []
        state = .idle
    }

    func compactSlice(maxPages: Int) throws {
        guard let disk else { return }
        if state == .idle, let applied { try disk.startCompactionIfDue(cache: cache, applied: applied) }
        try disk.work(maxPages: maxPages)
    }

    // MARK: Staging

    private func resetStaging() {
        for raw in cache.entries { index[StagingEntry(rawValue: raw).page] = 0 }
        cache.entries = []
        slotCount = 0
        cache.mapHeader = StagingMapHeader(session: session, layoutDigest: layout.digest, epoch: .none).encoded()
    }

    fileprivate func staged(_ page: Int) -> UnsafeRawPointer? {
        let position = index[page]
        guard position != 0 else { return UnsafeRawPointer(cache.ram.base + page * Sizes.page) }
        let entry = StagingEntry(rawValue: cache.entries[position - 1])
        return entry.isZero ? nil : UnsafeRawPointer(cache.slots.base + Int(entry.slot) * Sizes.page)
    }

    fileprivate func stage(_ page: Int, isZero: Bool) -> UnsafeMutableRawPointer {
        let position = index[page]
        var slot = position == 0 ? StagingEntry.noSlot : StagingEntry(rawValue: cache.entries[position - 1]).slot
        if !isZero, slot == StagingEntry.noSlot {
            slot = UInt32(slotCount)
            slotCount += 1
        }
        let entry = StagingEntry(page: page, isZero: isZero, slot: slot)
        if position == 0 {
            cache.entries.append(entry.rawValue)
            index[page] = cache.entries.count
        } else {
            cache.entries[position - 1] = entry.rawValue
        }
        return cache.slots.base + (isZero ? 0 : Int(slot) * Sizes.page)
    }
}

/// Decodes straight into a cache that nobody uses yet.
struct FillTarget: PageBatchTarget {
    let cache: CacheDirectory
    let layout: RamLayout

    private func place(_ block: Int, _ page: UInt64) -> UnsafeMutableRawPointer {
        cache.ram.base + layout.globalPage(block: block, page: page) * Sizes.page
    }

    func reference(block: Int, page: UInt64) -> UnsafeRawPointer? { UnsafeRawPointer(place(block, page)) }
    func destination(block: Int, page: UInt64) throws(Never) -> UnsafeMutableRawPointer { place(block, page) }
    func zero(block: Int, page: UInt64) throws(Never) {
        place(block, page).initializeMemory(as: UInt8.self, repeating: 0, count: Sizes.page)
    }
}

/// Decodes an epoch into the staging; the cache keeps the last commit.
private struct StagingTarget: PageBatchTarget {
    let model: RamModel

    func reference(block: Int, page: UInt64) -> UnsafeRawPointer? {
        model.staged(model.layout.globalPage(block: block, page: page))
    }
    func destination(block: Int, page: UInt64) throws(Never) -> UnsafeMutableRawPointer {
        model.stage(model.layout.globalPage(block: block, page: page), isZero: false)
    }
    func zero(block: Int, page: UInt64) throws(Never) {
        _ = model.stage(model.layout.globalPage(block: block, page: page), isZero: true)
    }
}
