import RamCache
import Units

/// Stands for Node's RamDiskFiles, RamLog and RamBaseWriter: the files of one session in `ram/`.
final class RamDiskModel {
    private struct Log {
        let firstEpoch: Epoch
        var buffer: [UInt8] = []
        var written: Int
        var sealedBytes: Int
        var chain: UInt32

        var path: String { "ram/" + RamFileReference.logName(firstEpoch) }
        var reference: RamFileReference {
            RamFileReference(kind: .log, epoch: firstEpoch, length: UInt64(sealedBytes), digest: chain)
        }
    }

    private final class Base {
        let epoch: Epoch
        let cache: CacheDirectory
        var sums: BaseImageSums
        var copied: Set<Int> = []
        var cursor = 0

        var path: String { "ram/" + RamFileReference.baseName(epoch) }

        init(_ epoch: Epoch, _ cache: CacheDirectory, _ sums: BaseImageSums) {
            self.epoch = epoch
            self.cache = cache
            self.sums = sums
        }
    }

    /// Small, so that every run makes several bases.
    private static let threshold: UInt64 = 60_000

    private let storage: Storage
    private let session: Identifier
    private let layout: RamLayout
    private var base: RamFileReference?
    private var closedLogs: [RamFileReference] = []
    private var log: Log
    private var building: Base?
    private var appliedLog: RamFileReference
    private var retryAt: UInt64 = 0
    private var retired: [String] = []
    private var present: Set<String> = []

    var references: [RamFileReference] { (base.map { [$0] } ?? []) + closedLogs + [log.reference] }
    private var logBytes: UInt64 { closedLogs.reduce(UInt64(log.sealedBytes)) { $0 + $1.length } }

    init(_ storage: Storage, session: Identifier, layout: RamLayout, firstEpoch: Epoch) throws {
        self.storage = storage
        self.session = session
        self.layout = layout
        log = try Self.createLog(storage, session, layout, firstEpoch, beginsSession: true)
        appliedLog = log.reference
        present = [log.reference.name]
    }

    init(_ storage: Storage, session: Identifier, layout: RamLayout, files: [RamFileReference]) throws {
        self.storage = storage
        self.session = session
        self.layout = layout
        let logs = files.filter { $0.kind == .log }.sorted { $0.epoch < $1.epoch }
        guard let last = logs.last else { throw StoreModel.Failed("the commit record names no log") }
        let path = "ram/" + last.name
        let size = try storage.size(path)
        guard size >= Int(last.length) else { throw StoreModel.Failed("\(path) is too short") }
        if size > Int(last.length) { try storage.truncate(path, to: Int(last.length)) }
        log = Log(
            firstEpoch: last.epoch, written: Int(last.length), sealedBytes: Int(last.length), chain: last.digest)
        appliedLog = log.reference
        closedLogs = Array(logs.dropLast())
        base = files.first { $0.kind == .base }
        present = Self.names(files)
    }

    private static func createLog(
        _ storage: Storage, _ session: Identifier, _ layout: RamLayout, _ epoch: Epoch, beginsSession: Bool
    ) throws -> Log {
        let header = DeltaLog.header(
            session: session, layoutDigest: layout.digest, firstEpoch: epoch, beginsSession: beginsSession)
        let log = Log(firstEpoch: epoch, written: header.count, sealedBytes: header.count, chain: 0)
        try storage.writeWhole(log.path, header, durable: true)
        try storage.syncDirectory("ram")
        return log
    }

    // MARK: The log

    func append(_ batch: UnsafeRawBufferPointer, epoch: Epoch, digest: RamEpochDigest) throws {
        log.buffer += DeltaLog.batchHeader(
            epoch: epoch, index: digest.batches - 1, length: batch.count, digest: digest.value)
        log.buffer.append(contentsOf: batch)
        if log.buffer.count >= 8192 { try flush() }
    }

    func seal(_ epoch: Epoch, digest: RamEpochDigest) throws {
        let next = DeltaLog.chain(after: log.chain, epoch: epoch, digest: digest)
        log.buffer += DeltaLog.seal(epoch: epoch, digest: digest, chain: next)
        try flush()
        if ![.skipLogSync, .recordBeforeDataSync].contains(storage.mutation) { try storage.sync(log.path) }
        log.chain = next
        log.sealedBytes = log.written
    }

    func lateSync() throws { try storage.sync(log.path) }

    private func flush() throws {
        try storage.write(log.path, at: log.written, log.buffer)
        log.written += log.buffer.count
        log.buffer = []
    }

    func applied() { appliedLog = log.reference }

