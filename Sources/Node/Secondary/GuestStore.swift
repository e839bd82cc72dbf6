import AsyncIO
import BlockReplica
import Checkpointer
import Glibc
import Link
import Logging
import QEMU
import RamCache
import Units

/// One guest's replica: its folder in the store, its RAM cache in tmpfs, and the record that binds them.
///
/// Everything here blocks; it belongs to the replica's own thread. Errors leave the last commit as it was.
final class GuestStore {
    struct Failed: Error, CustomStringConvertible {
        let description: String
    }

    /// A session whose first checkpoint may not be committed yet.
    private struct OpenSession {
        /// That of the files of RAM, layout and identity: the session's own, or of the one that it goes on with.
        var id: Identifier
        let durability: Durability
        let firstEpoch: Epoch
        var identity: [UInt8] = []
        var files: SessionFiles?
        var restore: RestoreStream?
        var ram: RamStore?
        var hasCommitted = false
        var device: [UInt8] = []
    }

    let name: String
    let directory: String
    let ramDirectory: String
    private let storeID: Identifier
    private let ramLogBytes: UInt64?
    private let log: Logger
    private let commitFile: CommitFile
    private(set) var disks: [(id: String, replica: DiskReplica)] = []
    /// Sizes of the disks that were seeded for the first session, by id.
    var seeded: [String: UInt64] = [:]
    /// RAM as of the last commit; nil when there is none, or when it was lost.
    private(set) var ram: RamStore?
    private(set) var files: SessionFiles?
    private var session: OpenSession?
    private var witness: CheckpointWitness?
    /// The restore stream of the last applied checkpoint, without RAM of mapped blocks.
    private(set) var restoreStream: [UInt8] = []
    /// Why the replica cannot be started; nil when it can.
    private(set) var damage: String?

    /// Sockets and logs of a guest that is started here.
    var runDirectory: String { ramDirectory + "/run" }

    var record: CommitRecord? { commitFile.record }
    var committed: Epoch { record?.epoch ?? .none }
    var generation: Generation { record?.generation ?? .first }
    var isPromoted: Bool { record?.role == .promoted }
    var diskDescriptions: [(id: String, size: UInt64)] { disks.map { ($0.id, $0.replica.size) } }
    /// The secondary disks, which alone are the last checkpoint until the first disk frame of a session.
    var diskFiles: [(path: String, size: UInt64)] {
        disks.map { ("\(diskDirectory($0.id))/\(DiskFiles.secondary)", $0.replica.size) }
    }
    /// For each disk `good`, or why it takes no more writes.
    var diskHealth: [String] {
        disks.map { $0.replica.state.hasFailed ? "failed: the epoch is given up, see the log" : "good" }
    }
    /// `good`, or why the checkpoint's RAM cannot be had; nil when nothing is committed.
    var ramHealth: String? {
        guard let record else { return nil }
        guard let ram else { return "lost" }
        return ram.applied == record.epoch ? "good" : "holds epoch \(ram.applied ?? .none) instead of \(record.epoch)"
    }
    var ramBytes: UInt64 { files?.layout.blocks.reduce(0) { $0 + $1.length } ?? 0 }

    // MARK: Opening

    /// See ``GuestFolder/create()``.
    static func create(directory: String) throws { try GuestFolder(path: directory).create() }

    /// Opens a guest's folder and makes it agree with its commit record: what came later is rolled back.
    ///
    /// - Parameter ramLogBytes: length of the RAM's logs at which a new base is begun; nil: half of the RAM, 64 MiB or more.
    init(
        name: String, directory: String, ramDirectory: String, storeID: Identifier, ramLogBytes: UInt64? = nil,
        log: Logger
    ) throws {
        self.ramLogBytes = ramLogBytes
        self.name = name
        self.directory = directory
        self.ramDirectory = ramDirectory
        self.storeID = storeID
        self.log = log
        commitFile = try CommitFile(path: "\(directory)/commit", store: storeID)
        try recover()
    }

