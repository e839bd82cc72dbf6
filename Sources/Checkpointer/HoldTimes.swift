/// How long the last packets were held. Bounded: it remembers so many, and forgets the oldest.
public struct HoldTimes: Sendable {
    /// Packets that it remembers.
    public static let capacity = 1024

    /// Of the packets remembered, in nanoseconds.
    public struct Summary: Equatable, Sendable {
        public var median: UInt64
        public var p95: UInt64
        public var longest: UInt64

        public init(median: UInt64, p95: UInt64, longest: UInt64) {
            self.median = median
            self.p95 = p95
            self.longest = longest
        }
    }

    private var times: [UInt64] = []
    private var next = 0

    public init() {}

    mutating func record(_ nanoseconds: UInt64) {
        if times.count < Self.capacity {
            times.append(nanoseconds)
        } else {
            times[next] = nanoseconds
        }
        next = (next + 1) % Self.capacity
    }

    /// Nil when no packet has left yet. Sorts; not for every packet.
    public var summary: Summary? {
        let sorted = times.sorted()
        guard let longest = sorted.last else { return nil }
        func at(_ share: Double) -> UInt64 { sorted[min(sorted.count - 1, Int(Double(sorted.count) * share))] }
        return Summary(median: at(0.5), p95: at(0.95), longest: longest)
    }
}
