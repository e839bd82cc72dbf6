import BlockReplica
import Checkpointer
import Link
import RamCache
import Units

/// Stands for Node's GuestStore: one guest's files and what binds them, in the order of docs/store-format.md.
final class StoreModel {
    struct Failed: Error, CustomStringConvertible {
        let description: String
        init(_ description: String) { self.description = description }
    }

    private struct OpenSession {
        var id: Identifier
        let durability: Durability
        let firstEpoch: Epoch
        var identity: [UInt8] = []
        var layout: RamLayoutPayload?
        var ram: RamModel?
        var hasCommitted = false
        var device: [UInt8] = []
    }

    static let id = Identifier(high: 0x1111, low: 0x2222)
    static let guest = "guest"

    private let storage: Storage
    private let commitFile: CommitFileModel
    private(set) var disks: [DiskModel] = []
    private(set) var ram: RamModel?
    /// That of the checkpoint's session.
    private var identity: [UInt8] = []
    private var session: OpenSession?
    private(set) var damage: String?
    let findings: [RecoveryPlan.Finding]

    var record: CommitRecord? { commitFile.record }
    var committed: Epoch { record?.epoch ?? .none }
    var generation: Generation { record?.generation ?? .first }
    var isPromoted: Bool { record?.role == .promoted }
    var hasSession: Bool { session != nil }

    static func exists(_ storage: Storage) -> Bool { storage.exists(CommitFileModel.path) }

    // MARK: Opening

    init(_ storage: Storage) throws {
        self.storage = storage
        if !Self.exists(storage) { try CommitFileModel.create(storage) }
        commitFile = try CommitFileModel(storage, store: Self.id)
        let plan = RecoveryPlan(choice: commitFile.found, listing: try Self.listing(storage))
        findings = plan.findings
        guard plan.isUsable else {
            damage = plan.findings.filter { $0.severity == .damage }.map(\.text).joined(separator: "; ")
            return
        }
        for action in plan.actions { try perform(action) }
        guard let record else { return }
        for disk in record.disks {
            disks.append(try DiskModel(disk.id, storage: storage, durable: record.durability == .disk))
        }
        do {
            let layout = try readSession(record.session)
            ram = try RamModel.open(
                storage, session: record.session, layout: layout, committed: record.epoch,
                files: try record.ramFiles.map(Self.reference), durable: record.durability == .disk)
            _ = try readDevice(record)
        } catch let halt as Halt {
            throw halt
        } catch {
            damage = "\(error)"
        }
    }

    private static func listing(_ storage: Storage) throws -> StoreListing {
        func files(_ folder: String) throws -> [StoreListing.File] {
            try storage.files(in: folder).map {
                StoreListing.File(name: $0, length: UInt64(try storage.size("\(folder)/\($0)")))
            }
        }
        var listing = StoreListing(ram: try files("ram"), device: try files("device"))
        for id in Set(storage.files(in: "disks").map { String($0.prefix { $0 != "/" }) }) {
            listing.disks[id] = try files("disks/\(id)")
        }
        return listing
    }

    private func perform(_ action: RecoveryPlan.Action) throws {
        switch action {
        case .rollBackDisk(let id, let epoch):
            try DiskModel(id, storage: storage, durable: true).recover(committed: epoch)
        case .truncate(let folder, let file, let length):
            try storage.truncate("\(folder)/\(file)", to: Int(length))
            try storage.sync("\(folder)/\(file)")
        case .deleteFile(let folder, let file):
            try storage.remove("\(folder)/\(file)")
        case .deleteDisk(let id):
            for file in storage.files(in: "disks/\(id)") { try storage.remove("disks/\(id)/\(file)") }
        }
    }

    private static func reference(_ file: CommitRecord.RamFile) throws -> RamFileReference {
        switch (file.kind, StoreFileName(file.name)) {
        case (.base, .base(let epoch)):
            return RamFileReference(kind: .base, epoch: epoch, length: file.length, digest: file.digest)
        case (.log, .log(let epoch)):
            return RamFileReference(kind: .log, epoch: epoch, length: file.length, digest: file.digest)
        default:
            throw Failed("the commit record names \(file.name) as a RAM file")
        }
    }