    private func recover() throws {
        let plan = RecoveryPlan(choice: commitFile.found, listing: try folder.listing())
        for finding in plan.findings {
            log.log(level: finding.severity == .notice ? .info : .warning, "\(name): \(finding)")
        }
        guard plan.isUsable else {
            damage = plan.findings.filter { $0.severity == .damage }.map(\.text).joined(separator: "; ")
            return
        }
        for action in plan.actions { try perform(action) }
        guard let record else { return }
        for disk in record.disks {
            disks.append((disk.id, try openDisk(disk.id, durable: record.durability == .disk)))
        }
        do {
            let files = try SessionFiles.read(guestDirectory: directory, session: record.session)
            self.files = files
            ram = try RamStore.open(
                try ramConfiguration(record.durability), session: record.session, layout: try layout(of: files),
                committed: record.epoch, files: try record.ramFiles.map { try RamFileReference($0) })
            try buildRestoreStream(files: files, ram: ram, device: try readDevice(record))
        } catch {
            damage = "\(error)"
            log.error("\(name): checkpoint \(record.epoch) cannot be started", metadata: ["reason": "\(error)"])
        }
    }

    private func perform(_ action: RecoveryPlan.Action) throws {
        log.info("\(name): recovery: \(action)")
        try folder.perform(action) { id, epoch in
            _ = try openDisk(id, durable: true).recover(committed: epoch)
        }
    }

    private var folder: GuestFolder { GuestFolder(path: directory) }
    func diskDirectory(_ id: String) -> String { folder.disk(id) }

    private func openDisk(_ id: String, durable: Bool) throws -> DiskReplica {
        // As much as a primary's budget lets it send between a boundary and the seal before it.
        var limits = DiskReplica.Limits()
        limits.bufferBytes = 256 << 20
        return try DiskReplica(directory: diskDirectory(id), durable: durable, limits: limits)
    }

    private func ramConfiguration(_ durability: Durability) throws -> RamStore.Configuration {
        var configuration = RamStore.Configuration(
            directory: "\(directory)/ram", tmpfs: ramDirectory, durability: durability)
        configuration.logLimitBytes = ramLogBytes
        return configuration
    }

    private func layout(of files: SessionFiles) throws -> RamLayout {
        try RamLayout(blocks: files.layout.blocks.map { RamLayout.Block(name: $0.name, length: $0.length) })
    }

    private func readDevice(_ record: CommitRecord) throws -> [UInt8] {
        guard let device = record.device else { throw Failed(description: "the record names no device state") }
        let path = "\(directory)/device/\(device.name)"
        let bytes = try WholeFile.read(path, limit: 256 << 20)
        guard UInt64(bytes.count) == device.length, CRC32C.checksum(bytes) == device.checksum else {
            throw Failed(description: "\(path): the device state of checkpoint \(record.epoch) is damaged (checksum)")
        }
        return bytes
    }

    // MARK: Session

    /// Begins a session: disks rolled back to the last checkpoint, or made new.
    func beginSession(_ hello: Hello) throws -> Epoch {
        precondition(session == nil, "one session at a time")
        try commitFile.settle()
        let durable = hello.durability == .disk
        if record == nil {
            try prepareDisks(hello.disks, durable: durable)
        } else {
            try checkDisks(hello)
        }
        let before = disks
        disks = []
        disks = try hello.disks.map { ($0.id, try openDisk($0.id, durable: durable)) }
        for disk in disks {
            if let old = before.first(where: { $0.id == disk.id }) { disk.replica.adoptViews(of: old.replica) }
        }
        try checkFiles(hello)
        for disk in disks { _ = try disk.replica.recover(committed: committed) }
        let first = committed.next
        session = OpenSession(id: hello.session, durability: hello.durability, firstEpoch: first)
        for disk in disks { try disk.replica.beginEpoch(first, preserve: record != nil) }
        return first
    }

    /// A file that was cut or replaced behind our back. What is not compared with the guest's must not be relied on.
    private func checkFiles(_ hello: Hello) throws {
        for (disk, wanted) in zip(disks, hello.disks) where disk.replica.size != wanted.size {
            throw Refuse(
                code: .identityMismatch,
                message:
                    "disk '\(disk.id)' of replica '\(name)' has \(disk.replica.size) bytes in the store and "
                    + "\(wanted.size) in the guest: its file was changed by somebody else. 'colo-blk remove \(name)' "
                    + "on the secondary, then attach again")
        }
    }

