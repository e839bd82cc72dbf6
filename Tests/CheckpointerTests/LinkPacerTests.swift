import Checkpointer
import Testing
import Units

@Suite("Bandwidth of the link")
struct LinkPacerTests {
    private static func at(_ milliseconds: UInt64) -> Moment { Moment(nanoseconds: milliseconds * 1_000_000) }

    @Test("without a bound everything may go at once")
    func noBound() {
        var pacer = LinkPacer(rate: nil, now: Self.at(10))
        for _ in 0..<1000 { pacer.sent(bytes: 1 << 30, now: Self.at(10)) }
        #expect(pacer.next <= Self.at(10))
    }

    @Test("a frame longer than the bucket goes whole, and the next one waits until it is paid for")
    func longFrame() {
        var pacer = LinkPacer(rate: 1_000_000, now: Self.at(1000))
        #expect(pacer.next <= Self.at(1000))
        pacer.sent(bytes: 2_000_000, now: Self.at(1000))
        #expect(pacer.next == Self.at(3000))
    }

    @Test("silence is worth the burst and no more")
    func burst() {
        var pacer = LinkPacer(rate: 1_000_000, now: Self.at(0))
        pacer.sent(bytes: 1, now: Self.at(60_000))
        var count = 1
        while pacer.next <= Self.at(60_000) {
            pacer.sent(bytes: 1000, now: Self.at(60_000))
            count += 1
        }
        // 50 ms at 1,000 bytes in a millisecond, and the frame that crosses the line.
        #expect((50...52).contains(count), "\(count)")
    }

    @Test("what does not ask is charged all the same")
    func urgent() {
        var pacer = LinkPacer(rate: 1_000_000, now: Self.at(0))
        pacer.sent(bytes: 100_000, now: Self.at(0))
        let before = pacer.next
        pacer.sent(bytes: 1000, now: Self.at(0))
        #expect(pacer.next == before.advanced(byNanoseconds: 1_000_000))
    }

    @Test("in any time no more passes than the rate, the burst and one frame; with a backlog, no less than the rate")
    func property() {
        let seed = UInt64.random(in: 0...UInt64.max)
        var random = SplitMix64(seed: seed)
        for round in 0..<100 {
            let rate = LinkPacer.rateMin << UInt64.random(in: 0...16, using: &random)
            let frameMax = UInt64(1) << UInt64.random(in: 5...21, using: &random)
            var now = Moment(nanoseconds: UInt64.random(in: 0...1_000_000_000_000, using: &random))
            var pacer = LinkPacer(rate: rate, now: now)
            var sent: [(at: Moment, bytes: UInt64)] = []
            var backlogBegan = now
            for _ in 0..<400 {
                if Int.random(in: 0..<10, using: &random) == 0 {
                    // Nothing to send for a while.
                    now = max(now, pacer.next).advanced(
                        byNanoseconds: UInt64.random(in: 0...300_000_000, using: &random))
                    backlogBegan = now
                }
                now = max(now, pacer.next)
                let bytes = UInt64.random(in: 1...frameMax, using: &random)
                pacer.sent(bytes: bytes, now: now)
                sent.append((now, bytes))
                // Since the backlog began, all that time allows has passed, rounding aside.
                let passed = sent.filter { $0.at >= backlogBegan }.reduce(0) { $0 + $1.bytes }
                let time = Double(pacer.next.nanoseconds(since: backlogBegan)) / 1e9
                let least = Double(rate) * time * 0.999 - 1
                let problem = "seed \(seed), round \(round): \(passed) bytes in \(time) s at \(rate)"
                guard Double(passed) + Double(rate) * 1e-9 * Double(sent.count) >= least else {
                    Issue.record("too few: \(problem)")
                    return
                }
            }
            for first in stride(from: 0, to: sent.count, by: 7) {
                var total: UInt64 = 0
                for last in first..<sent.count {
                    total += sent[last].bytes
                    let time = sent[last].at.nanoseconds(since: sent[first].at) + LinkPacer.burst
                    let most = Double(rate) * Double(time) / 1e9 + Double(frameMax)
                    guard Double(total) <= most + 1 else {
                        Issue.record("seed \(seed), round \(round): \(total) bytes in \(time) ns at \(rate)")
                        return
                    }
                }
            }
        }
    }
}

