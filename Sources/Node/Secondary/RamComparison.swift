import Link
import RamCache
import Units

/// What `colo-blk ram verify` asks for.
public struct RamVerifyOptions: Codable, Sendable {
    /// Compare with the guest's memory as it is in QEMU's process, which lengthens the pauses of the checkpoints that
    /// take part; otherwise with the agent's copy of what it has sent.
    public var guestMemory: Bool

    public init(guestMemory: Bool) {
        self.guestMemory = guestMemory
    }
}

/// What `colo-blk ram verify` found.
public struct RamVerifyReport: Codable, Sendable {
    public struct Difference: Codable, Sendable, Equatable {
        public var block: String
        /// Of the page in the block, in bytes.
        public var offset: UInt64
        /// The checkpoint in which it differs.
        public var epoch: UInt64
    }

    public var guest: String
    /// The checkpoints that took part; a run of pages each.
    public var firstEpoch: UInt64?
    public var lastEpoch: UInt64?
    /// Pages compared with the agent's copy, and with the guest's own memory.
    public var pagesOfCopy: UInt64 = 0
    public var pagesOfGuest: UInt64 = 0
    public var differentPages: UInt64 = 0
    /// The first of them.
    public var differences: [Difference] = []
    /// Why not all could be compared; nil when all were.
    public var unavailable: String?

    /// Differences that are listed one by one.
    static let listedMax = 256
}

/// One run of pages of a comparison, from the question to the answer.
struct RamCheck {
    let number: UInt64
    let ask: RamVerify
    var answer: RamDigests.Outcome?
    let done: CheckedContinuation<Result, any Error>

    /// What a run came to.
    struct Result: Sendable {
        var epoch: Epoch
        var different: [Int]
        var unavailable: String?
    }
}

/// The pages of a layout in runs that one checkpoint can compare.
struct RamCheckPlan {
    /// Pages a checkpoint compares with the agent's copy: 64 MiB, some 40 ms on both hosts beside the guest.
    static let copyRun = 16384
    /// Pages it compares with the guest's own memory: 16 MiB, some 10 ms that the guest stands still.
    static let guestRun = 4096

    let asks: [RamVerify]

    /// The guest's own memory is its largest block; all others are compared with the agent's copy.
    init(layout: RamLayout, guestMemory: Bool) {
        var asks: [RamVerify] = []
        let main = layout.blocks.indices.max { layout.blocks[$0].length < layout.blocks[$1].length }
        var copyStart: Int?
        func copy(to end: Int) {
            guard let start = copyStart else { return }
            asks += Self.runs(start..<end, .copy, Self.copyRun)
            copyStart = nil
        }
        for index in layout.blocks.indices {
            let first = layout.globalPage(block: index, page: 0)
            if guestMemory, index == main {
                copy(to: first)
                asks += Self.runs(
                    first..<first + Int(layout.blocks[index].pageCount), .guest, Self.guestRun)
            } else if copyStart == nil {
                copyStart = first
            }
        }
        copy(to: layout.pageCount)
        self.asks = asks
    }

    private static func runs(_ pages: Range<Int>, _ source: RamCheckSource, _ most: Int) -> [RamVerify] {
        stride(from: pages.lowerBound, to: pages.upperBound, by: most).map { start in
            RamVerify(source: source, first: UInt64(start), count: UInt32(min(most, pages.upperBound - start)))
        }
    }
}
