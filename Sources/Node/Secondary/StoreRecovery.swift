import AsyncIO
import BlockReplica
import Checkpointer
import Qcow2
import Units

/// `colo-blk recover`: takes the disks of a guest in a stopped store back to the committed checkpoint, in place.
///
/// What ``GuestStore`` does when it opens a guest, for the disks alone and in the open: everything is read and checked
/// before the first byte is changed, and a process that dies at any point leaves what the next one finishes.
public struct StoreRecovery {
    public struct Refused: Error, CustomStringConvertible {
        public let description: String
    }

    /// What was done, or would be.
    public struct Report: Codable, Sendable, Equatable {
        public struct Disk: Codable, Sendable, Equatable {
            public var id: String
            /// The raw file that is the disk.
            public var path: String
            /// Size of the disk.
            public var bytes: UInt64
            /// Hidden disks that are written back.
            public var hiddenDisks: Int
            public var dataBytes: UInt64
            public var zeroBytes: UInt64
        }

        public var guest: String
        public var epoch: UInt64
        public var dryRun: Bool
        public var disks: [Disk]
        public var findings: [String]

        /// Bytes to be written back in all disks, zeroes included.
        public var totalBytes: UInt64 { disks.reduce(0) { $0 + $1.dataBytes + $1.zeroBytes } }
    }

    private let store: Store
    private let guest: String
    private let record: CommitRecord
    /// What would be done.
    public private(set) var report: Report

    /// Locks the store and examines the guest; changes nothing.
    ///
    /// - Parameters:
    ///   - path: `STORE/GUEST`.
    ///   - disksOnly: whether lost RAM or device state does not matter.
    /// - Throws: ``Refused`` with what to do instead.
    public init(path: String, disksOnly: Bool) throws {
        var path = path
        while path.count > 1, path.hasSuffix("/") { path.removeLast() }
        let slash = path.lastIndex(of: "/")
        let folder = slash.map { $0 == path.startIndex ? "/" : String(path[..<$0]) } ?? "."
        let guest = slash.map { String(path[path.index(after: $0)...]) } ?? path
        guard Directory.exists("\(folder)/\(StoreDescription.fileName)") else {
            throw Refused(description: "\(folder) is no colo-blk store; name STORE/GUEST")
        }
        guard Store.isGuestName(guest), Directory.exists("\(path)/commit") else {
            throw Refused(description: "there is no replica '\(guest)' in the store \(folder)")
        }
        do { store = try Store.open(directory: folder) } catch let failed as Store.Failed {
            throw Refused(description: failed.description)
        }
        self.guest = guest
        let commit = try CommitFile(path: "\(path)/commit", store: store.description.id)
        guard let record = commit.record else {
            throw Refused(
                description: "nothing has been committed for '\(guest)' yet: its disks are an initial copy that was "
                    + "never finished, and there is nothing to go back to")
        }
        guard record.role == .replica else { throw Self.promoted(path, record) }
        self.record = record
        let listing = try Self.listing(path)
        let plan = RecoveryPlan(choice: commit.found, listing: listing)
        try Self.refuseDamage(plan, commit.found, listing, guest, disksOnly: disksOnly)
        report = Report(guest: guest, epoch: record.epoch.rawValue, dryRun: true, disks: [], findings: [])
        report.findings = plan.findings.map(\.text)
        if record.durability == .memory {
            report.findings.append(
                "durability 'memory': if this host lost power, or crashed, since the checkpoint, the disks may lack"
                    + " what the kernel had not written yet")
        }
        for disk in record.disks { report.disks.append(try survey(disk.id)) }
    }

    private func folder(_ id: String) -> String { "\(store.guestDirectory(guest))/disks/\(id)" }

    // MARK: Refusals

    private static func promoted(_ path: String, _ record: CommitRecord) -> Refused {
        let folders = record.disks.map { "\(path)/disks/\($0.id)" }
        return Refused(
            description: "this replica failed over at checkpoint \(record.epoch): its guest writes into active.qcow2, "
                + "and going back would destroy that. To make secondary.raw alone the disk with all the guest wrote: "
                + "while it runs, give its QEMU block-commit (QMP); when it is stopped, run in each of "
                + "\(folders.joined(separator: ", ")): qemu-img commit -b secondary.raw active.qcow2")
    }

