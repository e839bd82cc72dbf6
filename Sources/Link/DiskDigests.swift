import Units

/// What the secondary holds of a disk when a session begins, so that only what differs has to travel: a digest for each
/// block, or that a run of blocks is all zero.
public struct DiskDigests: Equatable, Sendable, LinkPayload {
    /// Blocks behind each other.
    public enum Run: Equatable, Sendable {
        /// So many blocks that are all zero; 1 to `Int32.max`.
        case zeroes(Int)
        /// A digest for each block; not empty.
        case data([BlockDigest])

        /// Blocks in the run.
        public var count: Int {
            switch self {
            case .zeroes(let count): count
            case .data(let digests): digests.count
            }
        }
    }

    /// Bytes in a block, for disks of these sizes (bytes) together: 4 KiB to 16 GiB, 16 KiB to 64 GiB, else 64 KiB. So
    /// digests take 64 MiB at most for the disks of up to 64 GiB, and 1/4096 of the data beyond. The last block of a disk
    /// may be shorter, and its digest is that of the bytes it has.
    public static func blockSize(ofDisks sizes: [UInt64]) -> Int {
        var total: UInt64 = 0
        for size in sizes {
            let (sum, overflow) = total.addingReportingOverflow(size)
            total = overflow ? .max : sum
        }
        return total <= 16 << 30 ? 4 << 10 : total <= 64 << 30 ? 16 << 10 : 64 << 10
    }

    /// Bytes before the runs.
    static let prefixLength = 12
    /// Index into ``Hello/disks``.
    public var disk: Int
    /// Whether this is the last frame of its kind: now all blocks of all disks have been told of.
    public var isLast: Bool
    /// Number of the first block.
    public var first: UInt64
    /// Empty only when ``isLast``.
    public var runs: [Run]

    public init(disk: Int, isLast: Bool, first: UInt64, runs: [Run]) {
        self.disk = disk
        self.isLast = isLast
        self.first = first
        self.runs = runs
    }

    static let lengths = prefixLength...prefixLength + LinkLimits.diskDigestsMax

    public var kind: FrameKind { .diskDigests }

    public func encode(into writer: inout ByteWriter) {
        writer.write(UInt16(disk))
        writer.write(isLast ? UInt8(1) : 0)
        writer.write(UInt8(0))
        writer.write(first)
        for run in runs { run.encode(into: &writer) }
    }

    public static func decode(_ payload: UnsafeRawBufferPointer) throws(LinkError) -> DiskDigests {
        var reader = PayloadReader(.diskDigests, payload)
        let disk = Int(try reader.read(UInt16.self))
        let last: UInt8 = try reader.read()
        guard last <= 1 else { throw reader.bad("last", at: 2, "is \(last), not 0 or 1") }
        let reserved: UInt8 = try reader.read()
        guard reserved == 0 else { throw reader.bad("reserved byte", at: 3, "is \(reserved), not 0") }
        let first: UInt64 = try reader.read()
        var runs: [Run] = []
        while reader.remaining > 0 { runs.append(try Run(&reader)) }
        guard last == 1 || !runs.isEmpty else { throw reader.bad("runs", at: prefixLength, "are missing") }
        return DiskDigests(disk: disk, isLast: last == 1, first: first, runs: runs)
    }
}

extension DiskDigests.Run {
    private static let dataFlag: UInt32 = 1 << 31

    func encode(into writer: inout ByteWriter) {
        precondition(count > 0 && count <= Int32.max, "a run has 1 to 2^31-1 blocks")
        switch self {
        case .zeroes(let count):
            writer.write(UInt32(count))
        case .data(let digests):
            writer.write(UInt32(digests.count) | Self.dataFlag)
            for digest in digests {
                writer.write(digest.high)
                writer.write(digest.low)
            }
        }
    }

    init(_ reader: inout PayloadReader) throws(LinkError) {
        let start = reader.offset
        let head: UInt32 = try reader.read()
        let count = Int(head & ~Self.dataFlag)
        guard count > 0 else { throw reader.bad("run", at: start, "has no blocks") }
        guard head & Self.dataFlag != 0 else {
            self = .zeroes(count)
            return
        }
        // Nothing is allocated for digests that are not there.
        guard count <= reader.remaining / BlockDigest.length else {
            throw reader.bad("run", at: start, "announces \(count) digests in \(reader.remaining) bytes")
        }
        var digests: [BlockDigest] = []
        digests.reserveCapacity(count)
        for _ in 0..<count { digests.append(BlockDigest(high: try reader.read(), low: try reader.read())) }
        self = .data(digests)
    }
}
