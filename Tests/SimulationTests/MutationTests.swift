import Simulator
import Testing

@Suite("Planted bugs")
struct MutationTests {
    /// Seeds within which each known bug must be found. Measured: see docs/consistency.md.
    private static let seedsMax: UInt64 = 1000

    @Test("the simulator finds each known protocol bug", arguments: Mutation.allCases)
    func isFound(mutation: Mutation) {
        var plan = SimulationPlan()
        plan.count = Self.seedsMax
        plan.mutation = mutation
        plan.failuresMax = 1
        plan.workers = 1
        let summary = plan.run()
        #expect(summary.failed > 0, "\(mutation) went unnoticed for \(summary.seeds) seeds")
        let report = summary.failure?.report ?? ""
        #expect(report.contains("Scripts/simulate --seed"), "a failure must say how to see it again")
        print("\(mutation): found with seed \(summary.failure?.seed ?? 0)")
    }

    @Test("there are at least fifteen of them")
    func thereAreEnough() {
        #expect(Mutation.allCases.count >= 15)
    }
}
