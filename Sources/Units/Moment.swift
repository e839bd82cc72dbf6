/// A point in time as the engine sees it: nanoseconds of a monotonic clock, passed in by whoever has a clock.
/// The engine itself never reads one, so that the same code runs in simulated time.
public struct Moment: Hashable, Comparable, Sendable {
    public var nanoseconds: UInt64

    public init(nanoseconds: UInt64) {
        self.nanoseconds = nanoseconds
    }

    public static func < (lhs: Moment, rhs: Moment) -> Bool { lhs.nanoseconds < rhs.nanoseconds }

    /// Time from `earlier` to this moment in nanoseconds; zero when `earlier` is later.
    public func nanoseconds(since earlier: Moment) -> UInt64 {
        nanoseconds > earlier.nanoseconds ? nanoseconds - earlier.nanoseconds : 0
    }

    public func advanced(byNanoseconds delta: UInt64) -> Moment { Moment(nanoseconds: nanoseconds &+ delta) }
}