    private func checkDisks(_ hello: Hello) throws {
        let known = (record?.disks ?? []).map { Hello.Disk(id: $0.id, size: $0.size) }
        guard known == hello.disks else {
            func text(_ disks: [Hello.Disk]) -> String {
                disks.map { "\($0.id) (\($0.size) bytes)" }.joined(separator: ", ")
            }
            throw Refuse(
                code: .identityMismatch,
                message:
                    "replica '\(name)' has the disks [\(text(known))], the guest has [\(text(hello.disks))]: attach "
                    + "under another --guest name, or 'colo-blk remove \(name)' on the secondary first")
        }
    }

    func keepIdentity(_ json: [UInt8]) { session?.identity = json }

    func layOutRam(_ payload: RamLayoutPayload) throws {
        guard var session else { throw Failed(description: "no session is open") }
        let files = SessionFiles(identity: session.identity, layout: payload)
        let layout = try layout(of: files)
        if let kept = keptRam(files, session.durability), let record {
            session.id = record.session
            session.restore = try RestoreStream(
                configuration: payload.configuration, ramSectionID: payload.ramSectionID, blocks: files.blocks,
                mapped: try files.mappedBlocks())
            try kept.beginEpoch(session.firstEpoch)
            session.files = files
            session.ram = kept
            session.hasCommitted = true
            self.session = session
            return
        }
        try files.write(
            guestDirectory: directory, session: session.id, durable: session.durability == .disk)
        session.restore = try RestoreStream(
            configuration: payload.configuration, ramSectionID: payload.ramSectionID, blocks: files.blocks,
            mapped: try files.mappedBlocks())
        let ram = try RamStore.create(
            try ramConfiguration(session.durability), session: session.id, layout: layout,
            firstEpoch: session.firstEpoch)
        try ram.beginEpoch(session.firstEpoch)
        session.files = files
        session.ram = ram
        self.session = session
    }

    /// The RAM of the last commit, when the same machine comes back: then its first epoch is one like any other, and only
    /// pages that differ have to travel. Another machine, or another durability, gets a cache of its own.
    private func keptRam(_ files: SessionFiles, _ durability: Durability) -> RamStore? {
        guard damage == nil, let record, let ram, let known = self.files else { return nil }
        let isSame = known.layout == files.layout && known.identity == files.identity
        // What a session before could not drop (its disk had failed) is not gone on with.
        let isWhole = ram.isIdle && ram.applied == record.epoch && record.durability == durability
        return isSame && isWhole ? ram : nil
    }

    /// The RAM cache that the open session goes on with; nil when it has a new one.
    var continuedRam: RamStore? { session?.hasCommitted == true ? session?.ram : nil }
    /// Whether a checkpoint of the open session is committed.
    var sessionHasCheckpoint: Bool { session.map { committed >= $0.firstEpoch } ?? false }

    private func disk(_ index: Int) throws -> DiskReplica {
        guard disks.indices.contains(index) else {
            throw LinkFault(description: "disk \(index) of \(disks.count)")
        }
        return disks[index].replica
    }

    func write(epoch: Epoch, _ write: DiskWrite) throws {
        let disk = try disk(write.disk)
        guard write.range.fits(in: disk.size) else {
            throw LinkFault(description: "a write behind the end of the disk")
        }
        try disk.write(epoch: epoch, offset: write.offset, bytes: write.data)
    }

    func zero(epoch: Epoch, _ extent: DiskExtent) throws {
        let disk = try disk(extent.disk)
        guard extent.range.fits(in: disk.size) else {
            throw LinkFault(description: "zeroes behind the end of the disk")
        }
        if extent.kind == .diskDiscard {
            try disk.discard(epoch: epoch, range: extent.range)
        } else {
            try disk.writeZeroes(epoch: epoch, range: extent.range)
        }
    }

    func boundary(opened: Epoch) throws {
        for disk in disks { try disk.replica.beginEpoch(opened, preserve: true) }
    }

    func stage(epoch: Epoch, _ batch: UnsafeRawBufferPointer) throws {
        guard let ram = session?.ram else { throw LinkFault(description: "RAM before its layout") }
        try ram.stage(epoch: epoch, batch: batch)
    }

    /// The device state of an epoch begins. Its room grows with what comes, not with what was announced.
    func expectDeviceState() { session?.device.removeAll(keepingCapacity: true) }

    func appendDeviceState(_ bytes: UnsafeRawBufferPointer) { session?.device.append(contentsOf: bytes) }

    // MARK: Commit