    func readDevice(_ record: CommitRecord) throws -> [UInt8] {
        guard let device = record.device else { throw Failed("the record names no device state") }
        let bytes = try storage.readAll("device/\(device.name)")
        guard UInt64(bytes.count) == device.length, CRC32C.checksum(bytes) == device.checksum else {
            throw Failed("device/\(device.name) is damaged (checksum)")
        }
        return bytes
    }

    // MARK: Session files

    private func writeSession(_ session: OpenSession, _ payload: RamLayoutPayload) throws {
        var writer = ByteWriter()
        writer.write(CRC32C.checksum(session.identity))
        payload.encode(into: &writer)
        writer.write(CRC32C.checksum(writer.bytes))
        let folder = "sessions/\(session.id.hex)"
        let durable = session.durability == .disk && storage.mutation != .skipSessionSync
        try storage.writeWhole("\(folder)/guest.json", session.identity, durable: durable)
        try storage.writeWhole("\(folder)/layout", writer.bytes, durable: durable)
        if durable { try storage.syncDirectory(folder) }
    }

    private func readSession(_ id: Identifier) throws -> RamLayout {
        let identity = try storage.readAll("sessions/\(id.hex)/guest.json")
        let bytes = try storage.readAll("sessions/\(id.hex)/layout")
        guard bytes.count > 8 else { throw Failed("layout has \(bytes.count) bytes") }
        let body = Array(bytes[..<(bytes.count - 4)])
        func word(_ start: Int) -> UInt32 { bytes[start..<start + 4].reduce(UInt32(0)) { $0 << 8 | UInt32($1) } }
        guard CRC32C.checksum(body) == word(bytes.count - 4), word(0) == CRC32C.checksum(identity) else {
            throw Failed("layout or guest.json is damaged (checksum)")
        }
        self.identity = identity
        return try Self.layout(body[4...].withUnsafeBytes { try RamLayoutPayload.decode($0) })
    }

    private static func layout(_ payload: RamLayoutPayload) throws -> RamLayout {
        try RamLayout(blocks: payload.blocks.map { RamLayout.Block(name: $0.name, length: $0.length) })
    }

    // MARK: Session

    func beginSession(_ hello: Hello) throws -> Epoch {
        precondition(session == nil, "one session at a time")
        try commitFile.settle()
        let durable = hello.durability == .disk
        if record == nil {
            try prepareDisks(hello.disks, durable: durable)
        } else {
            let known = (record?.disks ?? []).map { Hello.Disk(id: $0.id, size: $0.size) }
            guard known == hello.disks else { throw Refuse(code: .identityMismatch, message: "other disks") }
        }
        disks = []
        disks = try hello.disks.map { try DiskModel($0.id, storage: storage, durable: durable) }
        guard disks.map(\.size) == hello.disks.map(\.size) else {
            throw Refuse(code: .identityMismatch, message: "a disk's file has another size")
        }
        for disk in disks { try disk.recover(committed: committed) }
        let first = committed.next
        session = OpenSession(id: hello.session, durability: hello.durability, firstEpoch: first)
        for disk in disks { try disk.beginEpoch(first, preserve: record != nil) }
        return first
    }

    /// What a first session that never came to a commit has left of a disk of the same size is kept.
    private func prepareDisks(_ wanted: [Hello.Disk], durable: Bool) throws {
        for file in storage.files(in: "disks") {
            let path = "disks/\(file)"
            let isKept = wanted.contains {
                path == "disks/\($0.id)/secondary.raw" && storage.image.size(path) == Int($0.size)
            }
            if !isKept { try storage.remove(path) }
        }
        for disk in wanted where !storage.exists("disks/\(disk.id)/secondary.raw") {
            try DiskModel.create(disk.id, size: disk.size, storage: storage, durable: durable)
        }
        guard durable, storage.mutation != .removedMayComeBack else { return }
        for disk in wanted { try storage.syncDirectory("disks/\(disk.id)") }
    }

