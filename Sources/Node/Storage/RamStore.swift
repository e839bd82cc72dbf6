import AsyncIO
import Dispatch
import Glibc
import RamCache
import Units

/// What arrived of an epoch's RAM, to be compared with the primary's seal and told to the operator.
struct RamSeal: Equatable, Sendable {
    let epoch: Epoch
    /// Batches of the epoch.
    let batches: UInt32
    /// Entries in them.
    let pages: UInt64
    /// Bytes of them as they came.
    let bytes: UInt64
    /// Digest over them (``RamEpochDigest``).
    let digest: UInt32
}

/// The RAM of one guest in one session: the cache of the last commit in shared memory, the epoch that arrives beside
/// it, and in disk durability the log and base from which the cache can be made again.
///
/// ```
/// TMPFS/cache-SESSION/0-pc.ram.ram …   the RAM blocks, exactly their length; QEMU maps them
///                     applied          which epoch they hold (RamMarker)
///                     staging.ram/.map the epoch that arrives, slot by slot (StagingMapHeader)
/// DIRECTORY/delta-N.log, base-N.ram, base-N.sum        (disk durability; formats: docs/ram-format.md)
/// ```
/// Order of calls, epoch by epoch: ``beginEpoch(_:)``, ``stage(epoch:batch:)``…, ``seal(epoch:)``, then the owner makes
/// its commit record durable (with ``recoveryFiles`` in it), ``apply(epoch:)``, ``committed(_:)``, and when there is
/// time ``compactSlice(maxBytes:)``. Another order is a bug of the owner and traps. The first epoch of a session is
/// decoded straight into a new cache; the former session's cache and files stay until it is committed.
///
/// A crash at any point leaves either the committed epoch in the cache, or what is needed to finish it: `open` does.
///
/// Shared memory: the cache (at most the guest's RAM), and the changed pages of one epoch, of which `retainedBytes` are
/// kept. Disk, with T = max(`compactionMinimumBytes`, RAM/2): two bases of at most RAM each, and logs of T + RAM/2 plus
/// four epochs: the one that made them longer than T, the last before the base is complete, the one whose commit record
/// still names the old base, and the open one.
///
/// Not Sendable: confined to the guest's storage thread. All calls block.
final class RamStore {
    /// Where and how.
    struct Configuration {
        /// `STORE/GUEST/ram`; must exist. Not touched with memory durability.
        var directory: String
        /// The guest's directory in shared memory, from ``RamTmpfs/prepare(base:name:)``.
        var tmpfs: String
        var durability: Durability
        /// Logs are compacted when they are longer than this (bytes) and than half of the RAM.
        var compactionMinimumBytes: UInt64 = 64 << 20
        /// Logs are compacted when they are longer than this (bytes), whatever the RAM; nil: see above.
        var logLimitBytes: UInt64?
        /// Shared memory that staging keeps between epochs, in bytes.
        var retainedBytes = 32 << 20
    }

    /// Figures for `status`.
    struct Statistics: Equatable, Sendable {
        /// The epoch in the cache; nil during the initial copy.
        var applied: Epoch?
        /// Shared memory of the cache and of the staging, in bytes.
        var cacheBytes: UInt64 = 0
        var stagingBytes: UInt64 = 0
        /// Bytes of the logs that recovery needs.
        var logBytes: UInt64 = 0
        /// The base that recovery starts from.
        var baseEpoch: Epoch?
        /// Of the base that is being written, 0...1; nil when none is.
        var compactionProgress: Double?
        var compactions = 0
        /// Why the last compaction was given up; nil after one that succeeded.
        var compactionFailure: String?
    }

    /// Successors: idle → open; open → sealed, idle (discarded), dead (initial copy discarded); sealed → idle, dead.
    private enum State: Equatable {
        case idle
        case open(Epoch)
        case sealed(Epoch)
        case dead
    }

    let configuration: Configuration
    let session: Identifier
    let layout: RamLayout
    private let cache: RamCacheFiles
    private let staging: RamStaging
    private let decoder = PageBatchDecoder()
    private let disk: RamDiskFiles?

    private var state = State.idle
    /// The epoch that the cache holds; nil until the session's first one is applied.
    private(set) var applied: Epoch?
    private var digest = RamEpochDigest()
    private var isBroken = false
    private var vouched: [RamFileReference] = []
    private var isFirstCommit: Bool