    /// Makes a sealed epoch the committed one: disks drained, RAM sealed, device state written, and then the record.
    func commit(_ epoch: Epoch) throws {
        guard var session, let ram = session.ram, session.files != nil else {
            throw LinkFault(description: "a seal before RAM was laid out")
        }
        let durable = session.durability == .disk
        for disk in disks { _ = try disk.replica.seal(epoch: epoch) }
        _ = try ram.seal(epoch: epoch)
        let state = StoreFileName.deviceState(epoch).name
        try WholeFile.write("\(directory)/device/\(state)", session.device, durable: durable)
        if durable {
            try DirectFile.syncDirectory("\(directory)/device")
            try DirectFile.syncDirectory("\(directory)/ram")
        }
        let previous = record
        let device = CommitRecord.DeviceFile(
            name: state, length: UInt64(session.device.count), checksum: CRC32C.checksum(session.device))
        try commitFile.append(durable: durable) { sequence in
            CommitRecord(
                store: storeID, session: session.id, guest: name, sequence: sequence, generation: generation,
                epoch: epoch, role: .replica, durability: session.durability,
                wallClockMilliseconds: MonotonicClock.wallMilliseconds(),
                ramSectionID: session.files?.layout.ramSectionID ?? 0,
                ramFiles: ram.recoveryFiles.map { CommitRecord.RamFile($0) }, device: device,
                disks: disks.map { CommitRecord.Disk(id: $0.id, size: $0.replica.size) })
        }
        damage = nil
        if !session.hasCommitted {
            session.hasCommitted = true
            self.session = session
            files = session.files
            self.ram = ram
            SessionFiles.removeOthers(guestDirectory: directory, keeping: session.id)
        }
        for disk in disks { try disk.replica.committed(epoch) }
        if let old = previous?.device?.name, old != state { try? Directory.removeFile("\(directory)/device/\(old)") }
    }

    /// Brings the RAM cache to the committed epoch and prebuilds the restore stream.
    func apply(_ epoch: Epoch) throws {
        guard let current = session, let ram = current.ram, let restore = current.restore else { return }
        do {
            try ram.apply(epoch: epoch)
            try ram.committed(epoch)
            try build(restore, ram: ram, device: current.device)
            try ram.beginEpoch(epoch.next)
        } catch {
            // The record says that this epoch is committed, so its sealed RAM must not be dropped with the session.
            damage =
                "checkpoint \(epoch) is committed, but its RAM could not be applied (\(error)); "
                + "start the daemon again to recover it"
            session?.ram = nil
            self.ram = nil
            throw error
        }
    }

    /// Work that can wait until the primary was answered: space of dropped files, compaction of the RAM log.
    func tidy() {
        do {
            for disk in disks {
                disk.replica.foldViewsLater()
                disk.replica.reclaimLater()
            }
            _ = try ram?.compactSlice(maxBytes: 16 << 20)
        } catch {
            log.warning("\(name): tidying up failed and will be tried again", metadata: ["reason": "\(error)"])
        }
    }

    /// All of the checkpoint for a QEMU that maps nothing.
    func fullStream() throws -> FullStream {
        guard let record, let files, let ram else { throw Failed(description: "there is no checkpoint to start") }
        return FullStream(
            restore: try RestoreStream(
                configuration: files.layout.configuration, ramSectionID: files.layout.ramSectionID,
                blocks: files.blocks, mapped: []),
            paths: files.blocks.indices.map { ram.mappedPath(block: $0) }, fresh: try files.mappedBlocks(),
            deviceState: try readDevice(record))
    }

    private func buildRestoreStream(files: SessionFiles, ram: RamStore?, device: [UInt8]) throws {
        guard let ram else { return }
        let restore = try RestoreStream(
            configuration: files.layout.configuration, ramSectionID: files.layout.ramSectionID, blocks: files.blocks,
            mapped: try files.mappedBlocks())
        try build(restore, ram: ram, device: device)
    }

    private func build(_ restore: RestoreStream, ram: RamStore, device: [UInt8]) throws {
        restoreStream.removeAll(keepingCapacity: true)
        try device.withUnsafeBytes { bytes in
            try restore.build(
                smallBlockPages: { ram.contents(block: $0) }, deviceState: bytes, into: &restoreStream)
        }
    }

