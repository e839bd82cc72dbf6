import Checkpointer
import Units

/// What the guest was at each of its checkpoints, and what was promised about them: the truth that a store is held to.
final class Ledger {
    struct Key: Hashable, CustomStringConvertible {
        let session: Identifier
        let epoch: Epoch

        var description: String { "epoch \(epoch) of session \(session.hex.suffix(4))" }
    }

    private(set) var machines: [Key: Machine] = [:]
    /// The newest checkpoint that the secondary said it had committed.
    private(set) var acknowledged: Key?
    /// The session that was welcomed last: nobody else may write.
    var writer: Identifier?
    /// Why the last acknowledged checkpoint may be lost or damaged; empty when it may not.
    var excuses: Set<String> = []
    /// Syncs lied: what is recovered may be older than what was acknowledged, and disks may be anything.
    var mayBeOld = false
    /// Cold data was damaged: the checkpoint may be lost, loudly; it is never started from with other contents.
    var isRotten = false

    /// Sessions that went on with the files of an earlier one: their records name that one, from this epoch on.
    private var heirs: [(files: Identifier, first: Epoch, session: Identifier)] = []

    func continued(_ files: Identifier, from first: Epoch, by session: Identifier) {
        heirs.removeAll { $0.first >= first }
        heirs.append((files, first, session))
    }

    /// Whose checkpoint a record is.
    func key(of record: CommitRecord) -> Key {
        let heir = heirs.last { $0.files == record.session && $0.first <= record.epoch }
        return Key(session: heir?.session ?? record.session, epoch: record.epoch)
    }

    func sealed(_ key: Key, _ machine: Machine) { machines[key] = machine }

    func acknowledge(_ key: Key) {
        acknowledged = key
        machines = machines.filter { $0.key.epoch >= key.epoch || mayBeOld }
        // A new commit in full makes good what was damaged.
        if !mayBeOld { excuses = [] }
    }

    /// Judges a recovered machine; nil when all is well.
    func judge(_ key: Key, _ found: Machine) -> String? {
        if let acknowledged, key.epoch < acknowledged.epoch, excuses.isEmpty, !mayBeOld, !isRotten {
            return "\(key) was recovered, but \(acknowledged) had been acknowledged"
        }
        guard let expected = machines[key] else {
            return mayBeOld || !excuses.isEmpty ? nil : "\(key) was recovered, which was never sealed"
        }
        var difference = found.difference(from: expected)
        if mayBeOld, difference != nil {
            // Syncs lie: disks have no checksums of their own; RAM and device state have.
            var other = expected
            other.disks = found.disks
            difference = found.difference(from: other)
        }
        guard let difference else { return nil }
        let parts = found.disks.indices.map { index in
            machines.filter { $0.value.disks[index] == found.disks[index] }.map { "\($0.key.epoch)" }.sorted().joined(
                separator: "/")
        }
        return "\(key) was recovered with other contents: \(difference) (disks are those of \(parts))"
    }
}