    // MARK: Making and opening

    /// Starts a session: an empty cache, and with disk durability an empty log.
    static func create(
        _ configuration: Configuration, session: Identifier, layout: RamLayout, firstEpoch: Epoch
    ) throws(RamStoreError) -> RamStore {
        let directory = cacheDirectory(configuration, session)
        try RamTmpfs.removeDirectory(directory)
        let cache = try RamCacheFiles.create(
            directory: directory, session: session, layout: layout, epoch: firstEpoch)
        var disk: RamDiskFiles?
        if configuration.durability == .disk {
            disk = try RamDiskFiles(configuration, session: session, layout: layout, firstEpoch: firstEpoch)
        }
        return try RamStore(configuration, session, cache, disk, applied: nil)
    }

    /// Opens the committed state: finishes an apply that was cut short, drops what was not committed, and makes the
    /// cache again from `files` when it is gone (disk durability).
    ///
    /// - Parameters:
    ///   - committed: epoch of the commit record.
    ///   - files: what the commit record says about ``recoveryFiles``; empty with memory durability.
    /// - Throws: `.lost` in memory durability, `.damaged` or `.incomplete` in disk durability, when epoch `committed`
    ///   cannot be had.
    static func open(
        _ configuration: Configuration, session: Identifier, layout: RamLayout, committed: Epoch,
        files: [RamFileReference]
    ) throws(RamStoreError) -> RamStore {
        let directory = cacheDirectory(configuration, session)
        let found = try survivingCache(directory, session, layout, committed)
        let cache: RamCacheFiles
        if let survivor = found.cache {
            cache = survivor
        } else {
            guard configuration.durability == .disk else {
                throw RamStoreError(.lost(reason: found.reason), path: directory, epoch: committed)
            }
            try RamTmpfs.removeDirectory(directory)
            cache = try RamCacheFiles.create(
                directory: directory, session: session, layout: layout, epoch: committed)
            let archive = RamArchive(
                directory: configuration.directory, session: session, layout: layout, epoch: committed, files: files)
            try archive.rebuild(into: cache)
            try cache.mark(.filled, committed)
        }
        if cache.marker.state != .applied { try cache.mark(.applied, committed) }
        var disk: RamDiskFiles?
        if configuration.durability == .disk {
            disk = try RamDiskFiles(configuration, session: session, layout: layout, files: files)
            try disk?.removeOthers()
        }
        let store = try RamStore(configuration, session, cache, disk, applied: committed)
        store.vouched = files
        try store.removeOtherCaches()
        return store
    }

    private init(
        _ configuration: Configuration, _ session: Identifier, _ cache: RamCacheFiles, _ disk: RamDiskFiles?,
        applied: Epoch?
    ) throws(RamStoreError) {
        self.configuration = configuration
        self.session = session
        self.layout = cache.layout
        self.cache = cache
        self.disk = disk
        self.applied = applied
        self.isFirstCommit = applied == nil
        staging = try RamStaging(
            directory: cache.directory, session: session, layout: cache.layout,
            retainedBytes: configuration.retainedBytes)
    }

    /// The cache of the session if it holds the epoch or can be brought to it, otherwise why not.
    private static func survivingCache(
        _ directory: String, _ session: Identifier, _ layout: RamLayout, _ epoch: Epoch
    ) throws(RamStoreError) -> (cache: RamCacheFiles?, reason: String) {
        guard let cache = try RamCacheFiles.open(directory: directory, session: session, layout: layout) else {
            return (nil, "it is not there; was this host restarted?")
        }
        let marker = cache.marker
        switch marker.state {
        case .applied where marker.epoch == epoch, .filled where marker.epoch == epoch:
            return (cache, "")
        case .applied where marker.epoch.next == epoch, .applying where marker.epoch == epoch:
            let target = RamFillTarget(cache: cache)
            let done = try RamStaging.replay(
                directory: directory, session: session, layout: layout, epoch: epoch
            ) { (page, contents) throws(RamStoreError) in
                if cache.marker.state != .applying { try cache.mark(.applying, epoch) }
                let place = layout.location(ofGlobalPage: page)
                if let contents {
                    memcpy(try target.destination(block: place.block, page: place.page), contents, Sizes.page)
                } else {
                    try target.zero(block: place.block, page: place.page)
                }
            }
            return done ? (cache, "") : (nil, "epoch \(epoch) was not completely received before the daemon ended")
        default:
            return (nil, "it holds epoch \(marker.epoch) (\(marker.state)) instead of \(epoch)")
        }
    }