    /// Ends a session: its open epoch is dropped, the disks go back to the last checkpoint.
    func endSession() throws {
        guard let ended = session else { return }
        session = nil
        // First of all: a record whose writing failed must not be found again once its epoch is rolled back.
        try commitFile.settle()
        try ended.ram?.discardOpenEpoch()
        if record == nil {
            // What has come of the initial copy stays: the next one is compared with it. But behind a failed write or
            // sync it can be read and yet be lost with the power, without ever being written again.
            let doubtful = disks.filter { $0.replica.state.hasFailed }.map(\.id)
            disks = []
            for id in doubtful { try perform(.deleteDisk(id)) }
            return
        }
        for disk in disks { _ = try disk.replica.recover(committed: committed) }
    }

    // MARK: Failover

    /// Ends the session without touching what it wrote: the hidden disks take the guest back to the checkpoint.
    /// Records that the replica is now the guest, under a new generation. From here on no primary may write to it.
    func promote() throws {
        guard let old = record else { throw Failed(description: "nothing has been committed for '\(name)' yet") }
        try finishRollback()
        try session?.ram?.discardOpenEpoch()
        session = nil
        try stopDisks()
        try commitFile.append(durable: true) { sequence in
            var new = old
            new.sequence = sequence
            new.generation = old.generation.next
            new.role = .promoted
            return new
        }
        witness = try CheckpointWitness.take(of: diskFolders)
    }

    /// What the open epoch has buffered is forgotten, and what is being drained, or removed, is done: from now on nobody
    /// writes below the guest's own disks but the guest.
    private func stopDisks() throws {
        for disk in disks where disk.replica.state.stage == .running { try disk.replica.beginFailover() }
    }

    /// A rollback that failed has left a secondary disk between two moments, and perhaps a hidden disk over one that is
    /// gone: no chain of files shows the checkpoint before it is done.
    private func finishRollback() throws {
        for disk in disks where disk.replica.state.hasFailed {
            do {
                _ = try disk.replica.recover(committed: committed)
            } catch {
                throw Failed(
                    description: "disk '\(disk.id)' of '\(name)' could not be rolled back to checkpoint \(committed) "
                        + "(\(error)); nothing was changed otherwise: make that possible and try again")
            }
        }
    }

    /// Keeps what the disks of the checkpoint looked like at the promotion, for ``checkUnmerged()``.
    func rememberCheckpoint() throws { try witness?.save(directory: directory) }

    /// Whether the disks under the guest's own are still those of the checkpoint, so that it can be started again. A
    /// guest that ran may have been merged down (`block-commit`); then RAM of the checkpoint must never meet them.
    func checkUnmerged() throws {
        guard let before = try? CheckpointWitness.load(directory: directory) else {
            throw Failed(
                description:
                    "what the disks of '\(name)' looked like at its failover was not kept (a crash at that moment?): "
                    + "whether its guest has written to them cannot be told. Start QEMU on the disks by hand")
        }
        guard try before == CheckpointWitness.take(of: diskFolders) else {
            throw Failed(
                description: "the disks below '\(name)' have changed since its failover (a block-commit?): checkpoint "
                    + "\(committed) is gone, and starting it would destroy the disks. Start QEMU on the disks by hand"
            )
        }
    }

    private var diskFolders: [String] { (record?.disks ?? []).map { diskDirectory($0.id) } }

    /// Makes a fresh overlay for each disk on top of the last checkpoint; returns their paths by disk id.
    func makeActiveDisks(_ file: StoreFileName) throws -> [String: String] {
        var paths: [String: String] = [:]
        for disk in disks { paths[disk.id] = try disk.replica.createActive(name: file.name, after: committed) }
        return paths
    }
}

/// The peer broke a rule that only the store can judge.
struct LinkFault: Error, CustomStringConvertible {
    let description: String
}

extension CommitRecord.RamFile {
    init(_ file: RamFileReference) {
        self.init(kind: file.kind == .base ? .base : .log, name: file.name, length: file.length, digest: file.digest)
    }
}

extension RamFileReference {
    /// - Throws: when a record names a file as no RAM store does.
    init(_ file: CommitRecord.RamFile) throws {
        switch (file.kind, StoreFileName(file.name)) {
        case (.base, .base(let epoch)):
            self.init(kind: .base, epoch: epoch, length: file.length, digest: file.digest)
        case (.log, .log(let epoch)):
            self.init(kind: .log, epoch: epoch, length: file.length, digest: file.digest)
        default:
            throw GuestStore.Failed(
                description: "the commit record names '\(file.name)' as a RAM file, which it cannot be")
        }
    }
}
