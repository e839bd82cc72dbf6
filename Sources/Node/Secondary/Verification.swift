import Link
import Units

/// What `colo-blk verify` asks for.
public struct VerifyOptions: Codable, Sendable {
    /// Compare main memory with QEMU's process, see ``RamVerifyOptions/guestMemory``.
    public var guestMemory: Bool
    /// Bytes of disks and RAM that are compared in a second; 0: as fast as it goes.
    public var bytesPerSecond: UInt64
    /// Have what differs sent again, and compare it once more.
    public var repair: Bool
    /// Go on where the last comparison was cut short.
    public var resume: Bool

    public init(guestMemory: Bool, bytesPerSecond: UInt64, repair: Bool, resume: Bool) {
        self.guestMemory = guestMemory
        self.bytesPerSecond = bytesPerSecond
        self.repair = repair
        self.resume = resume
    }
}

/// How far a comparison is.
public struct VerifyProgress: Codable, Sendable, Equatable {
    public var doneBytes: UInt64
    public var totalBytes: UInt64
    public var differences: UInt64
}

/// What `colo-blk verify` found.
public struct VerifyReport: Codable, Sendable, Equatable {
    public struct Disk: Codable, Sendable, Equatable {
        public var id: String
        /// Size of the disk.
        public var bytes: UInt64
        public var comparedBytes: UInt64 = 0
        /// Blocks of 64 KiB that differed, those that are mended among them.
        public var differentBlocks: UInt64 = 0
        public var repairedBlocks: UInt64 = 0
    }

    public struct Difference: Codable, Sendable, Equatable {
        /// Id of the disk, or absent.
        public var disk: String?
        /// Name of the RAM block, or absent.
        public var ramBlock: String?
        /// In the disk or the RAM block, in bytes.
        public var offset: UInt64
        /// 65536 for disks (less at the end), 4096 for RAM.
        public var length: UInt64
        /// The checkpoint in which it differs.
        public var epoch: UInt64
        public var repaired: Bool
    }

    public var guest: String
    /// The checkpoints that took part.
    public var firstEpoch: UInt64?
    public var lastEpoch: UInt64?
    public var disks: [Disk] = []
    /// Pages of RAM, and what became of them.
    public var ramPages: UInt64 = 0
    public var comparedPages: UInt64 = 0
    public var differentPages: UInt64 = 0
    public var repairedPages: UInt64 = 0
    /// The first of them.
    public var differences: [Difference] = []
    /// Nothing is committed that could be compared.
    public var isCommitted = true
    /// Why not all was compared; absent when all was.
    public var unavailable: String?

    /// Differences that are listed one by one.
    static let listedMax = 256

    init(guest: String) { self.guest = guest }

    /// Blocks and pages that differ still.
    public var differing: UInt64 { found - repaired }
    /// Blocks and pages that differed.
    public var found: UInt64 { disks.reduce(differentPages) { $0 + $1.differentBlocks } }
    /// Blocks and pages that are mended.
    public var repaired: UInt64 { disks.reduce(repairedPages) { $0 + $1.repairedBlocks } }

    /// In a few words.
    var summary: String {
        let words =
            found == 0 ? "no difference found" : "\(found) blocks and pages differed, \(repaired) of them are mended"
        return unavailable.map { "\(words); not compared whole: \($0)" } ?? words
    }

    mutating func saw(_ epoch: Epoch) {
        firstEpoch = firstEpoch ?? epoch.rawValue
        lastEpoch = epoch.rawValue
    }

    mutating func add(_ difference: Difference) {
        if differences.count < Self.listedMax { differences.append(difference) }
    }
}

/// How far a comparison has come, kept in the guest's folder so that it can go on later: `GUEST/verify.json`.
struct VerifyCursor: Codable {
    static let fileName = "verify.json"
    /// Longer files are not read, in bytes.
    static let lengthMax = 1 << 20

    /// Sizes of what is compared: another guest begins anew.
    var shape: [UInt64]
    var guestMemory: Bool
    /// The disk and the block in it that come next; behind the last disk RAM follows.
    var disk = 0
    var block: UInt64 = 0
    /// The next run of pages.
    var run = 0
    var report: VerifyReport
}

/// A comparison of disks and RAM that is under way.
struct Verification {
    /// Digests that have come with an epoch which is committed; its view is held until they were compared.
    struct Answer {
        var epoch: Epoch
        var check: DiskCheck
    }

    var isStopped = false
    /// By epoch, until it is committed.
    var arriving: [Epoch: [DiskCheck]] = [:]
    var answers: [Answer] = []
    var waiter: CheckedContinuation<Void, any Error>?
    /// Grows with every wait.
    var waits = 0
}
