import Units

/// What the secondary holds of one disk when a session begins, and which writes of the initial copy therefore need not
/// travel. The disk is cut into blocks of ``blockSize``, whatever the granularity of pre-images.
///
/// **Why nothing is lost.** The mirror believes that it writes to a disk of its own. This value is that disk: at every
/// moment, and for every block, it stands for exact contents, which are what the mirror has written so far, in the order
/// in which the mirror wrote it, over what the secondary had at first. A block is in one of three states:
///
/// - *as found*: the mirror's disk and the secondary's disk are equal here, and nothing was sent for the block.
/// - *held zeroes*: the mirror has zeroed the whole block, the secondary has not been told, and still has what it had.
/// - *sent*: everything since the first difference was sent; the secondary makes the same of it, in the same order.
///
/// | Write | as found | held zeroes | sent |
/// |---|---|---|---|
/// | zeroes, whole block | nothing if it was zero; else → held zeroes | nothing | send |
/// | zeroes, part | nothing if it was zero; else send → sent | nothing | send |
/// | data, whole block, digest equal to what was found | nothing | → as found | send |
/// | data, whole block, other | send → sent | send → sent | send |
/// | data, part | send → sent | send zeroes for the block, send → sent | send |
///
/// Each cell keeps the promise of its state, for any writer: whether a write comes from the copy or from the guest makes
/// no difference, and neither does their order, because it is the order of the one connection that all of them take.
/// A block that was sent is never skipped again. Once the initial copy is done, `takeHeld` brings what was held over
/// and the value is thrown away, before the boundary of the first epoch: so the first checkpoint has everything.
/// Held zeroes matter because QEMU zeroes a whole target that can be unmapped before it copies into it.
public struct KnownBlocks: Sendable {
    /// What to do with a write, or with the part of it that falls into one block.
    public enum Verdict: Equatable, Sendable {
        /// The secondary has it, or will be told later.
        case nothing
        /// Send it as it is.
        case send
        /// Send zeroes for the whole block first, then it.
        case zeroBlockAndSend
    }

    /// The peer's description of the disk is not one.
    public struct Malformed: Error, Equatable, Sendable, CustomStringConvertible {
        public let description: String
    }

    public let diskSize: UInt64
    /// Bytes in a block: a power of two.
    public let blockSize: Int
    public let blockCount: Int
    /// Digests that are kept at most; blocks beyond it count as different. 16 bytes each.
    public let digestLimit: Int
    /// Blocks described so far.
    public private(set) var described = 0
    /// Blocks whose data the secondary had, or that it had as zeroes while the mirror sent zeroes as data.
    public private(set) var skipped: UInt64 = 0

    private var digests: [BlockDigest] = []
    private var hasDigest: [UInt64]
    /// For every word of `hasDigest` the number of digests before it.
    private var digestsBefore: [UInt32]
    private var wasZero: Bitmap
    private var held: Bitmap
    private var sent: Bitmap

    /// Takes 4.5 bits of memory per block, and 16 bytes for each digest that is kept.
    public init(diskSize: UInt64, blockSize: Int, digestLimit: Int) {
        precondition(diskSize > 0 && blockSize > 0 && blockSize & (blockSize - 1) == 0)
        self.diskSize = diskSize
        self.blockSize = blockSize
        self.digestLimit = digestLimit
        blockCount = Int((diskSize - 1) / UInt64(blockSize)) + 1
        let words = (blockCount + 63) / 64
        hasDigest = Array(repeating: 0, count: words)
        digestsBefore = Array(repeating: 0, count: words)
        wasZero = Bitmap(count: blockCount)
        held = Bitmap(count: blockCount)
        sent = Bitmap(count: blockCount)
    }

    // MARK: What was found

    /// Whether every block has been described.
    public var isComplete: Bool { described == blockCount }
    /// Digests that are kept.
    public var digestCount: Int { digests.count }

    /// The next blocks are all zero.
    public mutating func describe(zeroes count: Int, from first: UInt64) throws(Malformed) {
        try check(count, first)
        for block in described..<described + count { wasZero.insert(block) }
        advance(count)
    }

    /// The next blocks have these digests.
    public mutating func describe(_ found: [BlockDigest], from first: UInt64) throws(Malformed) {
        try check(found.count, first)
        for (index, digest) in found.enumerated() {
            let block = described + index
            if block & 63 == 0 { digestsBefore[block >> 6] = UInt32(digests.count) }
            guard digests.count < digestLimit else { continue }
            hasDigest[block >> 6] |= 1 << UInt64(block & 63)
            digests.append(digest)
        }
        advance(found.count, marked: true)
    }

    private func check(_ count: Int, _ first: UInt64) throws(Malformed) {
        guard first == UInt64(described) else {
            throw Malformed(description: "blocks from \(first) on are described, \(described) would be next")
        }
        guard count <= blockCount - described else {
            throw Malformed(description: "\(count) blocks from \(first) on are described, the disk has \(blockCount)")
        }
    }

    private mutating func advance(_ count: Int, marked: Bool = false) {
        let end = described + count
        if !marked {
            // Words that begin within the run.
            var word = (described + 63) >> 6
            while word << 6 < end {
                digestsBefore[word] = UInt32(digests.count)
                word += 1
            }
        }
        described = end
    }

    private func digest(of block: Int) -> BlockDigest? {
        let word = hasDigest[block >> 6]
        let bit: UInt64 = 1 << UInt64(block & 63)
        guard word & bit != 0 else { return nil }
        return digests[Int(digestsBefore[block >> 6]) + (word & (bit - 1)).nonzeroBitCount]
    }

    // MARK: Writes

    /// Bytes of the disk in a block.
    public func range(of block: Int) -> Range<UInt64> {
        let start = UInt64(block) * UInt64(blockSize)
        return start..<min(start + UInt64(blockSize), diskSize)
    }

    /// Data for a block, or for a part of it; what is all zero may come here or to ``zeroes(_:isWhole:)``.
    ///
    /// `digest` is called when the block could be equal, which costs more than everything else here.
    public mutating func data(_ block: Int, isWhole: Bool, digest: () -> BlockDigest) -> Verdict {
        if sent.contains(block) { return .send }
        if isWhole, let found = self.digest(of: block), found == digest() {
            held.remove(block)
            skipped += 1
            return .nothing
        }
        sent.insert(block)
        return held.remove(block) && !isWhole ? .zeroBlockAndSend : .send
    }

    /// Zeroes for a block, or for a part of it.
    public mutating func zeroes(_ block: Int, isWhole: Bool) -> Verdict {
        if sent.contains(block) { return .send }
        if held.contains(block) || wasZero.contains(block) { return .nothing }
        guard isWhole else {
            sent.insert(block)
            return .send
        }
        held.insert(block)
        return .nothing
    }

    /// Takes out zeroes that the secondary must still be told of, at most `count` ranges, and counts them as sent. Empty
    /// when there are no more.
    public mutating func takeHeld(ranges count: Int) -> [ByteRange] {
        var taken: [Range<Int>] = []
        var block = held.first(from: 0)
        while let start = block, taken.count < count {
            var end = start
            while end < blockCount, held.remove(end) {
                sent.insert(end)
                end += 1
            }
            taken.append(start..<end)
            block = held.first(from: end)
        }
        return taken.map { blocks in
            let start = range(of: blocks.lowerBound).lowerBound
            return ByteRange(offset: start, length: range(of: blocks.upperBound - 1).upperBound - start)
        }
    }
}
