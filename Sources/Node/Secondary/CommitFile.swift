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
    }

    /// Writes the next record; with `durable` it is on the medium when this returns. The record before it stays whole
    /// in the other slot.
    func append(durable: Bool, _ make: (_ sequence: UInt64) -> CommitRecord) throws(IOError) {
        let next = make(nextSequence)
        precondition(next.sequence == nextSequence)
        try file.write(at: next.fileOffset, from: CommitSlot.encode(next))
        if durable { try file.sync() }
        nextSequence += 1
        record = next
    }
}
