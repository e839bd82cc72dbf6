import Checkpointer
import Testing
import Units

@Suite("Epoch policy")
struct EpochPolicyTests {
    private static func at(_ milliseconds: UInt64) -> Moment { Moment(nanoseconds: milliseconds * 1_000_000) }
    private static let interval: UInt64 = 200_000_000

    private static func policy() -> EpochPolicy { EpochPolicy(interval: interval, now: at(1000)) }

    private static func ask(
        _ policy: inout EpochPolicy, at now: UInt64, running: Bool = false, uncommitted: UInt64 = 0, bytes: UInt64 = 0,
        held: Bool = false
    ) -> EpochPolicy.Decision {
        policy.next(
            now: at(now), checkpointRunning: running, uncommitted: uncommitted, outstandingBytes: bytes, budget: 1000,
            packetsHeld: held)
    }

    @Test("triggers once each interval, and says until when to wait")
    func interval() {
        var policy = Self.policy()
        #expect(Self.ask(&policy, at: 1000) == .wait(until: Self.at(1200)))
        #expect(Self.ask(&policy, at: 1199) == .wait(until: Self.at(1200)))
        #expect(Self.ask(&policy, at: 1200) == .triggerNow)
        #expect(Self.ask(&policy, at: 1200) == .wait(until: Self.at(1400)))
        #expect(Self.ask(&policy, at: 1900, uncommitted: 1) == .triggerNow)
        #expect(policy.lastTrigger == Self.at(1900))
    }

    @Test("is earlier when packets wait or the budget fills, but not without pause")
    func earlier() {
        var policy = Self.policy()
        #expect(Self.ask(&policy, at: 1049, held: true) == .wait(until: Self.at(1050)))
        #expect(Self.ask(&policy, at: 1050, held: true) == .triggerNow)
        #expect(Self.ask(&policy, at: 1099, bytes: 500) == .wait(until: Self.at(1100)))
        #expect(Self.ask(&policy, at: 1100, bytes: 499) == .wait(until: Self.at(1250)))
        #expect(Self.ask(&policy, at: 1100, uncommitted: 1, bytes: 500) == .wait(until: Self.at(1250)))
        #expect(Self.ask(&policy, at: 1100, bytes: 500) == .triggerNow)
    }

    @Test("does not trigger while one runs, two are uncommitted or the budget is used up, and catches up at once")
    func blocked() {
        var policy = Self.policy()
        #expect(Self.ask(&policy, at: 5000, running: true, held: true) == .blocked(.checkpointRunning))
        #expect(Self.ask(&policy, at: 5000, uncommitted: 2, held: true) == .blocked(.twoUncommitted))
        #expect(Self.ask(&policy, at: 5000, uncommitted: 3) == .blocked(.twoUncommitted))
        #expect(Self.ask(&policy, at: 5000, bytes: 1000) == .blocked(.budgetUsedUp))
        #expect(policy.lastTrigger == Self.at(1000))
        #expect(Self.ask(&policy, at: 5000) == .triggerNow)
    }

    @Test("over a long time gives as many checkpoints as the interval allows, whatever is asked when")
    func rate() {
        for seed in UInt64(1)...20 {
            var random = SplitMix64(seed: seed)
            var policy = EpochPolicy(interval: Self.interval, now: Self.at(0))
            var now: UInt64 = 0
            var last: UInt64 = 0
            var triggers = 0
            while now < 60_000 {
                let held = random.below(3) == 0
                switch Self.ask(&policy, at: now, held: held) {
                case .triggerNow:
                    #expect(now - last >= (held ? 50 : 200), "seed \(seed)")
                    last = now
                    triggers += 1
                case .wait(let until): #expect(until > Self.at(now), "seed \(seed)")
                case .blocked(let reason): Issue.record("seed \(seed): \(reason)")
                }
                now += UInt64(random.below(20))
            }
            #expect((60_000 / 220...60_000 / 50).contains(triggers), "seed \(seed): \(triggers)")
        }
    }
}
