import Units

/// How much the secondary has consumed in this session, so that the primary may send as much again.
public struct Credit: Equatable, Sendable, LinkPayload {
    /// Length of the payload in bytes.
    public static let length = 8

    /// Bytes of whole frames (headers included) since `welcome`; only grows.
    public var consumedTotal: UInt64

    public init(consumedTotal: UInt64) {
        self.consumedTotal = consumedTotal
    }

    public var kind: FrameKind { .credit }

    public func encode(into writer: inout ByteWriter) { writer.write(consumedTotal) }

    public static func decode(_ payload: UnsafeRawBufferPointer) throws(LinkError) -> Credit {
        var reader = PayloadReader(.credit, payload)
        let credit = Credit(consumedTotal: try reader.read())
        try reader.finish()
        return credit
    }
}

/// Proof of life; the receiver of one with a new counter sends it back unchanged.
public struct Heartbeat: Equatable, Sendable, LinkPayload {
    /// Length of the payload in bytes.
    public static let length = 16

    /// Grows by one with each heartbeat of the sender.
    public var counter: UInt64
    /// The sender's monotonic clock, so that an echo tells the round trip.
    public var sentAt: Moment

    public init(counter: UInt64, sentAt: Moment) {
        self.counter = counter
        self.sentAt = sentAt
    }

    public var kind: FrameKind { .heartbeat }

    public func encode(into writer: inout ByteWriter) {
        writer.write(counter)
        writer.write(sentAt.nanoseconds)
    }

    public static func decode(_ payload: UnsafeRawBufferPointer) throws(LinkError) -> Heartbeat {
        var reader = PayloadReader(.heartbeat, payload)
        let heartbeat = Heartbeat(counter: try reader.read(), sentAt: Moment(nanoseconds: try reader.read()))
        try reader.finish()
        return heartbeat
    }
}

/// An orderly end of the session.
public struct Bye: Equatable, Sendable, LinkPayload {
    /// 0 is an ordinary detach; other values are the agent's exit reasons, for messages.
    public var code: UInt16
    public var reason: String

    public init(code: UInt16, reason: String) {
        self.code = code
        self.reason = reason
    }

    static let lengths = 4...4 + LinkLimits.messageMax

    public var kind: FrameKind { .bye }

    public func encode(into writer: inout ByteWriter) {
        writer.write(code)
        writer.write(message: reason)
    }

    public static func decode(_ payload: UnsafeRawBufferPointer) throws(LinkError) -> Bye {
        var reader = PayloadReader(.bye, payload)
        let code: UInt16 = try reader.read()
        let reason = try reader.message("reason")
        try reader.finish()
        return Bye(code: code, reason: reason)
    }
}

/// The guest's identity: JSON of the QEMU module, opaque to the link.
public struct IdentityPayload: Equatable, Sendable, LinkPayload {
    /// 1 byte to 1 MiB.
    public var json: [UInt8]

    public init(json: [UInt8]) {
        self.json = json
    }

    public var kind: FrameKind { .identity }

    public func encode(into writer: inout ByteWriter) { writer.write(bytes: json) }

    public static func decode(_ payload: UnsafeRawBufferPointer) throws(LinkError) -> IdentityPayload {
        IdentityPayload(json: Array(payload))
    }
}
