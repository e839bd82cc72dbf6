import AsyncIO
import RamCache
import Units

/// The files of one session in `ram/`: which of them recovery needs, which may go, and when a base replaces the logs.
/// Confined to the storage thread.
final class RamDiskFiles {
    private let directory: String
    private let session: Identifier
    private let layout: RamLayout
    /// Logs longer than this (bytes) are due for a base.
    let threshold: UInt64

    /// The base that recovery starts from; nil = from the session's first epoch, whose log holds everything.
    private(set) var base: RamFileReference?
    private var closedLogs: [RamFileReference] = []
    /// The log that the open epoch goes to.
    private(set) var log: RamLog
    private(set) var building: RamBaseWriter?
    private(set) var compactions = 0
    private(set) var compactionFailure: String?
    /// After a failed compaction: log bytes at which it is tried again.
    private var retryAt: UInt64 = 0
    /// Log bytes when the last slice ended.
    private var logBytesAtSlice: UInt64 = 0
    /// The log as of the last applied epoch.
    private var appliedLog: RamFileReference
    /// Names of this session's files that are neither needed nor removed yet.
    private var retired: [String] = []
    /// Names of this session's files that exist.
    private var present: Set<String> = []

    /// Starts with an empty log.
    init(
        _ configuration: RamStore.Configuration, session: Identifier, layout: RamLayout, firstEpoch: Epoch
    ) throws(RamStoreError) {
        directory = configuration.directory
        self.session = session
        self.layout = layout
        threshold = configuration.logLimitBytes ?? max(configuration.compactionMinimumBytes, layout.total / 2)
        log = try RamLog.create(
            directory: configuration.directory, session: session, layout: layout, firstEpoch: firstEpoch,
            beginsSession: true)
        appliedLog = log.reference
        present = [log.reference.name]
    }

    /// Goes on behind what a commit record names.
    init(
        _ configuration: RamStore.Configuration, session: Identifier, layout: RamLayout, files: [RamFileReference]
    ) throws(RamStoreError) {
        directory = configuration.directory
        self.session = session
        self.layout = layout
        threshold = configuration.logLimitBytes ?? max(configuration.compactionMinimumBytes, layout.total / 2)
        let logs = files.filter { $0.kind == .log }.sorted { $0.epoch < $1.epoch }
        guard let last = logs.last else {
            throw RamStoreError(
                .incomplete(reason: "the commit record names no log"), path: configuration.directory)
        }
        for file in files { try Self.check(file, in: configuration.directory) }
        log = try RamLog.open(directory: configuration.directory, reference: last)
        appliedLog = log.reference
        closedLogs = Array(logs.dropLast())
        base = files.first { $0.kind == .base }
        present = Self.names(files)
    }

    /// A file that a commit record names is there and long enough.
    private static func check(_ reference: RamFileReference, in directory: String) throws(RamStoreError) {
        let path = directory + "/" + reference.name
        let size = try RamStoreError.wrap(reference.epoch) { () throws(IOError) in
            try DirectFile(path: path, mode: .readOnly, direct: false).size()
        }
        guard size >= reference.length else {
            let error = RamFormatError(.length, offset: size, value: reference.length, epoch: reference.epoch)
            throw RamStoreError(.damaged(error), path: path, epoch: reference.epoch)
        }
    }

    /// The names of files that references stand for.
    private static func names(_ files: [RamFileReference]) -> Set<String> {
        var names = Set(files.map(\.name))
        for file in files where file.kind == .base { names.insert(RamFileReference.sumName(file.epoch)) }
        return names
    }

    /// What a commit record must name now.
    var references: [RamFileReference] { (base.map { [$0] } ?? []) + closedLogs + [log.reference] }

    /// Bytes of the logs that recovery reads.
    var logBytes: UInt64 { closedLogs.reduce(log.sealedBytes) { $0 + $1.length } }

    /// Bytes that all files occupy on disk.
    var occupiedBytes: UInt64 {
        var total: UInt64 = 0
        for name in present {
            let path = directory + "/" + name
            total += (try? DirectFile(path: path, mode: .readOnly, direct: false).allocatedBytes()) ?? 0
        }
        return total
    }

    /// The epoch in the log was applied; nothing takes it back any more.
    func applied() { appliedLog = log.reference }

