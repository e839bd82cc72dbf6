import Units

/// What the secondary's cache holds when a session goes on with it, so that only pages that differ have to travel: a
/// digest for each page, or that a run of pages is all zero. Answers ramLayout.
public struct RamKnown: Equatable, Sendable, LinkPayload {
    /// Bytes before the runs.
    static let prefixLength = 12

    /// Whether this is the last frame of its kind.
    public var isLast: Bool
    /// The first page, counted through all blocks of the RAM layout.
    public var first: UInt64
    /// Pages behind each other. Empty only when ``isLast``; when all frames of a session together have none, the cache is
    /// new and holds zeroes.
    public var runs: [DiskDigests.Run]

    public init(isLast: Bool, first: UInt64, runs: [DiskDigests.Run]) {
        self.isLast = isLast
        self.first = first
        self.runs = runs
    }

    static let lengths = prefixLength...prefixLength + LinkLimits.diskDigestsMax

    public var kind: FrameKind { .ramKnown }

    public func encode(into writer: inout ByteWriter) {
        writer.write(isLast ? UInt8(1) : 0)
        writer.writeZeroes(3)
        writer.write(first)
        for run in runs { run.encode(into: &writer) }
    }

    public static func decode(_ payload: UnsafeRawBufferPointer) throws(LinkError) -> RamKnown {
        var reader = PayloadReader(.ramKnown, payload)
        let last: UInt8 = try reader.read()
        guard last <= 1 else { throw reader.bad("last", at: 0, "is \(last), not 0 or 1") }
        try reader.zeroes(3)
        let first: UInt64 = try reader.read()
        var runs: [DiskDigests.Run] = []
        while reader.remaining > 0 { runs.append(try DiskDigests.Run(&reader)) }
        guard last == 1 || !runs.isEmpty else { throw reader.bad("runs", at: prefixLength, "are missing") }
        return RamKnown(isLast: last == 1, first: first, runs: runs)
    }
}
