import AsyncIO
import Checkpointer
import Logging
import Units

/// One secondary disk by itself: a guest's folder with a disk and a commit record, without RAM and device state.
///
/// Everything here blocks. Errors leave the last checkpoint as it was. Unchecked: after ``openReplica()`` it is reached on
/// the thread of the replica's device only, like the replica itself.
final class DiskStore: @unchecked Sendable {
    struct Failed: Error, CustomStringConvertible {
        let description: String
    }

    /// What a disk that is not there yet is made of.
    struct Parameters: Sendable {
        /// Bytes; needed for a new disk, compared with the record of an old one.
        var size: UInt64?
        var durability: Durability
        /// Bytes of writes that may wait in memory.
        var bufferBytes: Int
    }

    /// The only disk's id.
    static let diskID = "disk0"

    let name: String
    let parameters: Parameters
    private let storeID: Identifier
    private let session: Identifier
    private let commitFile: CommitFile
    private let folder: GuestFolder
    /// The epoch that takes writes now.
    private(set) var open = Epoch.none
    /// Why the disk takes no more writes until ``rollBack(_:)``; nil when it does.
    private(set) var failure: String?
    private var counters = DiskStatus.Counters()
    private let log: Logger

    var committed: Epoch { commitFile.record?.epoch ?? .none }
    /// Wall-clock milliseconds since 1970.
    var committedAt: UInt64? { commitFile.record?.wallClockMilliseconds }
    var hasCheckpoint: Bool { commitFile.record != nil }

    /// Opens a disk and takes it back to its last checkpoint, or makes a new one full of zeroes.
    init(store: Store, name: String, parameters: Parameters, log: Logger) throws {
        guard Store.isGuestName(name) else {
            throw Failed(description: "'\(name)' cannot be a disk's name: \(Store.guestNameRule)")
        }
        self.name = name
        self.parameters = parameters
        self.log = log
        storeID = store.description.id
        folder = GuestFolder(path: store.guestDirectory(name))
        if !Directory.exists(folder.commit) {
            guard parameters.size != nil else {
                throw Failed(
                    description: "there is no disk '\(name)' in \(store.directory); say --size or --like to make one")
            }
            try folder.create()
        }
        commitFile = try CommitFile(path: folder.commit, store: storeID)
        try Self.recover(folder, commitFile, name: name, log: log)
        if let record = commitFile.record {
            try Self.check(record, name: name, size: parameters.size)
            session = record.session
        } else {
            guard let size = parameters.size else {
                throw Failed(description: "disk '\(name)' has no checkpoint yet and is made anew; say --size or --like")
            }
            // What was written before any checkpoint is nobody's: the disk begins with zeroes.
            if Directory.exists(folder.disk(Self.diskID)) { try folder.perform(.deleteDisk(Self.diskID)) { _, _ in } }
            var random = SystemRandomNumberGenerator()
            session = Identifier(using: &random)
            _ = try DiskReplica.create(directory: folder.disk(Self.diskID), size: size, durable: parameters.isDurable)
            if parameters.isDurable { try DirectFile.syncDirectory("\(folder.path)/disks") }
        }
    }

    /// Opens the disk's files as of the last checkpoint. To be called once.
    func openReplica() throws -> sending DiskReplica {
        var limits = DiskReplica.Limits()
        limits.bufferBytes = parameters.bufferBytes
        let replica = try DiskReplica(
            directory: folder.disk(Self.diskID), durable: parameters.isDurable, limits: limits)
        _ = try rollBack(replica)
        return replica
    }

    /// Makes the files agree with the record.
    private static func recover(_ folder: GuestFolder, _ commit: CommitFile, name: String, log: Logger) throws {
        let plan = RecoveryPlan(choice: commit.found, listing: try folder.listing())
        for finding in plan.findings {
            log.log(level: finding.severity == .notice ? .info : .warning, "\(name): \(finding)")
        }
        guard plan.isUsable else {
            let damage = plan.findings.filter { $0.severity == .damage }.map(\.text).joined(separator: "; ")
            throw Failed(description: "disk '\(name)' is damaged: \(damage)")
        }
        for action in plan.actions {
            log.info("\(name): recovery: \(action)")
            // The disk goes back when it is opened, just behind this.
            if case .rollBackDisk = action { continue }
            try folder.perform(action) { _, _ in }
        }
    }

    /// Refuses what is more than a disk, and a disk of another size.
    private static func check(_ record: CommitRecord, name: String, size: UInt64?) throws {
        guard record.role == .replica, record.device == nil, record.ramFiles.isEmpty, record.disks.count == 1,
            let disk = record.disks.first, disk.id == diskID
        else {
            throw Failed(
                description: "'\(name)' is the replica of a guest, not a disk by itself: use 'colo-blk serve' for it")
        }
        guard size == nil || size == disk.size else {
            throw Failed(
                description: "disk '\(name)' has \(disk.size) bytes, not \(size ?? 0): leave --size out, or choose "
                    + "another name")
        }
    }

    /// Makes what was written so far the checkpoint; returns its epoch.
    func checkpoint(_ replica: DiskReplica) throws -> Epoch {
        let sealed = open
        try replica.beginEpoch(sealed.next, preserve: true)
        open = sealed.next
        count(try replica.seal(epoch: sealed))
        try commitFile.append(durable: parameters.isDurable) { sequence in
            CommitRecord(
                store: storeID, session: session, guest: name, sequence: sequence, generation: .first, epoch: sealed,
                role: .replica, durability: parameters.durability,
                wallClockMilliseconds: MonotonicClock.wallMilliseconds(), ramSectionID: 0, ramFiles: [], device: nil,
                disks: [.init(id: Self.diskID, size: replica.size)])
        }
        try replica.committed(sealed)
        counters.checkpoints += 1
        return sealed
    }

    private func count(_ seal: DiskSeal) {
        counters.bytesReceived += seal.bytesReceived
        counters.bytesWritten += seal.bytesWritten
        counters.bytesZeroed += seal.bytesZeroed
        counters.blocksPreserved += seal.blocksPreserved
        counters.blocksUnchanged += seal.blocksUnchanged
    }

    /// Throws away what came after the last checkpoint; returns the bytes that were written back.
    func rollBack(_ replica: DiskReplica) throws -> UInt64 {
        try commitFile.settle()
        let bytes = try replica.recover(committed: committed)
        open = committed.next
        try replica.beginEpoch(open, preserve: hasCheckpoint)
        if failure != nil { log.notice("\(name): writes are taken again") }
        failure = nil
        counters.rollbacks += 1
        return bytes
    }

    /// A request could not be performed.
    func failed(_ error: DiskReplicaError) {
        // What follows from the first failure says less than it does.
        guard failure == nil else { return }
        failure = "\(error)"
        log.error("\(name): a request failed", metadata: ["reason": "\(error)"])
    }

    func status(_ replica: DiskReplica, clients: Int) throws -> DiskStatus {
        let hidden = try replica.hiddenBytes()
        return DiskStatus(
            disk: name, size: replica.size, durability: parameters.durability.description,
            committedEpoch: hasCheckpoint ? committed.rawValue : nil, committedAtMilliseconds: committedAt,
            openEpoch: open.rawValue, hiddenBytes: hidden, secondaryBytes: try replica.allocatedBytes() - hidden,
            bufferedBytes: UInt64(replica.bufferedBytes), bufferLimitBytes: UInt64(parameters.bufferBytes),
            clients: clients, counters: counters, failure: failure)
    }
}

extension DiskStore.Parameters {
    var isDurable: Bool { durability == .disk }
}
