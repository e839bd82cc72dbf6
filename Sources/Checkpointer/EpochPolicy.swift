import Units

/// When the next checkpoint is triggered. Reads no clock: the time comes in.
///
/// The rule: one checkpoint each `interval`, and sooner when it pays. When packets are held, so soon that the oldest of
/// the open epoch leaves after three quarters of ``holdTarget``, as far as the time from a trigger to its commit allows:
/// the median of all packets then stays below the target, and packets that come together share a checkpoint. At once, but
/// not sooner than a quarter of the interval, when half of the budget or of the room for packets is in use. Never so often
/// that the guest stands still for more than its share of time (``PauseBudget``). None while one runs, while two epochs
/// wait for their commit, or while the budget is used up, because RAM pages of another epoch would only add to what lags.
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

    /// What the policy is told when it decides.
    public struct Situation: Sendable, Equatable {
        public var checkpointRunning = false
        /// Sealed epochs that are not committed.
        public var uncommitted: UInt64 = 0
        /// Bytes that were taken from the guest and are not yet known to be with the secondary.
        public var outstandingBytes: UInt64 = 0
        /// The most of them.
        public var budget = UInt64.max
        /// When the first packet came that the next checkpoint will release.
        public var oldestHeld: Moment?
        /// Half of the room for held packets is in use.
        public var isHoldFilling = false

        public init() {}
    }

    /// Nanoseconds from one checkpoint to the next.
    public let interval: UInt64
    /// Nanoseconds that a packet shall be held at most, in the median.
    public let holdTarget: UInt64
    /// Nanoseconds that lie between two checkpoints at least, when memory fills.
    public var intervalMin: UInt64 { interval / 4 }
    /// Nanoseconds that lie between two checkpoints at least, whatever waits.
    public static let gapMin: UInt64 = 5_000_000
    /// When a checkpoint was triggered last, or the policy started.
    public private(set) var lastTrigger: Moment
    /// Nanoseconds from a trigger to its commit, smoothed over some checkpoints; 0 before the first.
    public private(set) var latency: UInt64 = 0
    /// What pauses may take, and take.
    public private(set) var pauses: PauseBudget
    /// Triggers whose commit is not known yet, oldest first; four at most.
    private var triggered: [Moment] = []

    /// - Parameter pauseShareMax: the share of the guest's time that pauses may take.
    ///
    /// Traps when `interval` is zero or the share is not above 0 and at most 1.
    public init(interval: UInt64, holdTarget: UInt64 = 50_000_000, pauseShareMax: Double = 1, now: Moment) {
        precondition(interval > 0)
        self.interval = interval
        self.holdTarget = holdTarget
        pauses = PauseBudget(share: pauseShareMax, now: now)
        lastTrigger = now
    }

    /// Decides for this moment. After `.triggerNow` the caller triggers, and counts as running what it triggered until
    /// the checkpoint is sealed or failed.
    public mutating func next(now: Moment, _ situation: Situation) -> Decision {
        if situation.checkpointRunning { return .blocked(.checkpointRunning) }
        if situation.uncommitted >= 2 { return .blocked(.twoUncommitted) }
        if situation.outstandingBytes >= situation.budget { return .blocked(.budgetUsedUp) }
        let due = max(earliestDue(situation), pauses.next)
        guard now >= due else { return .wait(until: due) }
        lastTrigger = now
        if triggered.count == 4 { triggered.removeFirst() }
        triggered.append(now)
        return .triggerNow
    }

    private func earliestDue(_ situation: Situation) -> Moment {
        var due = lastTrigger.advanced(byNanoseconds: interval)
        // With nothing uncommitted, what is outstanding is dirty data of the open epoch, and a commit makes room.
        let isFilling = situation.uncommitted == 0 && situation.outstandingBytes >= situation.budget / 2
        if isFilling || situation.isHoldFilling {
            due = min(due, lastTrigger.advanced(byNanoseconds: intervalMin))
        }
        if let oldest = situation.oldestHeld {
            let aim = holdTarget / 4 * 3
            let pays = oldest.advanced(byNanoseconds: aim > latency ? aim - latency : 0)
            due = min(due, max(pays, lastTrigger.advanced(byNanoseconds: min(Self.gapMin, interval))))
        }
        return due
    }

    /// The guest runs again after it stood still for a checkpoint.
    public mutating func paused(nanoseconds: UInt64, now: Moment) { pauses.paused(nanoseconds: nanoseconds, now: now) }

    /// An epoch is committed. The initial copy, which nothing triggered, may be told too.
    public mutating func committed(now: Moment) {
        guard let began = triggered.first else { return }
        triggered.removeFirst()
        let took = now.nanoseconds(since: began)
        latency = latency == 0 ? took : latency - latency / 4 + took / 4
    }
}