    func keepIdentity(_ json: [UInt8]) { session?.identity = json }

    func layOutRam(_ payload: RamLayoutPayload) throws {
        guard let open = session else { throw Failed("no session is open") }
        let layout = try Self.layout(payload)
        if let record, let ram, damage == nil, ram.isIdle, ram.applied == record.epoch,
            record.durability == open.durability, ram.layout == layout, identity == open.identity
        {
            try ram.beginEpoch(open.firstEpoch)
            session?.id = record.session
            session?.layout = payload
            session?.ram = ram
            session?.hasCommitted = true
            return
        }
        try writeSession(open, payload)
        let ram = try RamModel.create(
            storage, session: open.id, layout: layout, firstEpoch: open.firstEpoch, durable: open.durability == .disk)
        try ram.beginEpoch(open.firstEpoch)
        session?.layout = payload
        session?.ram = ram
    }

    /// The session whose files the open one goes on with, and its own first epoch; nil when it has files of its own.
    var continued: (files: Identifier, first: Epoch)? {
        guard let session, continuedRam != nil else { return nil }
        return (session.id, session.firstEpoch)
    }

    /// The RAM that the open session goes on with; nil when it has a new cache.
    var continuedRam: RamModel? { session?.hasCommitted == true ? session?.ram : nil }

    func write(epoch: Epoch, _ write: DiskWrite) throws {
        guard disks.indices.contains(write.disk), write.range.fits(in: disks[write.disk].size) else {
            throw Failed("a write outside of the disks")
        }
        try disks[write.disk].write(epoch: epoch, offset: write.offset, bytes: write.data)
    }

    func zero(epoch: Epoch, _ extent: DiskExtent) throws {
        guard disks.indices.contains(extent.disk), extent.range.fits(in: disks[extent.disk].size) else {
            throw Failed("zeroes outside of the disks")
        }
        try disks[extent.disk].writeZeroes(epoch: epoch, range: extent.range)
    }

    func boundary(opened: Epoch) throws {
        for disk in disks { try disk.beginEpoch(opened, preserve: true) }
    }

    func stage(epoch: Epoch, _ batch: UnsafeRawBufferPointer) throws {
        guard let ram = session?.ram else { throw Failed("RAM before its layout") }
        try ram.stage(epoch: epoch, batch: batch)
    }

    func expectDeviceState() { session?.device = [] }
    func appendDeviceState(_ bytes: UnsafeRawBufferPointer) { session?.device.append(contentsOf: bytes) }

    /// Has drained what waits, in the background. Returns whether there is something to do.
    func drainLater() -> Bool { disks.reduce(false) { $1.drainLater() || $0 } }

    /// A piece of that. Its failure is the next call's.
    func drainStep(_ index: Int) throws -> Bool {
        guard disks.indices.contains(index) else { return false }
        do { return try disks[index].drainStep() } catch let halt as Halt { throw halt } catch { return false }
    }

    var diskCount: Int { disks.count }

    // MARK: Commit

    /// The disks' part of a commit, which may be done before the rest of it.
    func sealDisks(_ epoch: Epoch) throws {
        for disk in disks where disk.isUnsealed(epoch) { try disk.seal(epoch: epoch) }
    }

