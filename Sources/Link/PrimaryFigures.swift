import Units

/// What the primary saw of the guest's last pause, of its own queues and of packets that it holds. Only for display:
/// nothing is decided by it.
public struct PrimaryFigures: Equatable, Sendable, LinkPayload {
    /// Length of the payload in bytes.
    public static let length = 12 * 8

    /// How long the guest stood still for the checkpoint before; 0: not known yet.
    public var pauseNanoseconds: UInt64 = 0
    /// Pages that the guest changed in this epoch.
    public var dirtyPages: UInt64 = 0
    /// Bytes sent or waiting that the secondary has not taken in.
    public var outstandingBytes: UInt64 = 0
    /// From the end of a pause to the word that its checkpoint is committed; of the last such checkpoint.
    public var lagNanoseconds: UInt64 = 0
    /// The time between checkpoints that was asked for.
    public var intervalNanoseconds: UInt64 = 0
    /// Millionths of its time that the guest stood still in the last checkpoints.
    public var pausedMillionths: UInt64 = 0
    /// 0: packets are not held; 1: they are, but something has been let out that no commit covers yet; 2: they are.
    public var network: UInt64 = 0
    /// Packets that are held now.
    public var heldPackets: UInt64 = 0
    /// Packets for which there was no room.
    public var droppedPackets: UInt64 = 0
    /// How long the last packets had been held that have left: median, 95th percentile and longest; 0: none yet.
    public var holdMedianNanoseconds: UInt64 = 0
    public var holdP95Nanoseconds: UInt64 = 0
    public var holdLongestNanoseconds: UInt64 = 0

    public init() {}

    public var kind: FrameKind { .primaryFigures }

    /// Every field, in the order of the payload.
    private static var fields: [WritableKeyPath<PrimaryFigures, UInt64>] {
        [
            \.pauseNanoseconds, \.dirtyPages, \.outstandingBytes, \.lagNanoseconds, \.intervalNanoseconds,
            \.pausedMillionths, \.network, \.heldPackets, \.droppedPackets, \.holdMedianNanoseconds,
            \.holdP95Nanoseconds, \.holdLongestNanoseconds,
        ]
    }

    public func encode(into writer: inout ByteWriter) {
        for field in Self.fields { writer.write(self[keyPath: field]) }
    }

    public static func decode(_ payload: UnsafeRawBufferPointer) throws(LinkError) -> PrimaryFigures {
        var reader = PayloadReader(.primaryFigures, payload)
        var figures = PrimaryFigures()
        for field in fields { figures[keyPath: field] = try reader.read() }
        try reader.finish()
        return figures
    }
}
