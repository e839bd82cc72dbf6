import Units

/// What makes the files of a guest agree with its commit record. Decides only; the caller performs the actions in order
/// and may begin again after a crash at any point.
///
/// The record is the only truth: what it vouches for must be there, what came later is rolled back or cut, everything
/// else is a leftover. When something that it vouches for is missing, nothing at all is changed.
public struct RecoveryPlan: Equatable, Sendable {
    public typealias Folder = StoreListing.Folder

    public enum Action: Equatable, Sendable {
        /// Write the pre-images of all hidden disks of later epochs back into the secondary disk, newest first, sync,
        /// and delete them: then the secondary disk alone is checkpoint `to`.
        case rollBackDisk(String, to: Epoch)
        /// Cut what was appended after the commit.
        case truncate(Folder, String, to: UInt64)
        case deleteFile(Folder, String)
        /// A whole disk folder that no record vouches for.
        case deleteDisk(String)
    }

    /// Something that an operator should read.
    public struct Finding: Equatable, Sendable, CustomStringConvertible {
        public enum Severity: Sendable, Equatable, Comparable {
            case notice
            case warning
            /// The checkpoint cannot be recovered.
            case damage
        }

        public let severity: Severity
        /// What, where, and what to do.
        public let text: String

        public var description: String { text }
    }

    public private(set) var actions: [Action] = []
    public private(set) var findings: [Finding] = []

    /// Whether the checkpoint that the record names (or "nothing yet") can be had.
    public var isUsable: Bool { !findings.contains { $0.severity == .damage } }

    /// Plans from what ``CommitSlots/choose(_:_:store:)`` found and from the files that are there.
    public init(choice: CommitSlots.Choice, listing: StoreListing) {
        if let damaged = choice.damaged {
            let fallback = choice.record.map { "epoch \($0.epoch), the commit before it, is used" }
            find(
                .warning,
                "commit slot \(damaged.slot) cannot be read (\(damaged.fault)); "
                    + (fallback ?? "it was the first, so nothing was committed")
                    + ". After a crash this is normal; otherwise check the medium")
        }
        guard let record = choice.record else {
            planNothingCommitted(listing)
            return
        }
        switch record.role {
        case .replica: planReplicaDisks(record, listing)
        case .promoted: planPromotedDisks(record, listing)
        }
        planRam(record, listing)
        planDevice(record, listing)
        if !isUsable { actions = [] }
    }

    private mutating func find(_ severity: Finding.Severity, _ text: String) {
        findings.append(Finding(severity: severity, text: text))
    }

    // MARK: Nothing committed

    /// All that is there is an initial copy that was never finished, or a seed. The secondary disks stay: no record
    /// vouches for them, but the next session compares them and sends only what differs.
    private mutating func planNothingCommitted(_ listing: StoreListing) {
        for (id, files) in listing.disks.sorted(by: { $0.key < $1.key }) {
            guard files.contains(where: { StoreFileName($0.name) == .secondary }) else {
                actions.append(.deleteDisk(id))
                continue
            }
            for file in files.sorted(by: { $0.name < $1.name }) {
                switch StoreFileName(file.name) {
                case .secondary: break
                case .hidden, .scratch, .view, .unfinished: actions.append(.deleteFile(.disk(id), file.name))
                default: reportStranger(.disk(id), file.name)
                }
            }
        }
        deleteLeftovers(.ram, listing.ram, keeping: [])
        deleteLeftovers(.device, listing.device, keeping: [])
    }

    /// Deletes what this module names and `keeping` does not hold; strange files are left alone and reported.
    private mutating func deleteLeftovers(_ folder: Folder, _ files: [StoreListing.File], keeping: Set<String>) {
        for file in files.sorted(by: { $0.name < $1.name }) where !keeping.contains(file.name) {
            switch (StoreFileName(file.name), folder) {
            case (.base, .ram), (.sums, .ram), (.log, .ram), (.deviceState, .device), (.unfinished, _):
                actions.append(.deleteFile(folder, file.name))
            case (_, .ram):
                // The RAM store keeps files of its own beside these, which it cleans itself.
                break
            default:
                reportStranger(folder, file.name)
            }
        }
    }

    private mutating func reportStranger(_ folder: Folder, _ name: String) {
        find(.notice, "\(folder)/\(name) is no file of this store; it is left alone")
    }

    // MARK: Disks