    /// Data, then the record, then whoever waits for it. `acknowledge` is for a planted bug.
    func commit(_ epoch: Epoch, acknowledge: () -> Void) throws {
        guard let open = session, let ram = open.ram else { throw Failed("a seal before RAM was laid out") }
        let durable = open.durability == .disk
        try sealDisks(epoch)
        try ram.seal(epoch: epoch)
        if storage.mutation == .deleteHiddenBeforeRecord { for disk in disks { try disk.dropHidden(upTo: epoch) } }
        let state = StoreFileName.deviceState(epoch).name
        let isLate = storage.mutation == .recordBeforeDataSync
        let syncsDevice = durable && !isLate && storage.mutation != .skipDeviceSync
        try storage.writeWhole("device/\(state)", open.device, durable: syncsDevice)
        if durable, !isLate {
            try storage.syncDirectory("device")
            try storage.syncDirectory("ram")
        }
        let previous = record
        if storage.mutation == .acknowledgeBeforeRecord { acknowledge() }
        let device = CommitRecord.DeviceFile(
            name: state, length: UInt64(open.device.count), checksum: CRC32C.checksum(open.device))
        try commitFile.append(durable: durable) { sequence in
            CommitRecord(
                store: Self.id, session: open.id, guest: Self.guest, sequence: sequence, generation: generation,
                epoch: epoch, role: .replica, durability: open.durability, wallClockMilliseconds: 0,
                ramSectionID: open.layout?.ramSectionID ?? 0,
                ramFiles: ram.recoveryFiles.map {
                    CommitRecord.RamFile(
                        kind: $0.kind == .base ? .base : .log, name: $0.name, length: $0.length, digest: $0.digest)
                }, device: device, disks: disks.map { CommitRecord.Disk(id: $0.id, size: $0.size) })
        }
        if isLate, durable { try syncLate(ram, state) }
        damage = nil
        if !open.hasCommitted {
            session?.hasCommitted = true
            self.ram = ram
            identity = open.identity
            for file in storage.files(in: "sessions") where !file.hasPrefix(open.id.hex) {
                try storage.remove("sessions/\(file)")
            }
        }
        for disk in disks { try disk.committed(epoch) }
        if let old = previous?.device?.name, old != state {
            try storage.removeIfPossible("device/\(old)")
        }
    }

    private func syncLate(_ ram: RamModel, _ state: String) throws {
        for disk in disks { try disk.lateSync() }
        try ram.lateSync()
        try storage.sync("device/\(state)")
        try storage.syncDirectory("device")
        try storage.syncDirectory("ram")
    }

    func apply(_ epoch: Epoch) throws {
        guard let ram = session?.ram else { return }
        do {
            try ram.apply(epoch: epoch)
            try ram.committed(epoch)
            try ram.beginEpoch(epoch.next)
        } catch {
            damage = "checkpoint \(epoch) is committed, but its RAM could not be applied (\(error))"
            session?.ram = nil
            self.ram = nil
            throw error
        }
    }

    func tidy() throws {
        do {
            for disk in disks { try disk.reclaim(count: 1) }
            try ram?.compactSlice(maxPages: 6)
        } catch is FileFailure {}
    }

    func endSession() throws {
        guard let ended = session else { return }
        session = nil
        try commitFile.settle()
        try ended.ram?.discardOpenEpoch()
        if record == nil {
            // What has come of the initial copy stays, unless nobody knows what of it reached the medium.
            let isKnown = disks.allSatisfy { !$0.pipeline.hasFailed }
            if !isKnown, storage.mutation != .keepDoubtfulCopy {
                for disk in disks { try storage.remove("\(disk.folder)/secondary.raw") }
            }
            disks = []
            return
        }
        for disk in disks { try disk.recover(committed: committed) }
    }

    // MARK: Failover

    func promote() throws {
        guard let old = record else { throw Failed("nothing has been committed") }
        if storage.mutation != .failoverHalfRolledBack {
            for disk in disks where disk.pipeline.hasFailed { try disk.recover(committed: committed) }
        }
        try session?.ram?.discardOpenEpoch()
        session = nil
        if storage.mutation != .drainsBelowTheGuest { for disk in disks { try disk.beginFailover() } }
        if storage.mutation == .reuseGeneration { return }
        try commitFile.append(durable: true) { sequence in
            var new = old
            new.sequence = sequence
            new.generation = old.generation.next
            new.role = .promoted
            return new
        }
    }

    func makeActiveDisks() throws {
        for disk in disks {
            let empty = try EmptyActive(size: disk.size, backing: disk.backing(after: committed))
            let path = "\(disk.folder)/active.qcow2"
            if storage.exists(path) { try storage.rename(path, to: path + ".before-0") }
            try storage.createWhole(path, length: empty.length, writes: empty.writes, durable: false)
        }
    }
}
