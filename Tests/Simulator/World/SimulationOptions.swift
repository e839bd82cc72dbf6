import TestSupport
import Units

/// What a run is about; all of it follows from the seed unless it is said.
public struct SimulationOptions: Sendable {
    public let seed: UInt64
    public var profile: Profile
    public var durability: Durability
    public var mutation: Mutation?
    var emphasis = Emphasis()
    /// Nanoseconds between checkpoints.
    var interval: UInt64
    var useDelta: Bool
    /// Whether the secondary drains disk frames of the next epoch before it writes the record of the last.
    var commitsLate: Bool
    /// Virtual nanoseconds in which faults happen.
    var faultTime: UInt64
    var faultCount: Int
    /// Bytes.
    var budget: UInt64
    var shape: GuestShape
    /// One probe in so many file operations.
    var probeRarity: Int
    /// Lines of trace that are kept.
    public var traceLines = 60

    public init(seed: UInt64) {
        self.seed = seed
        var random = SplitMix64(seed: seed)
        let roll = Int.random(in: 0..<10, using: &random)
        profile = roll < 7 ? .honest : roll < 8 ? .lyingSync : .rot
        durability = Int.random(in: 0..<4, using: &random) == 0 ? .memory : .disk
        interval = UInt64.random(in: 40...200, using: &random) * 1_000_000
        useDelta = Int.random(in: 0..<5, using: &random) > 0
        commitsLate = Int.random(in: 0..<2, using: &random) == 0
        faultTime = UInt64.random(in: 3_000...12_000, using: &random) * 1_000_000
        faultCount = Int.random(in: 2...20, using: &random)
        budget = UInt64.random(in: 300...1_500, using: &random) << 10
        let sizes = (0..<Int.random(in: 1...3, using: &random)).map { _ in
            // Some disks end within a block.
            Int.random(in: 40...330, using: &random) * 512
        }
        shape = GuestShape(
            diskSizes: sizes,
            ramBlocks: [Int.random(in: 10...24, using: &random) * 4096, Int.random(in: 1...4, using: &random) * 4096])
        probeRarity = 170
    }
}

/// How a run ended.
public struct SimulationOutcome: Sendable {
    public let seed: UInt64
    /// What was broken; nil when every promise held.
    public let failure: String?
    /// The last things that happened.
    public let trace: [String]
    public let commits: Int
    public let probes: Int
    public let failovers: Int
    /// Virtual nanoseconds.
    public let duration: UInt64
    /// How often each fault really struck.
    public let faults: [FaultKind: Int]

    /// What a person needs to see it again.
    public var report: String {
        guard let failure else { return "seed \(seed): passed" }
        return "seed \(seed): \(failure)\n  again: Scripts/simulate --seed \(seed)\n  "
            + trace.joined(separator: "\n  ")
    }
}
