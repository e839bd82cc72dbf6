import Units

/// The secondary asks about a run of blocks of a disk, of 64 KiB each (the last block of a disk may be shorter).
public struct DiskVerify: Hashable, Sendable, LinkPayload {
    public enum Action: UInt8, Sendable, Equatable {
        /// Tell the digests of the blocks as they are at the end of an epoch: at the next one for blocks that the guest
        /// leaves alone, some epochs later for others.
        case digest = 0
        /// Write the blocks once more, as they are at the end of an epoch, into the next one.
        case repair = 1
    }

    /// Length of the payload in bytes.
    public static let length = 16

    public var action: Action
    /// Index into ``Hello/disks``.
    public var disk: Int
    public var first: UInt64
    /// 1 to ``LinkLimits/verifyBlocksMax`` blocks.
    public var count: UInt32

    public init(action: Action, disk: Int, first: UInt64, count: UInt32) {
        self.action = action
        self.disk = disk
        self.first = first
        self.count = count
    }

    public var kind: FrameKind { .diskVerify }

    public func encode(into writer: inout ByteWriter) {
        writer.write(action.rawValue)
        writer.write(UInt8(0))
        writer.write(UInt16(disk))
        writer.write(count)
        writer.write(first)
    }

    public static func decode(_ payload: UnsafeRawBufferPointer) throws(LinkError) -> DiskVerify {
        var reader = PayloadReader(.diskVerify, payload)
        let value: UInt8 = try reader.read()
        guard let action = Action(rawValue: value) else {
            throw reader.bad("action", at: 0, "is \(value), neither 0 nor 1")
        }
        let reserved: UInt8 = try reader.read()
        guard reserved == 0 else { throw reader.bad("reserved", at: 1, "is not 0") }
        let disk = Int(try reader.read(UInt16.self))
        let count: UInt32 = try reader.read()
        guard count >= 1, count <= UInt32(LinkLimits.verifyBlocksMax) else {
            throw reader.bad("count", at: 4, "is \(count), not 1 to \(LinkLimits.verifyBlocksMax)")
        }
        let first: UInt64 = try reader.read()
        try reader.finish()
        return DiskVerify(action: action, disk: disk, first: first, count: count)
    }
}

/// The primary's answer to ``DiskVerify``, within the epoch whose end the digests show. A question may be answered in
/// several epochs, a part of its blocks in each.
public struct DiskCheck: Equatable, Sendable, LinkPayload {
    static let prefixLength = 8
    static let entryLength = 8 + BlockDigest.length
    static let lengths = prefixLength + 2...prefixLength + entryLength * LinkLimits.verifyBlocksMax

    public struct Entry: Equatable, Sendable {
        public var block: UInt64
        public var digest: BlockDigest

        public init(block: UInt64, digest: BlockDigest) {
            self.block = block
            self.digest = digest
        }
    }

    public enum Outcome: Equatable, Sendable {
        /// 1 to ``LinkLimits/verifyBlocksMax`` blocks.
        case digests([Entry])
        /// Why there are none, and will be none, in words.
        case unavailable(String)
    }

    /// Index into ``Hello/disks``.
    public var disk: Int
    public var outcome: Outcome

    public init(disk: Int, outcome: Outcome) {
        if case .digests(let entries) = outcome {
            precondition(!entries.isEmpty && entries.count <= LinkLimits.verifyBlocksMax)
        }
        self.disk = disk
        self.outcome = outcome
    }

    public var kind: FrameKind { .diskCheck }

    public func encode(into writer: inout ByteWriter) {
        switch outcome {
        case .digests(let entries):
            writer.write(UInt8(0))
            writer.write(UInt8(0))
            writer.write(UInt16(disk))
            writer.write(UInt32(entries.count))
            for entry in entries {
                writer.write(entry.block)
                writer.write(entry.digest.high)
                writer.write(entry.digest.low)
            }
        case .unavailable(let reason):
            writer.write(UInt8(1))
            writer.write(UInt8(0))
            writer.write(UInt16(disk))
            writer.write(UInt32(0))
            writer.write(message: reason)
        }
    }

    public static func decode(_ payload: UnsafeRawBufferPointer) throws(LinkError) -> DiskCheck {
        var reader = PayloadReader(.diskCheck, payload)
        let result: UInt8 = try reader.read()
        guard result <= 1 else { throw reader.bad("result", at: 0, "is \(result), neither 0 nor 1") }
        let reserved: UInt8 = try reader.read()
        guard reserved == 0 else { throw reader.bad("reserved", at: 1, "is not 0") }
        let disk = Int(try reader.read(UInt16.self))
        let count: UInt32 = try reader.read()
        guard result == 0 else {
            guard count == 0 else { throw reader.bad("count", at: 4, "is \(count) without digests") }
            let reason = try reader.message("reason")
            try reader.finish()
            return DiskCheck(disk: disk, outcome: .unavailable(reason))
        }
        guard count >= 1, count <= UInt32(LinkLimits.verifyBlocksMax) else {
            throw reader.bad("count", at: 4, "is \(count), not 1 to \(LinkLimits.verifyBlocksMax)")
        }
        guard reader.remaining == Int(count) * entryLength else {
            throw reader.bad("digests", at: prefixLength, "are \(reader.remaining) bytes for \(count) blocks")
        }
        var entries: [Entry] = []
        entries.reserveCapacity(Int(count))
        for _ in 0..<count {
            entries.append(
                Entry(
                    block: try reader.read(), digest: BlockDigest(high: try reader.read(), low: try reader.read())))
        }
        return DiskCheck(disk: disk, outcome: .digests(entries))
    }
}

/// The secondary asks for pages to be sent whole with the next epoch, whatever the primary believes that it holds.
public struct RamRepair: Equatable, Sendable, LinkPayload {
    static let prefixLength = 8
    static let lengths = prefixLength + 8...prefixLength + 8 * LinkLimits.repairPagesMax

    public var source: RamCheckSource
    /// Pages, counted through all blocks of the RAM layout; 1 to ``LinkLimits/repairPagesMax``.
    public var pages: [UInt64]

    public init(source: RamCheckSource, pages: [UInt64]) {
        precondition(!pages.isEmpty && pages.count <= LinkLimits.repairPagesMax)
        self.source = source
        self.pages = pages
    }

    public var kind: FrameKind { .ramRepair }

    public func encode(into writer: inout ByteWriter) {
        writer.write(source.rawValue)
        writer.writeZeroes(3)
        writer.write(UInt32(pages.count))
        for page in pages { writer.write(page) }
    }

    public static func decode(_ payload: UnsafeRawBufferPointer) throws(LinkError) -> RamRepair {
        var reader = PayloadReader(.ramRepair, payload)
        let source = try reader.checkSource()
        try reader.zeroes(3)
        let count: UInt32 = try reader.read()
        guard count >= 1, count <= UInt32(LinkLimits.repairPagesMax), reader.remaining == Int(count) * 8 else {
            throw reader.bad("count", at: 4, "is \(count) with \(reader.remaining) bytes of pages")
        }
        var pages: [UInt64] = []
        pages.reserveCapacity(Int(count))
        for _ in 0..<count { pages.append(try reader.read()) }
        return RamRepair(source: source, pages: pages)
    }
}
