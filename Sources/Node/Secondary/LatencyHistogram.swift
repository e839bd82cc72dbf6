/// Times in buckets that grow with the times: 16 to each doubling, so that a percentile is right within 1/16. Bounded.
struct LatencyHistogram {
    /// Buckets in a doubling.
    private static let steps = 16
    private static let stepBits: UInt64 = 4

    private var counts = [UInt64](repeating: 0, count: (64 - Int(stepBits) + 1) * steps)
    private(set) var count: UInt64 = 0
    private(set) var maximum: UInt64 = 0

    mutating func record(_ nanoseconds: UInt64) {
        counts[Self.bucket(nanoseconds)] += 1
        count += 1
        maximum = max(maximum, nanoseconds)
    }

    /// The time below or at which a share of all times lies, `share` from 0 to 1; nil when there are none. Rounded up to
    /// the end of a bucket, but never above the longest time.
    func percentile(_ share: Double) -> UInt64? {
        guard count > 0 else { return nil }
        let wanted = max(1, UInt64((Double(count) * share).rounded(.up)))
        var seen: UInt64 = 0
        for (index, value) in counts.enumerated() where value > 0 {
            seen += value
            if seen >= wanted { return min(Self.upperBound(index), maximum) }
        }
        return maximum
    }

    private static func bucket(_ value: UInt64) -> Int {
        guard value >= UInt64(steps) else { return Int(value) }
        let shift = UInt64(63 - value.leadingZeroBitCount) - stepBits
        return Int(shift + 1) * steps + Int(value >> shift) - steps
    }

    /// The largest value in a bucket.
    private static func upperBound(_ bucket: Int) -> UInt64 {
        guard bucket >= steps else { return UInt64(bucket) }
        let shift = UInt64(bucket / steps - 1)
        let first = UInt64(steps + bucket % steps)
        return ((first + 1) << shift) &- 1
    }
}
