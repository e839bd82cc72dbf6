import Units

/// When the next checkpoint is triggered. Reads no clock: the time comes in.
///
/// The rule: one checkpoint each `interval`; at once, but not sooner than a quarter of it, when packets are held or the
/// guest has dirtied half of the budget; none while one runs, while two epochs wait for their commit, or while the
/// budget is used up, because RAM pages of another epoch would only add to what lags.
public struct EpochPolicy: Sendable, Equatable {
    /// Why no checkpoint may be triggered now. Ask again when it has passed; there is no time to wait for.
    public enum Reason: Sendable, Equatable, CustomStringConvertible {
        /// QEMU is within a checkpoint, or the last one is still being sent.
        case checkpointRunning
        /// Two sealed epochs are not committed: the link or the secondary lags.
        case twoUncommitted
        /// As many bytes are under way as memory was set aside for.
        case budgetUsedUp

        public var description: String {
            switch self {
            case .checkpointRunning: "a checkpoint is running"
            case .twoUncommitted: "two epochs wait for their commit; the link or the secondary lags"
            case .budgetUsedUp: "the memory for replication is used up; the link or the secondary lags"
            }
        }
    }

    public enum Decision: Sendable, Equatable {
        case triggerNow
        case wait(until: Moment)
        case blocked(Reason)
    }

    /// Nanoseconds from one checkpoint to the next.
    public let interval: UInt64
    /// Nanoseconds that lie between two checkpoints at least.
    public var intervalMin: UInt64 { interval / 4 }
    /// When a checkpoint was triggered last, or the policy started.
    public private(set) var lastTrigger: Moment

    /// Traps when `interval` is zero.
    public init(interval: UInt64, now: Moment) {
        precondition(interval > 0)
        self.interval = interval
        lastTrigger = now
    }

    /// Decides for this moment. After `.triggerNow` the caller triggers, and counts as running what it triggered until
    /// the checkpoint is sealed or failed. `outstandingBytes`: what was taken from the guest and is not yet known to be
    /// with the secondary; `budget`: the most of it.
    public mutating func next(
        now: Moment, checkpointRunning: Bool, uncommitted: UInt64, outstandingBytes: UInt64, budget: UInt64,
        packetsHeld: Bool = false
    ) -> Decision {
        if checkpointRunning { return .blocked(.checkpointRunning) }
        if uncommitted >= 2 { return .blocked(.twoUncommitted) }
        if outstandingBytes >= budget { return .blocked(.budgetUsedUp) }
        // With nothing uncommitted, what is outstanding is dirty data of the open epoch, and a commit makes room.
        let isFilling = uncommitted == 0 && outstandingBytes >= budget / 2
        let due = lastTrigger.advanced(byNanoseconds: packetsHeld || isFilling ? intervalMin : interval)
        guard now >= due else { return .wait(until: due) }
        lastTrigger = now
        return .triggerNow
    }
}
