/// Why bytes from the peer are not a frame, or a payload not what its kind says. The connection ends with it: a stream
/// that was misread once cannot be trusted again.
public enum LinkError: Error, Equatable, Sendable, CustomStringConvertible {
    /// Fewer bytes than a header has were given to the header decoder.
    case headerTruncated(Int)
    /// The peer does not speak this protocol, or the stream is out of step.
    case badMagic(UInt32)
    /// The header was damaged on the way.
    case headerChecksum(computed: UInt32, carried: UInt32)
    /// The peer speaks another version of the protocol.
    case unsupportedVersion(UInt8)
    case unknownKind(UInt8)
    /// Flags are reserved and must be zero.
    case unknownFlags(UInt16)
    /// The reserved word must be zero.
    case reservedNotZero(UInt32)
    /// The header announces a payload that its kind cannot have.
    case payloadLength(FrameKind, length: UInt32, allowed: ClosedRange<Int>)
    /// The payload was damaged on the way.
    case payloadChecksum(FrameKind, computed: UInt32, carried: UInt32)
    /// A payload ended before its fields did.
    case payloadTruncated(FrameKind, offset: Int)
    /// Bytes were left behind the last field.
    case payloadTrailing(FrameKind, offset: Int, extra: Int)
    /// A field has a value that it cannot have.
    case badField(FrameKind, offset: Int, field: String, reason: String)
    /// The seal of an epoch does not match what arrived.
    case sealMismatch(field: String, sealed: UInt64, arrived: UInt64)

    public var description: String {
        switch self {
        case .headerTruncated(let count):
            "link: \(count) bytes are too few for a frame header of \(FrameHeader.length)"
        case .badMagic(let value):
            "link: the stream does not go on with a frame (magic \(hex(value)) instead of \(hex(FrameHeader.magic)));"
                + " is the peer colo-blk, and are both sides using, or not using, TLS?"
        case .headerChecksum(let computed, let carried):
            "link: frame header damaged on the way (CRC \(hex(computed)), header says \(hex(carried)))"
        case .unsupportedVersion(let version):
            "link: the peer speaks protocol version \(version), this side \(FrameHeader.version); use the same release"
        case .unknownKind(let kind):
            "link: frame of unknown kind \(kind); use the same release on both sides"
        case .unknownFlags(let flags):
            "link: frame with unknown flags \(hex(UInt32(flags))); use the same release on both sides"
        case .reservedNotZero(let value):
            "link: the reserved word of a frame header is \(hex(value)), not zero"
        case .payloadLength(let kind, let length, let allowed):
            "link: \(kind) frame announces \(length) bytes; \(allowed.lowerBound) to \(allowed.upperBound) are allowed"
        case .payloadChecksum(let kind, let computed, let carried):
            "link: payload of a \(kind) frame damaged on the way (CRC \(hex(computed)), header says \(hex(carried)))"
        case .payloadTruncated(let kind, let offset):
            "link: \(kind) payload ends within the field at byte \(offset)"
        case .payloadTrailing(let kind, let offset, let extra):
            "link: \(kind) payload has \(extra) bytes too many behind byte \(offset)"
        case .badField(let kind, let offset, let field, let reason):
            "link: \(kind) payload, byte \(offset): \(field) \(reason)"
        case .sealMismatch(let field, let sealed, let arrived):
            "link: the seal says \(field) \(sealed), but \(arrived) arrived; the epoch is not what the primary sent"
        }
    }
}

private func hex(_ value: UInt32) -> String { "0x" + String(value, radix: 16) }
