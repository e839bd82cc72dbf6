// What can go wrong, and who may suffer it.
//
// Disks (either host; the store's files only):
//   power loss     unsynced writes are kept, lost or torn at 512 bytes, each sector by itself and in any order; unsynced
//                  names are lost from some point on, directory by directory; shared memory is gone
//   disk full      writes that need space fail for a while
//   write error    one write fails, after a part of it was done
//   read error     one read fails
//   failed sync    one sync fails; what it covered may be lost though later syncs succeed (fsyncgate)
//   failed commit  the same for the write or the sync of the commit record
//   lying sync     profile: syncs succeed and do nothing; what is recovered may be old or damaged, never a trap, and RAM and
//                  device state are never started mixed (they have checksums; disks have not)
//   bit rot        profile: a bit of a cold file that has a checksum flips
//   misdirected    profile: one write of a file that has a checksum lands elsewhere in it
//   slow disk      every operation takes 1 to 20 ms for a while
// Processes and hosts:
//   secondary crash, also between any two file operations, also within recovery; agent crash (the guest goes on);
//   primary or both hosts lose power; clocks jump: the wall clock both ways, the monotonic one forward (a host is held up)
// Link:
//   delay, cut (with half a frame delivered), stall, half-open (one side notices), garbled bytes, a frame lost by its sender,
//   a second connection
// Memory: the agent's budget shrinks
// People: failover while the primary lives, with and without force; failover during a commit; a second failover; the old
//   primary comes back; attach twice; remove while connected; detach
/// One kind of fault. See the top of this file.
public enum FaultKind: String, Sendable, CaseIterable {
    case secondaryCrash, crashWithinOperation, crashWithinRecovery
    case agentCrash
    case secondaryPowerLoss, powerLossWithinOperation, primaryPowerLoss, bothPowerLoss
    case diskFull, writeError, readError, failedSync, failedCommit, slowDisk
    case lyingSync, bitRot, misdirectedWrite
    case linkDelay, linkCut, linkStall, linkHalfOpen, garbledBytes, lostFrame, duplicateConnection
    case wallClockJump, monotonicJump
    case memoryPressure
    case failoverWhileAlive, forcedFailover, failoverWithinCommit, secondFailover, oldPrimaryReturns
    case attachTwice, removeWhileConnected, detach
}

/// Which rules a run is played by: faults that break an assumption of the promises are apart from those that do not.
public enum Profile: String, Sendable, CaseIterable {
    /// Disks forget, and fail loudly.
    case honest
    /// Syncs do nothing.
    case lyingSync
    /// Cold data of checksummed files rots, or a write of one is misdirected.
    case rot

    /// What may happen in it.
    var faults: [FaultKind] {
        let special: Set<FaultKind> = [.lyingSync, .bitRot, .misdirectedWrite]
        let common = FaultKind.allCases.filter { !special.contains($0) }
        switch self {
        case .honest: return common
        case .lyingSync: return common + [.lyingSync, .lyingSync, .lyingSync]
        case .rot: return common + [.bitRot, .bitRot, .misdirectedWrite, .misdirectedWrite]
        }
    }
}
