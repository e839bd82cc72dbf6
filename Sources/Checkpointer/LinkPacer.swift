import Units

/// Bounds what is sent over a link to a number of bytes in a second. Reads no clock.
///
/// A token bucket that holds ``burst`` nanoseconds' worth, kept as the moment until which everything that was sent is
/// paid for. A frame may go once that moment has come, and is charged whole, whatever its length: so a frame that is
/// longer than the bucket passes as well. In any time t no more than `rate * (t + burst)` bytes and one frame begin,
/// beside what was sent without asking.
public struct LinkPacer: Sendable, Equatable {
    /// Bytes in a second that a bound must allow at least: beats and answers take a part of it.
    public static let rateMin: UInt64 = 64 << 10
    /// Nanoseconds of the rate that may be sent at once after a time of silence.
    public static let burst: UInt64 = 50_000_000

    /// Bytes in a second; nil for no bound.
    public let rate: UInt64?
    private var paidUntil: Moment

    /// - Parameter rate: bytes in a second, at least 1; nil for no bound.
    public init(rate: UInt64?, now: Moment) {
        precondition(rate != 0, "a link without any bandwidth carries nothing")
        self.rate = rate
        paidUntil = now
    }

    /// When the next frame may be sent; a moment that has passed when it may be now.
    public var next: Moment { paidUntil }

    /// So many bytes, 4 GiB at most, were sent. What must not wait for ``next`` may be sent without asking, and is
    /// charged here all the same.
    public mutating func sent(bytes: UInt64, now: Moment) {
        guard let rate else { return }
        let oldest = Moment(nanoseconds: now.nanoseconds - min(now.nanoseconds, Self.burst))
        // Rounded up, so that many small frames are no more than they should be.
        let cost = (min(bytes, 1 << 32) * 1_000_000_000 + rate - 1) / rate
        paidUntil = max(paidUntil, oldest).advanced(byNanoseconds: cost)
    }
}
