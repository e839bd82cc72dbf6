import TestSupport
import Testing

@testable import Node

@Suite("Percentiles of times")
struct LatencyHistogramTests {
    @Test("none, one, and the ends of the range")
    func ends() {
        var histogram = LatencyHistogram()
        #expect(histogram.percentile(0.5) == nil)
        histogram.record(7_000_000)
        #expect(histogram.percentile(0) == 7_000_000 && histogram.percentile(1) == 7_000_000)
        for value in [0, 1, 15, 16, 17, UInt64.max] { histogram.record(value) }
        #expect(histogram.percentile(0.01) == 0 && histogram.maximum == .max && histogram.count == 7)
        #expect(histogram.percentile(1) == .max)
    }

    @Test("each percentile is right within a sixteenth", arguments: 1...20 as ClosedRange<UInt64>)
    func random(seed: UInt64) throws {
        var random = SplitMix64(seed: seed)
        var histogram = LatencyHistogram()
        var values: [UInt64] = []
        for _ in 0..<Int.random(in: 1...3000, using: &random) {
            let value = UInt64.random(in: 0...(1 << UInt64.random(in: 1...40, using: &random)), using: &random)
            values.append(value)
            histogram.record(value)
        }
        values.sort()
        for share in [0.01, 0.5, 0.9, 0.99, 1] {
            let exact = values[max(0, Int((Double(values.count) * share).rounded(.up)) - 1)]
            let found = try #require(histogram.percentile(share))
            #expect(found >= exact && found - exact <= exact / 16 + 1, "seed \(seed), \(share): \(found), \(exact)")
        }
    }
}
