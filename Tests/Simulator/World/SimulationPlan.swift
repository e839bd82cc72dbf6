import Dispatch
import Synchronization

/// Many seeds, on a few threads.
public struct SimulationPlan: Sendable {
    public var first: UInt64 = 1
    public var count: UInt64 = 1000
    /// Real time after which no new seed is begun; nil for none.
    public var limit: Duration?
    public var workers = 2
    public var mutation: Mutation?
    /// After so many failures no new seed is begun.
    public var failuresMax = 3

    public init() {}

    /// What came of it.
    public struct Summary: Sendable, CustomStringConvertible {
        public var seeds = 0
        public var failed = 0
        public var commits = 0
        public var probes = 0
        public var failovers = 0
        /// Virtual nanoseconds.
        public var virtual: UInt64 = 0
        public var real = Duration.zero
        public var faults: [FaultKind: Int] = [:]
        /// The first that failed, by seed.
        public var failure: SimulationOutcome?

        mutating func add(_ outcome: SimulationOutcome) {
            seeds += 1
            commits += outcome.commits
            probes += outcome.probes
            failovers += outcome.failovers
            virtual += outcome.duration
            faults.merge(outcome.faults) { $0 + $1 }
            guard outcome.failure != nil else { return }
            failed += 1
            if outcome.seed < failure?.seed ?? .max { failure = outcome }
        }

        public var description: String {
            let seconds = Double(virtual) / 1e9
            let took = Double(real.components.seconds) + Double(real.components.attoseconds) / 1e18
            let struck = FaultKind.allCases.map { "\($0.rawValue) \(faults[$0] ?? 0)" }.joined(separator: ", ")
            return "\(seeds) seeds, \(failed) failed: \(commits) commits, \(failovers) failovers, \(probes) recoveries "
                + "tried on the way; \(Int(seconds)) s of virtual time in \(Int(took * 10) / 10) s, "
                + "\(Int(seconds / max(took, 0.001))) times as fast as the clock\nfaults: \(struck)"
        }
    }

    private struct Progress {
        var next: UInt64
        var summary = Summary()
    }

    /// Runs the seeds; `report` is told of each as it ends, one at a time, on any thread.
    public func run(_ report: @escaping @Sendable (SimulationOutcome) -> Void = { _ in }) -> Summary {
        let began = ContinuousClock.now
        let progress = Mutex(Progress(next: first))
        DispatchQueue.concurrentPerform(iterations: max(workers, 1)) { _ in
            while true {
                let seed = progress.withLock { progress -> UInt64? in
                    guard progress.next - first < count, progress.summary.failed < failuresMax else { return nil }
                    if let limit, ContinuousClock.now - began >= limit { return nil }
                    defer { progress.next += 1 }
                    return progress.next
                }
                guard let seed else { return }
                var options = SimulationOptions(seed: seed)
                options.mutation = mutation
                options.emphasis = mutation?.emphasis ?? Emphasis()
                let outcome = Simulation(options).run()
                progress.withLock {
                    $0.summary.add(outcome)
                    report(outcome)
                }
            }
        }
        return progress.withLock { progress in
            progress.summary.real = ContinuousClock.now - began
            return progress.summary
        }
    }
}
