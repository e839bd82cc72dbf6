import Foundation

/// What the environment says about this run.
enum Settings {
    private static let environment = ProcessInfo.processInfo.environment

    /// The colo-blk under test; without it no guest test runs.
    static var binary: String? { environment["COLO_BLK_BIN"] }

    /// kill -9 of QEMU in the whole run, spread over three workloads.
    static var kills: Int { number("COLO_BLK_KILLS") ?? (isFull ? 21 : 3) }

    /// Deaths of the agent in fast checkpoints, half of them at random.
    static var agentDeaths: Int { number("COLO_BLK_AGENT_DEATHS") ?? (isFull ? 30 : 2) }

    /// Only rows of the guardian's matrix that contain these words.
    static var matrixRows: String? { environment["COLO_BLK_MATRIX_ROWS"] }

    /// Checkpoints over which the RAM cache is compared with the guest.
    static var comparedCheckpoints: Int { number("COLO_BLK_COMPARED_CHECKPOINTS") ?? (isFull ? 1000 : 60) }

    /// Rounds of the other tests that repeat themselves.
    static var rounds: Int { number("COLO_BLK_ROUNDS") ?? (isFull ? 6 : 3) }

    /// The nightly run: COLO_BLK_FULL=1.
    static var isFull: Bool { environment["COLO_BLK_FULL"] == "1" }

    /// Leaves the directories of failed tests where they are.
    static var keepsDirectories: Bool { environment["COLO_BLK_KEEP"] == "1" }

    /// Every random choice of a test follows from this and the test's name.
    static let seed: UInt64 =
        environment["COLO_BLK_SEED"].flatMap { UInt64($0) } ?? UInt64.random(in: 0...UInt64(UInt32.max))

    /// The root of the repository.
    static let repository: String = {
        let file = URL(fileURLWithPath: #filePath).resolvingSymlinksInPath()
        return file.deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent()
            .deletingLastPathComponent().path
    }()

    static let launcher = repository + "/Images/launch"

    /// The QEMU of the guests that the tests start.
    static var qemu: String { environment["COLO_BLK_QEMU"] ?? "qemu-system-x86_64" }

    private static func number(_ name: String) -> Int? { environment[name].flatMap { Int($0) } }
}

/// A small deterministic generator, so that a seed gives the same choices again.
struct SplitMix64: RandomNumberGenerator {
    private var state: UInt64

    init(seed: UInt64) { state = seed }

    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var value = state
        value = (value ^ (value >> 30)) &* 0xBF58_476D_1CE4_E5B9
        value = (value ^ (value >> 27)) &* 0x94D0_49BB_1331_11EB
        return value ^ (value >> 31)
    }
}