    private mutating func planReplicaDisks(_ record: CommitRecord, _ listing: StoreListing) {
        for disk in record.disks {
            guard let files = checkSecondary(disk, listing) else { continue }
            var needsRollback = false
            for file in files {
                switch StoreFileName(file.name) {
                case .secondary: break
                case .hidden(let epoch) where epoch > record.epoch: needsRollback = true
                case .hidden, .scratch, .view, .unfinished: actions.append(.deleteFile(.disk(disk.id), file.name))
                case .active:
                    find(
                        .damage,
                        "disks/\(disk.id)/active.qcow2 is there, but no failover is recorded; it may hold writes of a"
                            + " guest that was started from here. Move it away if it is not needed")
                default: reportStranger(.disk(disk.id), file.name)
                }
            }
            if needsRollback { actions.append(.rollBackDisk(disk.id, to: record.epoch)) }
        }
        let known = Set(record.disks.map(\.id))
        actions += listing.disks.keys.filter { !known.contains($0) }.sorted().map { .deleteDisk($0) }
    }

    /// After failover the chain of overlays is the guest's disk: nothing of it may be touched.
    private mutating func planPromotedDisks(_ record: CommitRecord, _ listing: StoreListing) {
        for disk in record.disks {
            guard let files = checkSecondary(disk, listing) else { continue }
            var hasActive = false
            for file in files {
                switch StoreFileName(file.name) {
                case .secondary: break
                case .active: hasActive = true
                case .hidden(let epoch):
                    if epoch <= record.epoch { actions.append(.deleteFile(.disk(disk.id), file.name)) }
                case .scratch, .view, .unfinished: actions.append(.deleteFile(.disk(disk.id), file.name))
                default: reportStranger(.disk(disk.id), file.name)
                }
            }
            if !hasActive {
                find(
                    .warning,
                    "disks/\(disk.id)/active.qcow2 is missing: the failover was recorded, but the guest has not been"
                        + " started; run failover again")
            }
        }
        let known = Set(record.disks.map(\.id))
        for id in listing.disks.keys.sorted() where !known.contains(id) {
            find(.notice, "disks/\(id) does not belong to the guest that was started from here; it is left alone")
        }
    }

    /// The files of a disk's folder by name, when the secondary disk is there and long enough.
    private mutating func checkSecondary(_ disk: CommitRecord.Disk, _ listing: StoreListing) -> [StoreListing.File]? {
        let files = (listing.disks[disk.id] ?? []).sorted { $0.name < $1.name }
        guard let secondary = files.first(where: { StoreFileName($0.name) == .secondary }) else {
            find(
                .damage, "disks/\(disk.id)/secondary.raw is missing; restore it from a backup or attach to a new store")
            return nil
        }
        guard secondary.length >= disk.size else {
            find(
                .damage,
                "disks/\(disk.id)/secondary.raw has \(secondary.length) bytes, the disk has \(disk.size); restore it"
                    + " from a backup or attach to a new store")
            return nil
        }
        return files
    }

    // MARK: RAM and device state

    private mutating func planRam(_ record: CommitRecord, _ listing: StoreListing) {
        for file in record.ramFiles {
            guard let present = listing.ram.first(where: { $0.name == file.name }) else {
                let why =
                    record.durability == .memory
                    ? "it was in memory only, and the host has been restarted since"
                    : "restore it from a backup"
                find(.damage, "ram/\(file.name) is missing (\(why)); the RAM of epoch \(record.epoch) is lost")
                continue
            }
            let isWrong = file.kind == .log ? present.length < file.length : present.length != file.length
            if isWrong {
                find(
                    .damage,
                    "ram/\(file.name) has \(present.length) bytes, the commit vouches for \(file.length); the RAM of"
                        + " epoch \(record.epoch) is lost")
            } else if present.length > file.length {
                actions.append(.truncate(.ram, file.name, to: file.length))
            }
        }
        var kept = Set(record.ramFiles.map(\.name))
        for case .base(let epoch)? in record.ramFiles.map({ StoreFileName($0.name) }) {
            let sums = StoreFileName.sums(epoch).name
            kept.insert(sums)
            if !listing.ram.contains(where: { $0.name == sums }) {
                find(.damage, "ram/\(sums) is missing; the RAM of epoch \(record.epoch) cannot be verified")
            }
        }
        deleteLeftovers(.ram, listing.ram, keeping: kept)
    }

    private mutating func planDevice(_ record: CommitRecord, _ listing: StoreListing) {
        guard let device = record.device else {
            deleteLeftovers(.device, listing.device, keeping: [])
            return
        }
        if let present = listing.device.first(where: { $0.name == device.name }) {
            if present.length != device.length {
                find(
                    .damage,
                    "device/\(device.name) has \(present.length) bytes, the commit vouches for \(device.length);"
                        + " epoch \(record.epoch) cannot be started")
            }
        } else {
            find(.damage, "device/\(device.name) is missing; epoch \(record.epoch) cannot be started")
        }
        deleteLeftovers(.device, listing.device, keeping: [device.name])
    }
}
