import BlockReplica
import Link
import Units

/// What the secondary wants to know of the guest's disks, and how far that is. Touched on the agent's event loop only.
final class DiskChecking {
    struct Repair: Hashable {
        var disk: Int
        var block: UInt64
    }

    /// Blocks that are read while the guest stands still, in one pause: 1 MiB, some milliseconds.
    static let pauseBlocks = 16
    /// Longest wait for them in a pause.
    static let pauseLimit = Int64(150)
    /// Blocks to be written again that may wait.
    static let repairsMax = 4096
    /// QEMU's NBD server is stopped when nobody has asked for so long.
    static let idleNanoseconds: UInt64 = 5_000_000_000

    /// The readers of all disks; nil: closed.
    var readers: [DiskReader]?
    var isOpening = false
    var isReading = false
    var lastUse = MonotonicClock.now()
    /// Grows with every question, so that what was read for an earlier one is recognised.
    var number = 0
    var disk = 0
    var watch: BlockWatch?
    /// What the epoch that is being completed will tell.
    var answers: [DiskCheck.Entry] = []
    var unavailable: String?
    var repairs: [Repair] = []
    /// Grows with every pause.
    var pause = 0

    var isBusy: Bool { watch.map { $0.left > 0 } ?? false || !repairs.isEmpty }

    /// Whether a block can only be read while the guest stands still.
    var hasRestless: Bool { watch.map { !$0.restless(atMost: 1).isEmpty } ?? false }

    /// A write, zeroes or a discard of the guest. On the data path: nothing happens unless a question is open.
    @inline(__always)
    func touched(disk: Int, _ range: ByteRange) {
        guard watch != nil, disk == self.disk else { return }
        watch?.touched(range)
    }
}
