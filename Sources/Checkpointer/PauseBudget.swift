import Units

/// Bounds the share of its time that the guest stands still for checkpoints. Reads no clock.
///
/// Time that passes fills it, `share` of a second each second; a pause empties it by its own length. While it is below
/// zero no checkpoint is triggered. So over a long time pauses take `share` of the guest's time at most, while a few
/// checkpoints may follow each other quickly: it holds a quarter of a second's worth. It owes a second's worth at most: no
/// checkpoint waits longer than that, however long a pause was, and a share that this forbids is exceeded.
public struct PauseBudget: Sendable, Equatable {
    /// Most of the guest's time that pauses may take, above 0 and at most 1.
    public let share: Double
    /// Nanoseconds of pauses that may be taken now; below 0, that are owed.
    private var credit: Double
    private var updated: Moment
    /// The last pauses, oldest first: when each ended, and its nanoseconds.
    private var recent: [(end: Moment, length: UInt64)] = []
    private static let recentCount = 32
    /// Nanoseconds whose worth may be kept for later.
    private static let ahead = 250e6

    /// Traps unless 0 < share <= 1.
    public init(share: Double, now: Moment) {
        precondition(share > 0 && share <= 1)
        self.share = share
        credit = share * Self.ahead
        updated = now
    }

    /// The guest runs again after it stood still for so long.
    public mutating func paused(nanoseconds: UInt64, now: Moment) {
        credit = max(credit(at: now) - Double(nanoseconds), -share * 1e9)
        updated = now
        if recent.count == Self.recentCount { recent.removeFirst() }
        recent.append((now, nanoseconds))
    }

    /// When a checkpoint may be triggered next; a moment that has passed when it may be now.
    public var next: Moment {
        guard credit < 0 else { return updated }
        return updated.advanced(byNanoseconds: UInt64((-credit / share).rounded(.up)))
    }

    /// The share of the guest's time that the last pauses took, up to 32 of them; nil before the second one.
    public var measured: Double? {
        guard let first = recent.first, let last = recent.last, last.end > first.end else { return nil }
        let paused = recent.dropFirst().reduce(0) { $0 + $1.length }
        return Double(paused) / Double(last.end.nanoseconds(since: first.end))
    }

    private func credit(at now: Moment) -> Double {
        min(credit + share * Double(now.nanoseconds(since: updated)), share * Self.ahead)
    }

    public static func == (lhs: Self, rhs: Self) -> Bool {
        lhs.share == rhs.share && lhs.credit == rhs.credit && lhs.updated == rhs.updated
            && lhs.recent.elementsEqual(rhs.recent) { $0 == $1 }
    }
}