    /// Damage of the disks always counts; of RAM and device state, unless the disks alone are wanted.
    private static func refuseDamage(
        _ plan: RecoveryPlan, _ choice: CommitSlots.Choice, _ listing: StoreListing, _ guest: String, disksOnly: Bool
    ) throws {
        guard !plan.isUsable else { return }
        func damage(_ plan: RecoveryPlan) -> String {
            plan.findings.filter { $0.severity == .damage }.map(\.text).joined(separator: "; ")
        }
        var record = choice.record
        record?.ramFiles = []
        record?.device = nil
        let disks = RecoveryPlan(
            choice: CommitSlots.Choice(record: record, nextSequence: choice.nextSequence, damaged: choice.damaged),
            listing: StoreListing(disks: listing.disks))
        guard disks.isUsable else {
            throw Refused(description: "the replica '\(guest)' is damaged, nothing was changed: \(damage(disks))")
        }
        guard disksOnly else {
            throw Refused(
                description: "the replica '\(guest)' is damaged, nothing was changed: \(damage(plan)). Its disks are "
                    + "whole: say --disks-only to take them back to the checkpoint without its RAM")
        }
    }

    private static func listing(_ directory: String) throws -> StoreListing {
        func files(_ folder: String) throws -> [StoreListing.File] {
            guard Directory.exists(folder) else { return [] }
            return try Directory.names(in: folder).map { name in
                let file = try DirectFile(path: "\(folder)/\(name)", mode: .readOnly, direct: false)
                return StoreListing.File(name: name, length: try file.size())
            }
        }
        var listing = StoreListing(ram: try files("\(directory)/ram"), device: try files("\(directory)/device"))
        for id in try Directory.names(in: "\(directory)/disks") where FileSafeName.isValid(id) {
            listing.disks[id] = try files("\(directory)/disks/\(id)")
        }
        return listing
    }

    // MARK: Looking

    /// Reads all tables of a disk's hidden disks.
    private func survey(_ id: String) throws -> Report.Disk {
        let folder = folder(id)
        let path = "\(folder)/\(DiskFiles.secondary)"
        let size = try DirectFile(path: path, mode: .readOnly).size()
        var disk = Report.Disk(id: id, path: path, bytes: size, hiddenDisks: 0, dataBytes: 0, zeroBytes: 0)
        for epoch in try hidden(folder) {
            do throws(DiskReplicaError) {
                let overlay = try DiskOverlay.open(epoch, in: folder, size: size, io: DiskIO(durable: true))
                var (data, zero): (UInt64, UInt64) = (0, 0)
                try overlay.forEachRun { (run) throws(DiskReplicaError) in
                    let start = run.guestCluster * overlay.clusterSize
                    let length = min(run.count * overlay.clusterSize, size - start)
                    if run.fileOffset == nil { zero += length } else { data += length }
                }
                disk.dataBytes += data
                disk.zeroBytes += zero
            } catch {
                throw Refused(
                    description: "the replica '\(guest)' is damaged, nothing was changed: \(error). Without this file "
                        + "checkpoint \(record.epoch) cannot be had again; restore the folder from a backup")
            }
            disk.hiddenDisks += 1
        }
        return disk
    }

    private func hidden(_ folder: String) throws -> [Epoch] {
        try Directory.names(in: folder).compactMap(DiskFiles.hiddenEpoch).filter { $0 > record.epoch }
    }

    // MARK: Doing

    /// Writes the pre-images back and deletes the hidden disks; durable when it returns. `progress` is called with the
    /// bytes that are done.
    public mutating func run(progress: (UInt64) -> Void) throws {
        report.dryRun = false
        try withoutActuallyEscaping(progress) { progress in
            var done: UInt64 = 0
            for disk in report.disks {
                let directory = folder(disk.id)
                let secondary = try DirectFile(path: disk.path, mode: .readWrite)
                var rollback = DiskRollback(
                    io: DiskIO(durable: true), secondary: secondary, directory: directory,
                    geometry: BlockGeometry(diskSize: disk.bytes))
                rollback.progress = { bytes in
                    done += bytes
                    progress(done)
                }
                _ = try rollback.run(to: record.epoch)
                // What a killed daemon wrote before the hidden disks were found may not be on the medium yet.
                try secondary.sync()
            }
        }
    }

    /// The report as JSON text.
    public func text() throws -> String { try JSONText.encode(report) }
}
