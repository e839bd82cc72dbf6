import Checkpointer
import TestSupport
import Testing
import Units

@Suite("Reconnection")
struct ReconnectionTests {
    private func moment(_ milliseconds: UInt64) -> Moment { Moment(nanoseconds: milliseconds * 1_000_000) }

    @Test("a guest that never had a checkpoint is not tried again", arguments: Reconnection.Ending.allCases)
    func neverProtected(ending: Reconnection.Ending) {
        var reconnection = Reconnection(timeout: nil, now: moment(0))
        #expect(reconnection.ended(ending, lastCommit: nil, now: moment(10)) == .finish)
        #expect(reconnection.outageBegan == nil)
    }

    @Test("what is lost is tried again with growing delays, until it is committed again and holds")
    func grows() {
        var reconnection = Reconnection(timeout: nil, now: moment(0))
        var now: UInt64 = 20_000
        #expect(reconnection.ended(.lost, lastCommit: moment(19_900), now: moment(now)) == .retry(at: moment(20_200)))
        for delay: UInt64 in [400, 800, 1600, 3200, 5000, 5000] {
            now += 1000
            reconnection.attemptBegins(now: moment(now))
            #expect(reconnection.ended(.away, lastCommit: nil, now: moment(now)) == .retry(at: moment(now + delay)))
        }
        #expect(reconnection.lastCommit == moment(19_900))
        #expect(reconnection.outageBegan == moment(20_000))
        // Lost again soon after its first commit: the delays go on.
        reconnection.attemptBegins(now: moment(60_000))
        #expect(
            reconnection.ended(.lost, lastCommit: moment(61_000), now: moment(62_000)) == .retry(at: moment(67_000)))
        #expect(reconnection.outageBegan == moment(62_000))
        // It held.
        reconnection.attemptBegins(now: moment(67_000))
        #expect(
            reconnection.ended(.lost, lastCommit: moment(80_000), now: moment(80_100)) == .retry(at: moment(80_300)))
    }

    @Test("a reason that lasts ends it, in an outage too")
    func lasting() {
        var reconnection = Reconnection(timeout: nil, now: moment(0))
        _ = reconnection.ended(.lost, lastCommit: moment(5), now: moment(10))
        #expect(reconnection.ended(.final, lastCommit: nil, now: moment(500)) == .finish)
    }

    @Test("a timeout counts from the loss, and its last attempt begins just then")
    func timeout() {
        var reconnection = Reconnection(timeout: 3_000_000_000, now: moment(0))
        #expect(reconnection.ended(.lost, lastCommit: moment(900), now: moment(1000)) == .retry(at: moment(1200)))
        #expect(reconnection.ended(.away, lastCommit: nil, now: moment(3900)) == .retry(at: moment(4000)))
        #expect(reconnection.ended(.away, lastCommit: nil, now: moment(4000)) == .timedOut)
        // A commit ends the outage, and with it the time.
        #expect(reconnection.ended(.lost, lastCommit: moment(9000), now: moment(9000)) != .timedOut)
    }

    @Test("whatever happens: attempts never come without a delay, nor later than the longest one", arguments: 1...50)
    func anyStory(seed: UInt64) {
        var random = SplitMix64(seed: seed)
        let timeout: UInt64? = Bool.random(using: &random) ? UInt64.random(in: 0...60_000, using: &random) : nil
        var now: UInt64 = 1000
        var reconnection = Reconnection(timeout: timeout.map { $0 * 1_000_000 }, now: moment(now))
        var lostAt: UInt64?
        for _ in 0..<60 {
            let began = now
            now += UInt64.random(in: 0...30_000, using: &random)
            let commits = Int.random(in: 0..<4, using: &random) == 0
            let commit = commits ? UInt64.random(in: began...now, using: &random) : nil
            let ending = Reconnection.Ending.allCases.randomElement(using: &random) ?? .lost
            if commit != nil { lostAt = nil }
            let step = reconnection.ended(ending, lastCommit: commit.map { moment($0) }, now: moment(now))
            switch step {
            case .finish:
                #expect(ending == .final || reconnection.lastCommit == nil, "seed \(seed)")
                return
            case .timedOut:
                #expect(now >= (lostAt ?? now) + (timeout ?? .max), "seed \(seed)")
                return
            case .retry(let next):
                lostAt = lostAt ?? now
                #expect(reconnection.outageBegan == moment(lostAt ?? 0), "seed \(seed)")
                let end = timeout.map { (lostAt ?? 0) + $0 }
                let earliest = min(now + 200, end ?? .max)
                #expect(next >= moment(earliest), "seed \(seed)")
                #expect(next <= moment(now + 5000), "seed \(seed)")
                now = next.nanoseconds / 1_000_000
                reconnection.attemptBegins(now: moment(now))
            }
        }
    }
}