    // MARK: Epochs

    /// Starts an epoch: the session's first one, or the one behind ``applied``.
    func beginEpoch(_ epoch: Epoch) throws(RamStoreError) {
        precondition(state == .idle, "the epoch before must be applied or discarded")
        if let applied {
            precondition(epoch == applied.next, "epochs follow one another")
            disk?.startCompactionIfDue(cache: cache, applied: applied)
            try staging.begin(epoch)
        } else {
            precondition(epoch == cache.marker.epoch, "the session starts with the epoch it was made for")
        }
        digest = RamEpochDigest()
        isBroken = false
        state = .open(epoch)
    }

    /// Takes one batch of the open epoch. Nothing of the cache of the last commit changes. After an error the epoch
    /// must be discarded.
    func stage(epoch: Epoch, batch: UnsafeRawBufferPointer) throws(RamStoreError) {
        precondition(state == .open(epoch))
        guard !isBroken else { throw RamStoreError(.brokenEpoch, path: cache.directory, epoch: epoch) }
        isBroken = true
        do throws(RamBatchError) {
            try decoder.prepare(batch, layout: layout)
        } catch {
            throw RamStoreError(.batch(error), path: cache.directory, epoch: epoch)
        }
        digest.add(batch)
        try disk?.log.append(batch, epoch: epoch, digest: digest)
        if applied == nil {
            var target = RamFillTarget(cache: cache)
            try decoder.apply(to: &target)
        } else {
            var target = RamStagingTarget(staging: staging, cache: cache)
            try decoder.apply(to: &target)
        }
        isBroken = false
    }

    /// Ends the epoch: with disk durability it is durable when this returns; with memory durability it outlives the
    /// daemon. It counts once the owner's commit record says so.
    func seal(epoch: Epoch) throws(RamStoreError) -> RamSeal {
        precondition(state == .open(epoch))
        guard !isBroken else { throw RamStoreError(.brokenEpoch, path: cache.directory, epoch: epoch) }
        isBroken = true
        if applied == nil {
            try cache.mark(.filled, epoch)
        } else {
            try staging.seal(epoch, digest: digest)
        }
        try disk?.log.seal(epoch, digest: digest)
        isBroken = false
        vouched = disk?.references ?? []
        state = .sealed(epoch)
        return RamSeal(
            epoch: epoch, batches: digest.batches, pages: digest.pages, bytes: digest.bytes, digest: digest.value)
    }

    /// The files that the commit record of the epoch sealed last must name; empty with memory durability.
    var recoveryFiles: [RamFileReference] { vouched }

    /// Brings the cache to the sealed epoch. To be called behind its commit record.
    func apply(epoch: Epoch) throws(RamStoreError) {
        precondition(state == .sealed(epoch))
        if applied != nil {
            try cache.mark(.applying, epoch)
            let base = disk?.building
            if let base {
                try staging.forEach { (page, _) throws(RamStoreError) in
                    if disk?.building != nil { disk?.preserve(page, in: base) }
                }
            }
            copyStaging()
        }
        try cache.mark(.applied, epoch)
        applied = epoch
        disk?.applied()
        state = .idle
        try staging.reset()
    }

    /// Copies the staged pages into the cache, on several threads when there are many: each page is staged once, and its
    /// memory was taken when it was.
    private func copyStaging() {
        let count = staging.entryCount
        let parts = count < Self.pagesOfParallelCopy ? 1 : Self.copyThreads
        // The threads read the same staging and write different pages of the cache, and are done when this returns.
        nonisolated(unsafe) let (staging, cache) = (staging, cache)
        let layout = layout
        DispatchQueue.concurrentPerform(iterations: parts) { part in
            for position in count * part / parts..<count * (part + 1) / parts {
                let (page, contents) = staging.entry(position)
                let place = layout.location(ofGlobalPage: page)
                if let contents {
                    memcpy(cache.writablePage(place.block, place.page), contents, Sizes.page)
                } else if cache.page(place.block, place.page) != nil {
                    memset(cache.writablePage(place.block, place.page), 0, Sizes.page)
                }
            }
        }
    }

