import Units

/// Which of the two slots of a commit file is the truth.
public enum CommitSlots {
    /// Bytes of the commit file.
    public static let fileLength = 2 * CommitSlot.length

    /// What the two slots say together.
    public struct Choice: Equatable, Sendable {
        /// The newest valid record; nil when nothing was ever committed.
        public let record: CommitRecord?
        /// The sequence number of the next record.
        public let nextSequence: UInt64
        /// The slot that is torn or damaged, if one is. After a crash that is the record which was just being written;
        /// otherwise the medium has lost it, and the record chosen is the one before it.
        public let damaged: (slot: Int, fault: CommitSlot.Fault)?

        public init(record: CommitRecord?, nextSequence: UInt64, damaged: (slot: Int, fault: CommitSlot.Fault)?) {
            self.record = record
            self.nextSequence = nextSequence
            self.damaged = damaged
        }

        public static func == (lhs: Choice, rhs: Choice) -> Bool {
            lhs.record == rhs.record && lhs.nextSequence == rhs.nextSequence
                && lhs.damaged?.slot == rhs.damaged?.slot && lhs.damaged?.fault == rhs.damaged?.fault
        }
    }

    /// Why no record can be chosen.
    public enum Fault: Error, Equatable, Sendable, CustomStringConvertible {
        /// A newer release has written to this store; falling back to an older record would undo its commits.
        case newerVersion(slot: Int, UInt16)
        /// No slot can be read, but not because nothing was ever written.
        case allDamaged(CommitSlot.Fault, CommitSlot.Fault)
        /// A record stands in the slot where its sequence number does not belong.
        case misplaced(slot: Int, sequence: UInt64)
        /// The two records, or the record and the store, do not belong together.
        case foreign(String)

        public var description: String {
            switch self {
            case .newerVersion(let slot, let version):
                "commit file: slot \(slot) is written in format \(version), this release reads format "
                    + "\(CommitSlot.version); use the release that wrote it"
            case .allDamaged(let first, let second):
                "commit file: no slot can be read (slot 0: \(first); slot 1: \(second)); the replica is lost,"
                    + " restore the file from a backup or attach the guest again to a new store"
            case .misplaced(let slot, let sequence):
                "commit file: record \(sequence) stands in slot \(slot), where it does not belong; was the file edited?"
            case .foreign(let what):
                "commit file: \(what); was the folder copied from another store?"
            }
        }
    }

    /// Chooses between the slots as read, 4,096 bytes each.
    ///
    /// Records are written to slot 1 first, then alternately. So a crash can leave slot 1 damaged with slot 0 empty
    /// (the first record was never acknowledged: nothing is committed), but never the other way round.
    /// - Parameter store: the id in `store.info`; nil to skip that check.
    public static func choose(
        _ slot0: [UInt8], _ slot1: [UInt8], store: Identifier? = nil
    ) throws(Fault) -> Choice {
        let slots = [read(slot0), read(slot1)]
        for (index, slot) in slots.enumerated() {
            if case .failure(.newerVersion(let version)) = slot { throw .newerVersion(slot: index, version) }
            if case .success(let record) = slot {
                guard record.slot == index else { throw .misplaced(slot: index, sequence: record.sequence) }
                if let store, record.store != store {
                    throw .foreign("slot \(index) belongs to store \(record.store), this is store \(store)")
                }
            }
        }
        switch (slots[0], slots[1]) {
        case (.success(let first), .success(let second)):
            guard first.store == second.store, first.guest == second.guest else {
                throw .foreign("the slots belong to different stores or guests")
            }
            let newest = first.sequence > second.sequence ? first : second
            return Choice(record: newest, nextSequence: newest.sequence &+ 1, damaged: nil)
        case (.success(let record), .failure(let fault)):
            return Choice(
                record: record, nextSequence: record.sequence &+ 1, damaged: fault == .empty ? nil : (1, fault))
        case (.failure(let fault), .success(let record)):
            return Choice(
                record: record, nextSequence: record.sequence &+ 1, damaged: fault == .empty ? nil : (0, fault))
        case (.failure(.empty), .failure(let fault)):
            return Choice(record: nil, nextSequence: 1, damaged: fault == .empty ? nil : (1, fault))
        case (.failure(let first), .failure(let second)):
            throw .allDamaged(first, second)
        }
    }

    private static func read(_ bytes: [UInt8]) -> Result<CommitRecord, CommitSlot.Fault> {
        Result { () throws(CommitSlot.Fault) in try CommitSlot.decode(bytes) }
    }
}