@Suite("Lag of the link")
struct LinkLagTests {
    private static func at(_ milliseconds: UInt64) -> Moment { Moment(nanoseconds: milliseconds * 1_000_000) }

    private func take(_ lag: inout LinkLag, _ total: UInt64, _ isBelieved: Bool, at now: Moment = at(0)) {
        let answer = lag.consumed(total: total, now: now)
        #expect(answer == isBelieved, "\(total) bytes")
    }

    @Test("is the age of the oldest byte that was not taken in")
    func age() {
        var lag = LinkLag()
        #expect(lag.age(now: Self.at(5)) == 0)
        lag.sent(bytes: 100, now: Self.at(100))
        lag.sent(bytes: 100, now: Self.at(200))
        #expect(lag.age(now: Self.at(300)) == 200_000_000)
        take(&lag, 100, true)
        #expect(lag.age(now: Self.at(300)) == 100_000_000)
        take(&lag, 200, true)
        #expect(lag.age(now: Self.at(300)) == 0)
        #expect(lag.outstanding == 0)
        lag.sent(bytes: 1, now: Self.at(400))
        #expect(lag.age(now: Self.at(401)) == 1_000_000)
    }

    @Test("knows what was taken in lately")
    func recent() {
        var lag = LinkLag()
        #expect(lag.recent == 0)
        lag.sent(bytes: 1_000_000, now: Self.at(0))
        for step in 1...20 { take(&lag, UInt64(step * 1000), true, at: Self.at(UInt64(step * 100))) }
        // 1,000 bytes each 100 ms: of half a second, and of a sample more at most.
        #expect((5000...6000).contains(lag.recent), "\(lag.recent)")
        take(&lag, 20_001, true, at: Self.at(9000))
        take(&lag, 20_002, true, at: Self.at(9900))
        #expect(lag.recent <= 2, "\(lag.recent)")
    }

    @Test("a side that takes in what was not sent, or takes back its word, is not believed")
    func lies() {
        var lag = LinkLag()
        lag.sent(bytes: 10, now: Self.at(0))
        take(&lag, 11, false)
        take(&lag, 5, true)
        take(&lag, 4, false)
        #expect(lag.outstanding == 5)
    }

    @Test("is never too small, and with few steps too large by one at most, beside a list of every byte")
    func model() {
        let seed = UInt64.random(in: 0...UInt64.max)
        var random = SplitMix64(seed: seed)
        for round in 0..<50 {
            var lag = LinkLag()
            var sent: [Moment] = []
            var consumed = 0
            var now = Self.at(1000)
            let isLong = round % 2 == 1
            for _ in 0..<400 {
                now = now.advanced(
                    byNanoseconds: UInt64.random(in: 0...(isLong ? 90_000_000 : 4_000_000), using: &random))
                if Bool.random(using: &random) {
                    let count = Int.random(in: 1...5, using: &random)
                    sent += Array(repeating: now, count: count)
                    lag.sent(bytes: UInt64(count), now: now)
                } else if !isLong || Int.random(in: 0..<8, using: &random) == 0 {
                    consumed = Int.random(in: consumed...sent.count, using: &random)
                    take(&lag, UInt64(consumed), true)
                }
                let real = consumed < sent.count ? now.nanoseconds(since: sent[consumed]) : 0
                let told = lag.age(now: now)
                guard told >= real, isLong || told <= real + LinkLag.step else {
                    Issue.record("seed \(seed), round \(round): told \(told), is \(real)")
                    return
                }
            }
        }
    }
}
