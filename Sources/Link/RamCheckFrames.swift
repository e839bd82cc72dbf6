import Units

/// Where the page digests of a comparison come from.
public enum RamCheckSource: UInt8, Sendable, Equatable {
    /// The agent's own copy of what it has sent.
    case copy = 0
    /// The guest's memory, read in QEMU's process while the guest stands still.
    case guest = 1
}

/// The secondary asks for digests of a run of pages as they are at the next checkpoint.
public struct RamVerify: Equatable, Sendable, LinkPayload {
    /// Length of the payload in bytes.
    public static let length = 16

    public var source: RamCheckSource
    /// The first page, counted through all blocks of the RAM layout.
    public var first: UInt64
    /// 1 to ``LinkLimits/digestsMax`` pages.
    public var count: UInt32

    public init(source: RamCheckSource, first: UInt64, count: UInt32) {
        self.source = source
        self.first = first
        self.count = count
    }

    public var kind: FrameKind { .ramVerify }

    public func encode(into writer: inout ByteWriter) {
        writer.write(source.rawValue)
        writer.writeZeroes(3)
        writer.write(count)
        writer.write(first)
    }

    public static func decode(_ payload: UnsafeRawBufferPointer) throws(LinkError) -> RamVerify {
        var reader = PayloadReader(.ramVerify, payload)
        let source = try reader.checkSource()
        try reader.zeroes(3)
        let count = try reader.digestCount()
        let ask = RamVerify(source: source, first: try reader.read(), count: count)
        try reader.finish()
        return ask
    }
}

/// The primary's answer to ``RamVerify``, within the epoch whose end the digests show.
public struct RamDigests: Equatable, Sendable, LinkPayload {
    static let prefixLength = 16
    static let lengths = prefixLength...prefixLength + LinkLimits.digestsMax * 4

    public enum Outcome: Equatable, Sendable {
        /// CRC-32C of the 4096 bytes of each page.
        case digests([UInt32])
        /// Why there are none, in words.
        case unavailable(String)
    }

    /// What was asked for.
    public var ask: RamVerify
    public var outcome: Outcome

    public init(ask: RamVerify, outcome: Outcome) {
        if case .digests(let values) = outcome { precondition(values.count == Int(ask.count)) }
        self.ask = ask
        self.outcome = outcome
    }

    public var kind: FrameKind { .ramDigests }

    public func encode(into writer: inout ByteWriter) {
        writer.write(ask.source.rawValue)
        if case .unavailable = outcome { writer.write(UInt8(1)) } else { writer.write(UInt8(0)) }
        writer.writeZeroes(2)
        writer.write(ask.count)
        writer.write(ask.first)
        switch outcome {
        case .digests(let values): for value in values { writer.write(value) }
        case .unavailable(let reason): writer.write(message: reason)
        }
    }

    public static func decode(_ payload: UnsafeRawBufferPointer) throws(LinkError) -> RamDigests {
        var reader = PayloadReader(.ramDigests, payload)
        let source = try reader.checkSource()
        let result: UInt8 = try reader.read()
        guard result <= 1 else { throw reader.bad("result", at: 1, "is \(result), neither 0 nor 1") }
        try reader.zeroes(2)
        let count = try reader.digestCount()
        let ask = RamVerify(source: source, first: try reader.read(), count: count)
        guard result == 0 else {
            let reason = try reader.message("reason")
            try reader.finish()
            return RamDigests(ask: ask, outcome: .unavailable(reason))
        }
        guard reader.remaining == Int(count) * 4 else {
            throw reader.bad("digests", at: prefixLength, "are \(reader.remaining) bytes for \(count) pages")
        }
        let bytes = try reader.rest()
        let values = (0..<Int(count)).map {
            UInt32(bigEndian: bytes.loadUnaligned(fromByteOffset: $0 * 4, as: UInt32.self))
        }
        return RamDigests(ask: ask, outcome: .digests(values))
    }
}

/// What the primary's encoder made of the changed pages of one epoch. Only for display: nothing is decided by it.
public struct RamFigures: Equatable, Sendable, LinkPayload {
    /// Length of the payload in bytes.
    public static let length = 56

    /// Pages that QEMU sent.
    public var pages: UInt64 = 0
    /// Of them dropped, because the secondary has the same contents.
    public var identical: UInt64 = 0
    /// Sent as a flag.
    public var zero: UInt64 = 0
    /// Sent as a difference.
    public var delta: UInt64 = 0
    /// Sent whole.
    public var raw: UInt64 = 0
    /// Bytes of batches before compression.
    public var rawBytes: UInt64 = 0
    /// Bytes of batches as they were sent.
    public var bytes: UInt64 = 0

    public init() {}

    public var kind: FrameKind { .ramFigures }

    public func encode(into writer: inout ByteWriter) {
        for value in [pages, identical, zero, delta, raw, rawBytes, bytes] { writer.write(value) }
    }

    public static func decode(_ payload: UnsafeRawBufferPointer) throws(LinkError) -> RamFigures {
        var reader = PayloadReader(.ramFigures, payload)
        var figures = RamFigures()
        figures.pages = try reader.read()
        figures.identical = try reader.read()
        figures.zero = try reader.read()
        figures.delta = try reader.read()
        figures.raw = try reader.read()
        figures.rawBytes = try reader.read()
        figures.bytes = try reader.read()
        try reader.finish()
        return figures
    }
}

extension PayloadReader {
    mutating func checkSource() throws(LinkError) -> RamCheckSource {
        let start = offset
        let value: UInt8 = try read()
        guard let source = RamCheckSource(rawValue: value) else {
            throw bad("source", at: start, "is \(value), neither 0 nor 1")
        }
        return source
    }

    mutating func zeroes(_ count: Int) throws(LinkError) {
        let start = offset
        guard try bytes(count).allSatisfy({ $0 == 0 }) else { throw bad("reserved", at: start, "is not 0") }
    }

    fileprivate mutating func digestCount() throws(LinkError) -> UInt32 {
        let start = offset
        let count: UInt32 = try read()
        guard count >= 1, count <= UInt32(LinkLimits.digestsMax) else {
            throw bad("count", at: start, "is \(count), not 1 to \(LinkLimits.digestsMax)")
        }
        return count
    }
}
