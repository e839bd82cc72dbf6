import AsyncIO
import Checkpointer
import SystemPackage
import Units

/// The commit file of one guest: two slots, written alternately. See docs/store-format.md.
final class CommitFile {
    private let file: DirectFile
    /// The newest valid record; nil when nothing was ever committed.
    private(set) var record: CommitRecord?
    /// What was found when the file was opened, for the recovery plan.
    let found: CommitSlots.Choice
    private var nextSequence: UInt64
    /// A record whose writing failed: whether a restart would find it is not known. ``settle()`` decides it.
    private(set) var isInDoubt = false

    /// Makes an empty file: nothing is committed. It is there as a whole, or not at all.
    static func create(in directory: String) throws(IOError) {
        let path = "\(directory)/commit"
        try WholeFile.write("\(path).new", [UInt8](repeating: 0, count: CommitSlots.fileLength), durable: true)
        try Directory.rename("\(path).new", to: path)
        try DirectFile.syncDirectory(directory)
    }

    init(path: String, store: Identifier) throws {
        let bytes = try WholeFile.read(path, limit: CommitSlots.fileLength)
        guard bytes.count == CommitSlots.fileLength else {
            throw IOError(operation: "read", path: path, offset: UInt64(bytes.count), errno: .noData)
        }
        found = try CommitSlots.choose(
            Array(bytes[..<CommitSlot.length]), Array(bytes[CommitSlot.length...]), store: store)
        record = found.record
        nextSequence = found.nextSequence
        file = try DirectFile(path: path, mode: .readWrite, direct: false)
        try affirm(bytes)
        try DirectFile.syncDirectory(Directory.parent(of: path))
    }

    /// Makes durable what was read. A daemon that was killed may have left it in the page cache only, and nothing is built
    /// on it before it is durable: recovery deletes what only the record before needs, a recorded failover is not recorded
    /// again, and the next record goes over the other slot.
    ///
    /// A sync alone would not do: if that daemon's own sync had failed, the kernel takes the pages for clean and has
    /// nothing to write, while the medium holds a torn slot, or a record whose epoch was rolled back. So both slots are
    /// written again with the bytes that they have, the newest one first: it is never at risk while the other one is
    /// written, and bytes that are on the medium already cannot be torn by themselves.
    private func affirm(_ bytes: [UInt8]) throws(IOError) {
        let newest = record?.slot ?? 1
        for slot in [newest, 1 - newest] {
            let start = slot * CommitSlot.length
            try file.write(at: UInt64(start), from: Array(bytes[start..<start + CommitSlot.length]))
            try file.sync()
        }
    }

    /// Writes the next record; with `durable` it is on the medium when this returns. The record before it stays whole
    /// in the other slot. After an error the file is in doubt: the record before counts, and nothing that either of the
    /// two vouches for may be touched before ``settle()`` or another `append` has succeeded.
    func append(durable: Bool, _ make: (_ sequence: UInt64) -> CommitRecord) throws(IOError) {
        let next = make(nextSequence)
        precondition(next.sequence == nextSequence)
        isInDoubt = true
        try file.write(at: next.fileOffset, from: CommitSlot.encode(next))
        if durable { try file.sync() }
        isInDoubt = false
        nextSequence += 1
        record = next
    }

    /// Makes sure that a restart finds the record that counts, not the one whose writing failed, by writing it over that
    /// one. To be called before anything newer than the record is rolled back, cut or deleted.
    func settle() throws(IOError) {
        guard isInDoubt else { return }
        guard let old = record else {
            let offset = nextSequence % 2 * UInt64(CommitSlot.length)
            try file.write(at: offset, from: [UInt8](repeating: 0, count: CommitSlot.length))
            try file.sync()
            isInDoubt = false
            return
        }
        try append(durable: true) { sequence in
            var again = old
            again.sequence = sequence
            return again
        }
    }
}
