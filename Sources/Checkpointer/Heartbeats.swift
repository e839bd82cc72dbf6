/// When the other side of a link counts as lost. Both sides send a beat each ``interval``, and count their own beats in
/// which nothing came: a host that was itself held up has not beaten either, and does not take the other one for dead.
///
/// Silence is noticed between 0.7 and 0.9 s after the other side's last word, on a host that keeps its own time.
public enum Heartbeats {
    /// Nanoseconds from one beat to the next.
    public static let interval: UInt64 = 100_000_000
    /// Own beats without a word of the other side after which it counts as lost.
    public static let silentMax = 8
}

/// One side's count of its own beats in which the other side said nothing.
public struct Silence: Sendable, Equatable {
    public enum Change: Sendable, Equatable { case fell, broken }

    /// Beats since the last word.
    public private(set) var beats = 0

    public init() {}

    /// Whether the other side counts as lost.
    public var isLong: Bool { beats >= Heartbeats.silentMax }

    /// To be called with each beat that is sent.
    ///
    /// - Parameter hasHeard: whether anything has come since the last beat.
    /// - Returns: what this beat has changed about ``isLong``.
    public mutating func beat(hasHeard: Bool) -> Change? {
        let before = isLong
        beats = hasHeard ? 0 : beats + 1
        return before == isLong ? nil : isLong ? .fell : .broken
    }
}
