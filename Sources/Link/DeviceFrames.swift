import Units

/// The COLO command `size`: how long the device state of the epoch is.
public struct Size: Equatable, Sendable, LinkPayload {
    /// Length of the payload in bytes.
    public static let length = 8

    /// Bytes of device state that follow in ``DeviceState`` frames.
    public var deviceStateLength: UInt64

    public init(deviceStateLength: UInt64) {
        self.deviceStateLength = deviceStateLength
    }

    public var kind: FrameKind { .size }

    public func encode(into writer: inout ByteWriter) { writer.write(deviceStateLength) }

    public static func decode(_ payload: UnsafeRawBufferPointer) throws(LinkError) -> Size {
        var reader = PayloadReader(.size, payload)
        let size = Size(deviceStateLength: try reader.read())
        try reader.finish()
        return size
    }
}

/// A piece of the device state. The bytes stay where the frame's payload is; nothing is copied.
public struct DeviceState {
    /// Bytes before the piece.
    public static let prefixLength = 8

    /// Where the piece belongs, from the start of the device state; pieces come in order without gaps.
    public let offset: UInt64
    /// 1 byte to 1 MiB, borrowed from the payload.
    public let bytes: UnsafeRawBufferPointer

    /// Header of the frame whose payload is `prefix` and `bytes`.
    public static func header(
        offset: UInt64, bytes: UnsafeRawBufferPointer, generation: Generation, epoch: Epoch
    ) -> (header: FrameHeader, prefix: [UInt8]) {
        var writer = ByteWriter(reservingCapacity: prefixLength)
        writer.write(offset)
        let header = writer.bytes.withUnsafeBytes {
            FrameHeader(kind: .deviceState, generation: generation, epoch: epoch, pieces: $0, bytes)
        }
        return (header, writer.bytes)
    }

    public static func decode(_ payload: UnsafeRawBufferPointer) throws(LinkError) -> DeviceState {
        var reader = PayloadReader(.deviceState, payload)
        let offset: UInt64 = try reader.read()
        let bytes = try reader.rest()
        guard !bytes.isEmpty, ByteRange(checking: offset, length: UInt64(bytes.count)) != nil else {
            throw reader.bad("offset", at: 0, "\(offset)+\(bytes.count) is empty or wraps around")
        }
        return DeviceState(offset: offset, bytes: bytes)
    }
}