    private static let copyThreads = 2
    /// Fewer pages than these (2 MiB) are copied sooner than another thread is awake.
    private static let pagesOfParallelCopy = 512

    /// Tells that the commit record of the epoch, with ``recoveryFiles`` as they were at its seal, is durable: what
    /// only older records needed is removed by the next calls of ``compactSlice(maxBytes:)``, and with the first
    /// commit of a session the caches of former sessions at once.
    func committed(_ epoch: Epoch) throws(RamStoreError) {
        precondition(state == .sealed(epoch) || applied == epoch)
        if isFirstCommit {
            try removeOtherCaches()
            try disk?.retireOthers()
            isFirstCommit = false
        }
        disk?.retire(but: vouched)
    }

    /// Whether no epoch is open, sealed or left over from a failure.
    var isIdle: Bool { state == .idle }

    /// Drops what arrived since the last apply. Without an epoch nothing happens. A session whose first epoch is
    /// dropped is over: its files are removed, and the object is of no more use.
    func discardOpenEpoch() throws(RamStoreError) {
        guard state != .idle, state != .dead else { return }
        guard applied != nil else {
            state = .dead
            try disk?.removeOwn()
            try RamTmpfs.removeDirectory(cache.directory)
            return
        }
        try staging.reset()
        try disk?.cutToLastApplied()
        vouched = disk?.references ?? []
        state = .idle
    }

    /// Work that can wait, in bounded pieces: removes retired files, one a call, and writes the base that replaces
    /// long logs. To be called after every commit, with both durabilities, and again while it returns false.
    ///
    /// - Parameter maxBytes: of RAM to write now; more is written when the logs grow faster.
    /// - Returns: true when there is nothing left to do.
    /// - Throws: why the compaction was given up; the logs go on, and it is tried again later.
    func compactSlice(maxBytes: Int) throws(RamStoreError) -> Bool {
        guard let disk else { return true }
        if state == .idle, let applied { disk.startCompactionIfDue(cache: cache, applied: applied) }
        return try disk.work(maxBytes: maxBytes)
    }

    // MARK: Looking

    /// All bytes of a block as of the applied epoch; valid as long as the store. For small blocks: reading parts of a
    /// large block that were never written makes the kernel take memory for them.
    func contents(block: Int) -> UnsafeRawBufferPointer { cache.contents(block) }

    /// A page of the applied epoch, 4096 bytes, valid until the next apply.
    func page(block: Int, page: UInt64) -> UnsafeRawPointer {
        precondition(page < layout.blocks[block].pageCount)
        return cache.pageOrZeroes(block, page)
    }

    /// The same, or nil for a page that was never written.
    func writtenPage(block: Int, page: UInt64) -> UnsafeRawPointer? { cache.page(block, page) }

    /// The file that QEMU maps as the block (privately: the cache must stay as it is).
    func mappedPath(block: Int) -> String { cache.path(block) }

    /// Logs longer than this (bytes) are replaced by a base; 0 with memory durability.
    var logLimitBytes: UInt64 { disk?.threshold ?? 0 }

    /// Bytes that the files on disk occupy; 0 with memory durability.
    var diskBytes: UInt64 { disk?.occupiedBytes ?? 0 }

    var statistics: Statistics {
        var statistics = Statistics(
            applied: applied, cacheBytes: cache.takenBytes, stagingBytes: staging.takenBytes)
        guard let disk else { return statistics }
        statistics.logBytes = disk.logBytes
        statistics.baseEpoch = disk.base?.epoch
        statistics.compactionProgress = disk.building?.progress
        statistics.compactions = disk.compactions
        statistics.compactionFailure = disk.compactionFailure
        return statistics
    }

    // MARK: Caches of other sessions

    private static func cacheDirectory(_ configuration: Configuration, _ session: Identifier) -> String {
        configuration.tmpfs + "/cache-" + session.hex
    }

    private func removeOtherCaches() throws(RamStoreError) {
        let names = try RamStoreError.wrap { () throws(IOError) in try Directory.names(in: configuration.tmpfs) }
        let own = Self.cacheDirectory(configuration, session)
        for name in names where name.hasPrefix("cache-") {
            let path = configuration.tmpfs + "/" + name
            if path != own { try RamTmpfs.removeDirectory(path) }
        }
    }
}
