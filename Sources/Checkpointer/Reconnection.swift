import Units

/// What becomes of a protection whose attempt has ended: whether it is tried again, and when. Reads no clock.
///
/// An outage begins when a secondary that had committed a checkpoint is lost, and ends with the next commit. Within it
/// attempts follow each other with growing delays, and nothing but a reason that lasts ends them, or the time that was
/// set. A guest that never had a checkpoint is not in an outage: whoever attached it is told at once.
public struct Reconnection: Sendable, Equatable {
    /// How an attempt to protect the guest ended.
    public enum Ending: Sendable, Equatable, CaseIterable {
        /// The secondary or the link to it was lost, or fell too far behind.
        case lost
        /// The secondary could not be reached, or is not ready for this guest now.
        case away
        /// For a reason that will not pass, or because somebody wished it.
        case final
    }

    public enum Step: Sendable, Equatable {
        /// It has ended as the attempt has.
        case finish
        /// The time that was set for the outage is over.
        case timedOut
        /// The guest runs on unprotected; the next attempt begins at this moment.
        case retry(at: Moment)
    }

    /// Nanoseconds before the first attempt of an outage; each one that fails doubles them.
    public static let delayMin: UInt64 = 200_000_000
    /// Nanoseconds between two attempts at most.
    public static let delayMax: UInt64 = 5_000_000_000
    /// A protection that held for so many nanoseconds starts with the shortest delay again. One that is lost again and
    /// again keeps growing ones, so that the guest is not copied without end.
    public static let steadyTime: UInt64 = 10_000_000_000

    /// Nanoseconds from the loss after which no attempt begins; nil for ever.
    public let timeout: UInt64?
    /// The newest commit of any attempt; nil when there never was one.
    public private(set) var lastCommit: Moment?
    /// When the secondary was lost; nil while it is not, as far as is known.
    public private(set) var outageBegan: Moment?
    private var attemptBegan: Moment
    private var failures: UInt64 = 0

    /// The first attempt begins.
    public init(timeout: UInt64?, now: Moment) {
        self.timeout = timeout
        attemptBegan = now
    }

    /// Another attempt begins.
    public mutating func attemptBegins(now: Moment) { attemptBegan = now }

    /// An attempt has ended. `lastCommit`: its newest commit, nil when it came to none.
    public mutating func ended(_ ending: Ending, lastCommit commit: Moment?, now: Moment) -> Step {
        if let commit {
            lastCommit = max(commit, lastCommit ?? commit)
            outageBegan = nil
            if commit.nanoseconds(since: attemptBegan) >= Self.steadyTime { failures = 0 }
        }
        guard ending != .final, lastCommit != nil else { return .finish }
        let began = outageBegan ?? now
        outageBegan = began
        let delay = min(Self.delayMin << min(failures, 8), Self.delayMax)
        failures += 1
        guard let timeout else { return .retry(at: now.advanced(byNanoseconds: delay)) }
        let last = began.advanced(byNanoseconds: timeout)
        guard now < last else { return .timedOut }
        return .retry(at: min(now.advanced(byNanoseconds: delay), last))
    }
}
