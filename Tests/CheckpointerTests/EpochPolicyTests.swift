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
        held: UInt64? = nil, filling: Bool = false
    ) -> EpochPolicy.Decision {
        var situation = EpochPolicy.Situation()
        situation.checkpointRunning = running
        situation.uncommitted = uncommitted
        situation.outstandingBytes = bytes
        situation.budget = 1000
        situation.oldestHeld = held.map(at)
        situation.isHoldFilling = filling
        return policy.next(now: at(now), situation)
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

    @Test("is earlier when the budget or the room for packets fills, but not without pause")
    func filling() {
        var policy = Self.policy()
        #expect(Self.ask(&policy, at: 1049, filling: true) == .wait(until: Self.at(1050)))
        #expect(Self.ask(&policy, at: 1050, filling: true) == .triggerNow)
        #expect(Self.ask(&policy, at: 1099, bytes: 500) == .wait(until: Self.at(1100)))
        #expect(Self.ask(&policy, at: 1100, bytes: 499) == .wait(until: Self.at(1250)))
        #expect(Self.ask(&policy, at: 1100, uncommitted: 1, bytes: 500) == .wait(until: Self.at(1250)))
        #expect(Self.ask(&policy, at: 1100, bytes: 500) == .triggerNow)
    }

    @Test("with packets held, is as early as the target for the oldest of them asks, commit included")
    func holding() {
        var policy = EpochPolicy(interval: Self.interval, holdTarget: 40_000_000, now: Self.at(1000))
        // Three quarters of the target, and nothing is known of commits yet.
        #expect(Self.ask(&policy, at: 1020, held: 1010) == .wait(until: Self.at(1040)))
        #expect(Self.ask(&policy, at: 1040, held: 1010) == .triggerNow)
        policy.committed(now: Self.at(1060))
        #expect(policy.latency == 20_000_000)
        #expect(Self.ask(&policy, at: 1061, held: 1061) == .wait(until: Self.at(1071)))
        #expect(Self.ask(&policy, at: 1071, held: 1061) == .triggerNow)
        // Commits take longer than the target: at once, and still not one upon the other.
        policy.committed(now: Self.at(1271))
        #expect(policy.latency == 65_000_000)
        #expect(Self.ask(&policy, at: 1272, held: 1272) == .triggerNow)
        #expect(Self.ask(&policy, at: 1273, held: 1273) == .wait(until: Self.at(1277)))
        // Nothing waits: the interval again.
        #expect(Self.ask(&policy, at: 1300) == .wait(until: Self.at(1472)))
        // What is held since long ago waits for its commit and no longer for a checkpoint; the interval stays the bound.
        var lazy = EpochPolicy(interval: Self.interval, holdTarget: 10_000_000_000, now: Self.at(1000))
        #expect(Self.ask(&lazy, at: 1010, held: 1001) == .wait(until: Self.at(1200)))
    }

    @Test("commits of which no trigger is known say nothing about the time that they take")
    func strayCommits() {
        var policy = Self.policy()
        policy.committed(now: Self.at(1100))
        #expect(policy.latency == 0)
        #expect(Self.ask(&policy, at: 1200) == .triggerNow)
        policy.committed(now: Self.at(1208))
        policy.committed(now: Self.at(1300))
        #expect(policy.latency == 8_000_000)
    }

    @Test("in the long run pauses take their share of the guest's time and no more, whatever waits")
    func pauseShare() {
        let seed = UInt64.random(in: 0...UInt64(UInt32.max))
        var random = SplitMix64(seed: seed)
        for round in 0..<40 {
            let share = Double(1 + random.below(50)) / 100
            var policy = EpochPolicy(interval: 10_000_000, holdTarget: 0, pauseShareMax: share, now: Self.at(0))
            var now: UInt64 = 0
            var paused: UInt64 = 0
            var triggers = 0
            while now < 120_000 {
                switch Self.ask(&policy, at: now, held: now) {
                case .triggerNow:
                    // At most a second's worth, so that what is owed is never cut.
                    let pause = UInt64(1 + random.below(Int(share * 900)))
                    now += pause
                    paused += pause
                    triggers += 1
                    policy.paused(nanoseconds: pause * 1_000_000, now: Self.at(now))
                case .wait(let until):
                    #expect(until > Self.at(now), "seed \(seed), round \(round)")
                    now = (until.nanoseconds + 999_999) / 1_000_000
                case .blocked(let reason): Issue.record("seed \(seed): \(reason)")
                }
            }
            let taken = Double(paused) / Double(now)
            #expect(taken <= share + 0.02, "seed \(seed), round \(round): \(taken) of \(share)")
            #expect(taken >= share * 0.9 || now / UInt64(triggers) <= 12, "seed \(seed): \(taken) of \(share)")
            #expect((policy.pauses.measured ?? 0) > 0)
        }
    }

    @Test("a checkpoint waits a second for the share of pauses at most, however long the last pause was")
    func longPause() {
        var policy = EpochPolicy(interval: Self.interval, pauseShareMax: 0.25, now: Self.at(0))
        #expect(Self.ask(&policy, at: 200) == .triggerNow)
        policy.paused(nanoseconds: 30_000_000_000, now: Self.at(30_200))
        #expect(Self.ask(&policy, at: 30_200) == .wait(until: Self.at(31_200)))
        #expect(Self.ask(&policy, at: 31_200) == .triggerNow)
    }

    @Test("tells the share that the last pauses took")
    func measured() {
        var budget = PauseBudget(share: 0.5, now: Self.at(0))
        #expect(budget.measured == nil)
        for round in UInt64(1)...100 {
            budget.paused(nanoseconds: round <= 60 ? 90_000_000 : 5_000_000, now: Self.at(round * 100))
        }
        #expect(budget.measured == 0.05)
    }

    @Test("does not trigger while one runs, two are uncommitted or the budget is used up, and catches up at once")
    func blocked() {
        var policy = Self.policy()
        #expect(Self.ask(&policy, at: 5000, running: true, held: 4000) == .blocked(.checkpointRunning))
        #expect(Self.ask(&policy, at: 5000, uncommitted: 2, held: 4000) == .blocked(.twoUncommitted))
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
                let filling = random.below(3) == 0
                switch Self.ask(&policy, at: now, filling: filling) {
                case .triggerNow:
                    #expect(now - last >= (filling ? 50 : 200), "seed \(seed)")
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
