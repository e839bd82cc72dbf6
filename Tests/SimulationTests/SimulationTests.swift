import Foundation
import Simulator
import Testing

/// Seeds of the main test: enough in a release build, a taste in a debug build. `COLO_BLK_SEEDS` says otherwise.
private let seedCount: UInt64 = {
    if let said = ProcessInfo.processInfo.environment["COLO_BLK_SEEDS"].flatMap({ UInt64($0) }) { return said }
    #if DEBUG
        return 20
    #else
        return 2000
    #endif
}()

@Suite("Simulation", .serialized)
struct SimulationTests {
    @Test("every promise holds at every step of every seed, whatever fails")
    func promisesHold() {
        var plan = SimulationPlan()
        plan.count = seedCount
        let summary = plan.run()
        print(summary)
        #expect(summary.failed == 0, "\(summary.failure?.report ?? "")")
        #expect(summary.seeds == seedCount)
        // A simulation in which nothing happens proves nothing.
        #expect(summary.commits > 20 * summary.seeds)
        #expect(summary.probes > 15 * summary.seeds)
        guard seedCount >= 1000 else { return }
        for kind in FaultKind.allCases { #expect((summary.faults[kind] ?? 0) > 0, "\(kind) never happened") }
        #expect(FaultKind.allCases.count >= 20)
    }

    @Test("the same seed is the same story", arguments: [UInt64(3), 11, 42])
    func replays(seed: UInt64) {
        let first = Simulation(SimulationOptions(seed: seed)).run()
        let second = Simulation(SimulationOptions(seed: seed)).run()
        #expect(first.trace == second.trace)
        #expect(first.commits == second.commits)
        #expect(first.probes == second.probes)
        #expect(first.duration == second.duration)
    }

    @Test("different seeds are different stories")
    func seedsDiffer() {
        let stories = (1...6).map { Simulation(SimulationOptions(seed: $0)).run().trace }
        #expect(Set(stories).count == stories.count)
    }
}