    func cutToLastApplied() throws {
        guard appliedLog.epoch == log.firstEpoch else { return }
        log.buffer = []
        try storage.truncate(log.path, to: Int(appliedLog.length))
        log.written = Int(appliedLog.length)
        log.sealedBytes = log.written
        log.chain = appliedLog.digest
    }

    // MARK: Files that may go

    private static func names(_ files: [RamFileReference]) -> Set<String> {
        var names = Set(files.map(\.name))
        for file in files where file.kind == .base { names.insert(RamFileReference.sumName(file.epoch)) }
        return names
    }

    private static func names(ofBase epoch: Epoch) -> Set<String> {
        [RamFileReference.baseName(epoch), RamFileReference.sumName(epoch)]
    }

    func retire(but vouched: [RamFileReference]) {
        var needed = Self.names(vouched).union(Self.names(references))
        if let building { needed.formUnion(Self.names(ofBase: building.epoch)) }
        let obsolete = present.subtracting(needed)
        retired += obsolete.sorted()
        present.subtract(obsolete)
    }

    /// For a planted bug only.
    func removeRetired() throws { while let name = retired.popLast() { try storage.remove("ram/" + name) } }

    func retireOthers() { retired += storage.files(in: "ram").filter { !present.contains($0) } }

    func removeOthers() throws {
        for name in storage.files(in: "ram") where !present.contains(name) { try storage.remove("ram/" + name) }
    }

    func removeOwn() throws {
        for name in present.sorted() { try storage.remove("ram/" + name) }
        present = []
    }

    // MARK: Compaction

    func startCompactionIfDue(cache: CacheDirectory, applied: Epoch) throws {
        guard building == nil, logBytes > Self.threshold, logBytes >= retryAt, applied >= log.firstEpoch else { return }
        let nextName = RamFileReference.logName(applied.next)
        do {
            present.formUnion(Self.names(ofBase: applied))
            let new = Base(applied, cache, BaseImageSums(session: session, layout: layout, epoch: applied))
            try storage.create(new.path)
            try storage.truncate(new.path, to: Int(layout.total))
            present.insert(nextName)
            let next = try Self.createLog(storage, session, layout, applied.next, beginsSession: false)
            building = new
            closedLogs.append(log.reference)
            log = next
            appliedLog = next.reference
        } catch let failure as FileFailure {
            if present.remove(nextName) != nil { retired.append(nextName) }
            _ = failure
            giveUp(applied)
        }
    }

    /// Keeps a page as it was for the base that is being written, before it changes.
    func preserve(_ page: Int) throws {
        guard let building, storage.mutation != .staleBase, page >= building.cursor,
            building.copied.insert(page).inserted
        else { return }
        do { try write(page, of: building) } catch is FileFailure { giveUp(building.epoch) }
    }

    func work(maxPages: Int) throws {
        if let name = retired.popLast() { return try storage.remove("ram/" + name) }
        guard let building else { return }
        do {
            var room = maxPages
            while building.cursor < layout.pageCount, room > 0 {
                if !building.copied.contains(building.cursor) { try write(building.cursor, of: building) }
                building.cursor += 1
                room -= 1
            }
            if storage.mutation != .skipBaseSync { try storage.sync(building.path) }
            guard building.cursor == layout.pageCount else { return }
            base = try finish(building)
        } catch let failure as FileFailure {
            giveUp(building.epoch)
            throw failure
        }
        closedLogs.removeAll { $0.epoch <= building.epoch }
        self.building = nil
        retryAt = 0
    }

    private func finish(_ building: Base) throws -> RamFileReference {
        let bytes = building.sums.encoded()
        let isHasty = storage.mutation == .skipBaseSync
        if !isHasty { try storage.sync(building.path) }
        let path = "ram/" + RamFileReference.sumName(building.epoch)
        try storage.writeWhole(path, bytes, durable: !isHasty)
        try storage.syncDirectory("ram")
        let digest = bytes.withUnsafeBytes { BaseImageSums.digest(ofFile: $0) }
        return RamFileReference(kind: .base, epoch: building.epoch, length: layout.total, digest: digest)
    }

    private func write(_ page: Int, of building: Base) throws {
        let source = building.cache.ram.base + page * Sizes.page
        let bytes = Array(UnsafeRawBufferPointer(start: source, count: Sizes.page))
        building.sums.pages[page] = CRC32C.checksum(bytes)
        if bytes.contains(where: { $0 != 0 }) { try storage.write(building.path, at: page * Sizes.page, bytes) }
    }

    private func giveUp(_ epoch: Epoch) {
        retryAt = logBytes + Self.threshold / 4
        building = nil
        let names = Self.names(ofBase: epoch)
        present.subtract(names)
        retired += names.sorted()
    }
}
