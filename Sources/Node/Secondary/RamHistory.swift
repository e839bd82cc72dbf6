import Link
import Units

/// What came of the guest's RAM, epoch by epoch, since the daemon started: for `colo-blk ram info`. Bounded.
struct RamHistory {
    /// Epochs that are remembered one by one.
    static let capacity = 240

    private(set) var epochs: [RamInfo.EpochFigures] = []
    private(set) var total = RamInfo.Yield()
    /// Sealed but not committed yet.
    private var arriving: [Epoch: RamFigures] = [:]
    private var lastCommit: Moment?

    mutating func arrived(_ figures: RamFigures, of epoch: Epoch) { arriving[epoch] = figures }

    mutating func committed(_ epoch: Epoch, at now: Moment) {
        defer { lastCommit = now }
        guard let figures = arriving.removeValue(forKey: epoch) else { return }
        let yield = RamInfo.Yield(figures)
        total.add(yield)
        if epochs.count == Self.capacity { epochs.removeFirst() }
        epochs.append(
            RamInfo.EpochFigures(
                epoch: epoch.rawValue,
                millisecondsSinceLast: lastCommit.map { Double(now.nanoseconds(since: $0)) / 1e6 }, yield: yield))
    }

    /// Pages changed in a second, over the last checkpoints; nil before there are two.
    var pagesPerSecond: Double? {
        let recent = epochs.suffix(20).filter { $0.millisecondsSinceLast != nil }
        let seconds = recent.reduce(0.0) { $0 + ($1.millisecondsSinceLast ?? 0) } / 1000
        return seconds > 0 ? Double(recent.reduce(0) { $0 + $1.yield.pages }) / seconds : nil
    }

    /// A session is over: what had not been committed never will be.
    mutating func sessionEnded() {
        arriving = [:]
        lastCommit = nil
    }
}

/// What `colo-blk ram info` tells.
public struct RamInfo: Codable, Sendable {
    public struct Block: Codable, Sendable {
        public var name: String
        public var bytes: UInt64
        /// Whether a new QEMU maps it from its cache file; otherwise it travels in the restore stream.
        public var mapped: Bool
    }

    /// What became of changed pages.
    public struct Yield: Codable, Sendable {
        /// Pages that QEMU sent.
        public var pages: UInt64 = 0
        public var identical: UInt64 = 0
        public var zero: UInt64 = 0
        public var delta: UInt64 = 0
        public var whole: UInt64 = 0
        /// Bytes of batches before compression, and as they were sent.
        public var uncompressedBytes: UInt64 = 0
        public var sentBytes: UInt64 = 0

        init() {}

        init(_ figures: RamFigures) {
            pages = figures.pages
            identical = figures.identical
            zero = figures.zero
            delta = figures.delta
            whole = figures.raw
            uncompressedBytes = figures.rawBytes
            sentBytes = figures.bytes
        }

        /// Wraps rather than traps: the numbers are a peer's.
        mutating func add(_ other: Yield) {
            pages &+= other.pages
            identical &+= other.identical
            zero &+= other.zero
            delta &+= other.delta
            whole &+= other.whole
            uncompressedBytes &+= other.uncompressedBytes
            sentBytes &+= other.sentBytes
        }

        /// Bytes on the link for a page that QEMU sent; nil when there was none.
        public var bytesPerPage: Double? { pages > 0 ? Double(sentBytes) / Double(pages) : nil }
    }

    public struct EpochFigures: Codable, Sendable {
        public var epoch: UInt64
        /// From the commit before; absent for the first one of a session.
        public var millisecondsSinceLast: Double?
        public var yield: Yield
    }

    public var guest: String
    /// Absent: nothing has been committed yet.
    public var committedEpoch: UInt64?
    public var durability: String
    public var blocks: [Block]
    /// Shared memory that the cache and the epoch on its way take.
    public var cacheBytes: UInt64?
    public var stagingBytes: UInt64?
    /// With durability disk: the logs that a restart reads, the base before them, the length at which a new base is
    /// begun, and what all files of the RAM take on disk.
    public var logBytes: UInt64?
    public var baseEpoch: UInt64?
    public var logLimitBytes: UInt64?
    public var diskBytes: UInt64?
    public var compactions: Int?
    public var compactionProgress: Double?
    /// Why the last compaction was given up.
    public var compactionFailure: String?
    /// Since the daemon started, the initial copies included.
    public var total: Yield
    /// The newest last.
    public var epochs: [EpochFigures]
}
