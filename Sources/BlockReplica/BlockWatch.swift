import Units

/// Blocks of a disk that are read while its guest writes, and whose contents at a checkpoint are to be told.
///
/// **Why what is told is right.** A mirror writes to the guest's disk first and tells us then, and at a boundary it has told
/// us of everything. So a block that was read, and of which we have been told nothing from the start of that read to the
/// boundary, has at the boundary what was read: a write that the read has not seen would have been told of in between, and
/// so would one that it has seen half. A block that was written to is read again. One that is written to again and again
/// (``patience``) becomes *restless*: only a read while the guest stands still can tell what it is at a boundary.
///
/// ```
/// wanted ──take──► reading ──finished──► ready ──boundary──► (told)
///   ▲                 │ touched             │ touched
///   └─────────────────┴─────────────────────┘   or, after that many times: restless ──► (told in a pause)
/// ```
public struct BlockWatch: Sendable {
    public static let blockSize = 64 << 10
    /// Reads that may come to nothing before a block counts as restless.
    public static let patience = 3

    private struct Block: Sendable {
        var state = State.wanted
        var failures = 0
    }

    private enum State: Sendable, Equatable {
        case wanted
        case reading
        /// Was written to while it is being read.
        case spoilt
        case ready(BlockDigest)
        case restless
    }

    /// Size of the disk in bytes.
    public let diskSize: UInt64
    private let first: UInt64
    private var blocks: [Block]
    /// Blocks that are not told yet.
    public private(set) var left: Int
    private var told: [Bool]

    /// Watches `count` blocks from `first` on, which lie on the disk.
    public init(diskSize: UInt64, first: UInt64, count: Int) {
        precondition(count > 0 && (first + UInt64(count) - 1) * UInt64(Self.blockSize) < diskSize)
        self.diskSize = diskSize
        self.first = first
        blocks = Array(repeating: Block(), count: count)
        told = Array(repeating: false, count: count)
        left = count
    }

    /// Bytes of the disk in a block.
    public func range(of block: UInt64) -> ByteRange {
        let start = block * UInt64(Self.blockSize)
        return ByteRange(offset: start, length: min(UInt64(Self.blockSize), diskSize - start))
    }

    /// The mirror has told of a change of these bytes of the disk.
    public mutating func touched(_ range: ByteRange) {
        guard !range.isEmpty, left > 0 else { return }
        let from = max(range.offset / UInt64(Self.blockSize), first)
        let to = min((range.end - 1) / UInt64(Self.blockSize), first + UInt64(blocks.count) - 1)
        guard from <= to else { return }
        for index in Int(from - first)...Int(to - first) {
            switch blocks[index].state {
            case .reading: blocks[index].state = .spoilt
            case .ready: fail(index)
            case .wanted, .spoilt, .restless: break
            }
        }
    }

    private mutating func fail(_ index: Int) {
        blocks[index].failures += 1
        blocks[index].state = blocks[index].failures >= Self.patience ? .restless : .wanted
    }

    /// The next blocks to be read, at most so many behind each other. Nil: none for the moment.
    public mutating func take(atMost count: Int) -> Range<UInt64>? {
        guard let start = blocks.indices.first(where: { !told[$0] && blocks[$0].state == .wanted }) else { return nil }
        var end = start
        while end < blocks.count, end - start < count, !told[end], blocks[end].state == .wanted {
            blocks[end].state = .reading
            end += 1
        }
        return first + UInt64(start)..<first + UInt64(end)
    }

    /// A read that ``take(atMost:)`` asked for has ended.
    public mutating func finished(_ block: UInt64, _ digest: BlockDigest) {
        guard let index = index(block) else { return }
        switch blocks[index].state {
        case .reading: blocks[index].state = .ready(digest)
        case .spoilt: fail(index)
        case .wanted, .ready, .restless: break
        }
    }

    /// The guest stands still and all its writes have been told: what is ready is what the disk is now.
    public mutating func boundary() -> [(block: UInt64, digest: BlockDigest)] {
        var found: [(block: UInt64, digest: BlockDigest)] = []
        for index in blocks.indices where !told[index] {
            guard case .ready(let digest) = blocks[index].state else { continue }
            found.append((first + UInt64(index), digest))
            tell(index)
        }
        return found
    }

    /// Blocks that can only be read while the guest stands still, at most so many.
    public func restless(atMost count: Int) -> [UInt64] {
        Array(
            blocks.indices.lazy.filter { !told[$0] && blocks[$0].state == .restless }.prefix(count)
                .map { first + UInt64($0) })
    }

    /// A restless block was read while the guest stood still, and is told.
    public mutating func tellRestless(_ block: UInt64) {
        guard let index = index(block), !told[index], blocks[index].state == .restless else { return }
        tell(index)
    }

    private mutating func tell(_ index: Int) {
        told[index] = true
        left -= 1
    }

    private func index(_ block: UInt64) -> Int? {
        block >= first && block - first < UInt64(blocks.count) ? Int(block - first) : nil
    }
}
