import AsyncIO
import Checkpointer
import Link
import QEMU
import Units

/// Examines the folder of one guest; see ``StoreCheck``. Changes nothing.
struct GuestCheck {
    typealias Item = StoreCheckReport.Item

    let guest: String
    let folder: GuestFolder
    let store: Identifier
    /// The guest's folder in shared memory, which need not exist.
    let tmpfs: String
    let quick: Bool
    private(set) var items: [Item] = []

    init(guest: String, folder: GuestFolder, store: Identifier, tmpfs: String, quick: Bool) {
        self.guest = guest
        self.folder = folder
        self.store = store
        self.tmpfs = tmpfs
        self.quick = quick
    }

    mutating func run() -> StoreCheckReport.Guest {
        var report = StoreCheckReport.Guest(guest: guest, verdict: .consistent, items: [])
        let choice = checkSlots()
        if let choice { checkListing(choice) }
        if let record = choice?.record {
            report.epoch = record.epoch.rawValue
            report.generation = record.generation.rawValue
            report.role = "\(record.role)"
            report.durability = "\(record.durability)"
            let files = checkSession(record)
            for disk in record.disks { checkDisk(disk, record) }
            checkRam(record, files)
            checkDevice(record)
        }
        report.items = items
        let states = Set(items.map(\.state))
        report.verdict =
            states.contains(.damaged)
            ? .damaged
            : states.contains(.unreadable) ? .unreadable : report.epoch == nil ? .nothingCommitted : .consistent
        return report
    }

    mutating func add(_ file: String, _ what: String, _ state: Item.State, _ text: String) {
        items.append(Item(file: file, what: what, state: state, text: text))
    }

    /// A file that is missing or cut is damage; one that the kernel will not read may be whole.
    mutating func add(_ file: String, _ what: String, _ error: any Error) {
        add(file, what, Self.isUnreadable(error) ? .unreadable : .damaged, "\(error)")
    }

    private static func isUnreadable(_ error: any Error) -> Bool {
        let io: IOError? =
            switch error {
            case let error as IOError: error
            case let error as DiskReplicaError: if case .io(let io) = error { io } else { nil }
            case let error as ImageChainError: if case .io(let io) = error { io } else { nil }
            case let error as RamStoreError: if case .io(let io) = error.fault { io } else { nil }
            default: nil
            }
        guard let io else { return false }
        return !io.isNotFound && !io.isUnexpectedEnd
    }

    // MARK: Commit record

    private mutating func checkSlots() -> CommitSlots.Choice? {
        let what = "commit record"
        do {
            let bytes = try WholeFile.read(folder.commit, limit: CommitSlots.fileLength)
            guard bytes.count == CommitSlots.fileLength else {
                add("commit", what, .damaged, "has \(bytes.count) bytes instead of \(CommitSlots.fileLength)")
                return nil
            }
            let slots = [Array(bytes[..<CommitSlot.length]), Array(bytes[CommitSlot.length...])]
            let choice: CommitSlots.Choice
            do {
                choice = try CommitSlots.choose(slots[0], slots[1], store: store)
            } catch {
                add("commit", what, .damaged, "\(error)")
                return nil
            }
            for (index, slot) in slots.enumerated() { tell(slot, index, choice) }
            if let record = choice.record, record.guest != guest {
                add("commit", what, .damaged, "is that of '\(record.guest)'; was the folder copied or renamed?")
                return nil
            }
            return choice
        } catch {
            add("commit", what, error)
            return nil
        }
    }

    private mutating func tell(_ bytes: [UInt8], _ index: Int, _ choice: CommitSlots.Choice) {
        let what = "commit slot \(index)"
        do throws(CommitSlot.Fault) {
            let record = try CommitSlot.decode(bytes)
            let counts = record == choice.record ? "the record that counts: " : "the record before: "
            add(
                "commit", what, .good,
                "\(counts)number \(record.sequence), checkpoint \(record.epoch), generation \(record.generation), "
                    + "\(record.role), durability \(record.durability)")
        } catch .empty {
            add("commit", what, .good, "never written")
        } catch {
            add(
                "commit", what, .warning,
                "cannot be read (\(error)): normal after a crash in the midst of a commit, whose checkpoint was never "
                    + "acknowledged; otherwise look at the medium")
        }
    }

    // MARK: What is there, by name and length

    private mutating func checkListing(_ choice: CommitSlots.Choice) {
        let plan: RecoveryPlan
        do {
            plan = RecoveryPlan(choice: choice, listing: try folder.listing())
        } catch {
            return add(".", "folder", error)
        }
        for finding in plan.findings {
            switch finding.severity {
            case .damage: add(".", "files", .damaged, finding.text)
            case .warning where choice.damaged == nil: add(".", "files", .warning, finding.text)
            case .warning: break
            case .notice: add(".", "files", .leftover, finding.text)
            }
        }
        for action in plan.actions {
            switch action {
            case .rollBackDisk:
                // Told with each hidden disk.
                break
            case .truncate(let folder, let file, let length):
                add("\(folder)/\(file)", "log", .leftover, "what is behind byte \(length) came later; it will be cut")
            case .deleteFile(_, let file) where DiskFiles.hiddenEpoch(file) != nil:
                break
            case .deleteFile(let folder, let file):
                add("\(folder)/\(file)", "leftover", .leftover, "of no use any more; it will be deleted")
            case .deleteDisk(let id):
                add("disks/\(id)", "disk", .leftover, "no record vouches for it; it will be deleted")
            }
        }
    }

    // MARK: Session and device state

    private mutating func checkSession(_ record: CommitRecord) -> SessionFiles? {
        let path = "sessions/\(record.session.hex)"
        do {
            let files = try SessionFiles.read(guestDirectory: folder.path, session: record.session)
            let machine = try files.machine()
            let total = files.blocks.reduce(UInt64(0)) { $0 + $1.length }
            add(
                "\(path)/guest.json", "machine", .good,
                "QEMU \(machine.version), \(files.blocks.count) RAM blocks, \(ByteText.text(total))")
            return files
        } catch {
            add(path, "machine and RAM layout", error)
            return nil
        }
    }

    private mutating func checkDevice(_ record: CommitRecord) {
        guard let device = record.device else { return }
        let file = "device/\(device.name)"
        do {
            let bytes = try WholeFile.read("\(folder.path)/\(file)", limit: 256 << 20)
            guard UInt64(bytes.count) == device.length, CRC32C.checksum(bytes) == device.checksum else {
                return add(
                    file, "device state", .damaged,
                    "is not that of checkpoint \(record.epoch): \(bytes.count) bytes of \(device.length)"
                        + ", checksum wrong"
                )
            }
            add(file, "device state", .good, "\(bytes.count) bytes, checksum right")
        } catch {
            add(file, "device state", error)
        }
    }
}