    /// Takes back everything behind the last applied epoch.
    func cutToLastApplied() throws(RamStoreError) {
        if appliedLog.epoch == log.firstEpoch { try log.cut(to: appliedLog) }
    }

    // MARK: Files that may go

    /// Files of this session that neither these references nor the present ones name are removed later.
    func retire(but vouched: [RamFileReference]) {
        var needed = Self.names(vouched).union(Self.names(references))
        if let building { needed.formUnion(Self.names(ofBase: building.epoch)) }
        let obsolete = present.subtracting(needed)
        retired += obsolete.sorted()
        present.subtract(obsolete)
    }

    /// The same for the files of former sessions.
    func retireOthers() throws(RamStoreError) {
        for name in try namesOnDisk() where !present.contains(name) { retired.append(name) }
    }

    /// Removes everything in the directory that is not this session's.
    func removeOthers() throws(RamStoreError) {
        for name in try namesOnDisk() where !present.contains(name) { try remove(name) }
    }

    /// Removes this session's files: it is over.
    func removeOwn() throws(RamStoreError) {
        for name in present { try remove(name) }
        present = []
    }

    private func namesOnDisk() throws(RamStoreError) -> [String] {
        let names = try RamStoreError.wrap { () throws(IOError) in try Directory.names(in: directory) }
        return names.filter { $0.hasPrefix("delta-") || $0.hasPrefix("base-") }
    }

    private func remove(_ name: String) throws(RamStoreError) {
        try RamStoreError.wrap { () throws(IOError) in try Directory.removeFile(directory + "/" + name) }
    }

    private static func names(ofBase epoch: Epoch) -> Set<String> {
        [RamFileReference.baseName(epoch), RamFileReference.sumName(epoch)]
    }

    // MARK: Compaction

    /// Starts a base of the applied epoch when the logs are long, and a new log for the epochs behind it. No epoch may
    /// be open. A failure is remembered and tried again when the logs have grown by a quarter of the threshold.
    func startCompactionIfDue(cache: RamCacheFiles, applied: Epoch) {
        guard building == nil, logBytes > threshold, logBytes >= retryAt, applied >= log.firstEpoch else { return }
        let nextName = RamFileReference.logName(applied.next)
        do throws(RamStoreError) {
            present.formUnion(Self.names(ofBase: applied))
            let writer = try RamBaseWriter(
                directory: directory, session: session, cache: cache, epoch: applied)
            present.insert(nextName)
            let next = try RamLog.create(
                directory: directory, session: session, layout: layout, firstEpoch: applied.next,
                beginsSession: false)
            building = writer
            closedLogs.append(log.reference)
            log = next
            appliedLog = next.reference
            logBytesAtSlice = logBytes
        } catch {
            if present.remove(nextName) != nil { retired.append(nextName) }
            giveUp(error, epoch: applied)
        }
    }

    /// Keeps a page as it was for the base that is being written, before it changes.
    func preserve(_ page: Int, in writer: RamBaseWriter) {
        do throws(RamStoreError) {
            try writer.preserve(page)
        } catch {
            giveUp(error, epoch: writer.epoch)
        }
    }

    /// One piece of background work; true when there is none left.
    func work(maxBytes: Int) throws(RamStoreError) -> Bool {
        if let name = retired.popLast() {
            try remove(name)
            return false
        }
        guard let writer = building else { return true }
        // Twice what the logs grew by: the base is done before they have grown by half of the RAM.
        let grown = Int(logBytes - min(logBytes, logBytesAtSlice))
        do throws(RamStoreError) {
            let isComplete = try writer.slice(maxBytes: max(maxBytes, 2 * grown))
            logBytesAtSlice = logBytes
            guard isComplete else { return false }
            base = try writer.finish()
        } catch {
            giveUp(error, epoch: writer.epoch)
            throw error
        }
        closedLogs.removeAll { $0.epoch <= writer.epoch }
        building = nil
        compactions += 1
        compactionFailure = nil
        retryAt = 0
        return true
    }

    private func giveUp(_ error: RamStoreError, epoch: Epoch) {
        compactionFailure = error.description
        retryAt = logBytes + threshold / 4
        building = nil
        // The next start takes a later epoch, so these names do not come back before they are removed.
        let names = Self.names(ofBase: epoch)
        present.subtract(names)
        retired += names.sorted()
    }
}
