import Checkpointer
import Units

/// Stands for Node's CommitFile: two slots, written alternately.
final class CommitFileModel {
    static let path = "commit"

    private let storage: Storage
    private(set) var record: CommitRecord?
    let found: CommitSlots.Choice
    private var nextSequence: UInt64
    /// A record whose writing failed: whether a restart would find it is not known.
    private(set) var isInDoubt = false

    static func create(_ storage: Storage) throws {
        try storage.writeWhole(path + ".new", [UInt8](repeating: 0, count: CommitSlots.fileLength), durable: true)
        try storage.rename(path + ".new", to: path)
        try storage.syncDirectory("")
    }

    init(_ storage: Storage, store: Identifier) throws {
        self.storage = storage
        var bytes = try storage.readAll(Self.path)
        guard bytes.count == CommitSlots.fileLength else { throw StoreModel.Failed("commit has \(bytes.count) bytes") }
        if storage.mutation == .tornSlotAccepted { Self.mend(&bytes) }
        found = try CommitSlots.choose(
            Array(bytes[..<CommitSlot.length]), Array(bytes[CommitSlot.length...]), store: store)
        record = found.record
        nextSequence = found.nextSequence
        // What was found may be in the page cache only; nothing is built on it before it is durable.
        guard storage.mutation != .trustPageCache else { return }
        let newest = record?.slot ?? 1
        for slot in [newest, 1 - newest] {
            let start = slot * CommitSlot.length
            if storage.mutation != .syncFoundRecordOnly {
                try storage.write(Self.path, at: start, Array(bytes[start..<start + CommitSlot.length]))
            }
            try storage.sync(Self.path)
        }
        try storage.syncDirectory("")
    }

    /// For a planted bug only: gives every slot that has a start the checksum that it should have.
    private static func mend(_ bytes: inout [UInt8]) {
        for start in [0, CommitSlot.length] where bytes[start] != 0 {
            let sum = CRC32C.checksum(Array(bytes[start..<start + 4092]))
            for shift in 0..<4 {
                bytes[start + 4092 + shift] = UInt8(truncatingIfNeeded: sum >> UInt32(24 - 8 * shift))
            }
        }
    }

    func append(durable: Bool, _ make: (_ sequence: UInt64) -> CommitRecord) throws {
        let next = make(nextSequence)
        var offset = Int(next.fileOffset)
        if storage.mutation == .wrongSlot { offset = 0 }
        isInDoubt = true
        try storage.write(Self.path, at: offset, CommitSlot.encode(next))
        if durable, storage.mutation != .skipRecordSync { try storage.sync(Self.path) }
        isInDoubt = false
        nextSequence += 1
        record = next
    }

    /// Writes the record that counts once more, over the one whose fate is not known.
    func settle() throws {
        guard isInDoubt, storage.mutation != .forgetDoubtfulRecord else { return }
        guard let old = record else {
            let empty = [UInt8](repeating: 0, count: CommitSlot.length)
            try storage.write(Self.path, at: Int(nextSequence & 1) * CommitSlot.length, empty)
            try storage.sync(Self.path)
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
