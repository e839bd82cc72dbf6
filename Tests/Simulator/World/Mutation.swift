/// Known protocol bugs that can be planted, to show that the simulator would find them. Each is a switch in the layer
/// that performs the engine's actions; the engine itself has none.
public enum Mutation: String, Sendable, CaseIterable {
    /// Seal does not sync the secondary disk.
    case skipSecondarySync
    /// Pre-images are not synced before their blocks are overwritten.
    case skipHiddenSync
    /// A hidden disk's name is not synced before it is relied on.
    case skipDirectorySync
    /// The hidden disk's mapping is written before its data.
    case mappingBeforeData
    /// `received` goes out, then the record is written.
    case acknowledgeBeforeRecord
    /// The record is durable before what it vouches for.
    case recordBeforeDataSync
    /// The record is written, not synced.
    case skipRecordSync
    /// The record goes over the newest one instead of the older one.
    case wrongSlot
    /// A record that a restarted daemon reads counts before it is synced.
    case trustPageCache
    /// A record that a restarted daemon reads is synced, not written again: after a sync that failed that does nothing.
    case syncFoundRecordOnly
    /// A torn slot is believed.
    case tornSlotAccepted
    /// Failover keeps the generation and the role.
    case reuseGeneration
    /// A promoted store welcomes the old primary.
    case acceptOldGeneration
    /// RAM batches go straight into the cache of the last commit.
    case applyBeforeSeal
    /// A page that the secondary said it has is not taken into the shadow, so that later deltas are made against zeroes.
    case staleShadow
    /// The secondary tells what its disks held in an earlier session.
    case staleDigests
    /// The secondary tells what its RAM cache held in an earlier session.
    case staleKnown
    /// What a first copy left behind a failed sync is taken for durable.
    case keepDoubtfulCopy
    /// What a removed replica left is deleted before the next one begins, not durably so.
    case removedMayComeBack
    /// Blocks are overwritten without a pre-image.
    case skipPreImage
    /// The pre-image is written behind the block's new contents.
    case preImageAfterOverwrite
    /// Only the first of an epoch's pre-images is kept.
    case preservedTooEarly
    /// The seal is not compared with what arrived.
    case dropTally
    /// An epoch is said to be committed before the one in front of it.
    case commitOutOfOrder
    /// Hidden disks are rolled back oldest first.
    case rollBackOldestFirst
    /// Hidden disks are not rolled back.
    case skipRollback
    /// A hidden disk is removed before the rolled back disk is synced.
    case removeHiddenBeforeSync
    /// Hidden disks of an epoch are removed before its record is written.
    case deleteHiddenBeforeRecord
    /// Disk frames of the next epoch are taken for the one that was just closed.
    case boundaryOffByOne
    /// A base is written from a cache that goes on changing.
    case staleBase
    /// A base counts before it is synced.
    case skipBaseSync
    /// Files of the RAM that the last record needs are removed before the next one is written.
    case retireTooEarly
    /// The log is not synced at the seal.
    case skipLogSync
    /// The device state is not synced.
    case skipDeviceSync
    /// Layout and identity of a session are not synced.
    case skipSessionSync
    /// The guest is started before its failover is recorded.
    case startBeforePromotion
    /// The guest is started on a disk whose rollback had failed half-way.
    case failoverHalfRolledBack
    /// What is being drained goes on when the replica has become the guest.
    case drainsBelowTheGuest
    /// A record whose fate is unknown is forgotten, and its epoch rolled back.
    case forgetDoubtfulRecord
}

/// A run that shows more often what random ones show too seldom.
public struct Emphasis: Sendable {
    /// Kinds of which most of the faults are, half of those during the first copy; empty: those of the profile, after it.
    var faults: [FaultKind] = []
    /// The guest hardly writes, so that most of its disks stays what the first copy made of it.
    var isQuiet = false
}

extension Mutation {
    /// The runs that reveal the bug.
    var emphasis: Emphasis {
        switch self {
        case .trustPageCache:
            Emphasis(faults: [.crashWithinOperation, .failedCommit, .bothPowerLoss, .primaryPowerLoss])
        case .syncFoundRecordOnly:
            Emphasis(faults: [.failedCommit, .secondaryCrash, .crashWithinOperation, .primaryPowerLoss])
        case .removedMayComeBack:
            Emphasis(faults: [.forcedFailover, .secondaryPowerLoss, .powerLossWithinOperation, .crashWithinRecovery])
        case .keepDoubtfulCopy: Emphasis(faults: [.failedSync], isQuiet: true)
        default: Emphasis()
        }
    }
}
