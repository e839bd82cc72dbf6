import Link
import NIOCore
import Units

/// One frame that arrived, its payload verified against the header's checksum.
struct LinkFrame: Sendable {
    let header: FrameHeader
    let payload: ByteBuffer

    var kind: FrameKind { header.kind }
    var epoch: Epoch { header.epoch }

    func withPayload<Value>(_ body: (UnsafeRawBufferPointer) throws -> Value) rethrows -> Value {
        try payload.withUnsafeReadableBytes(body)
    }
}

/// Cuts the byte stream of a link into verified frames. Nothing is buffered beyond one frame, whose length is bounded
/// by its kind before the first byte of payload is awaited.
struct LinkFrameDecoder: ByteToMessageDecoder {
    typealias InboundOut = LinkFrame

    mutating func decode(context: ChannelHandlerContext, buffer: inout ByteBuffer) throws -> DecodingState {
        guard buffer.readableBytes >= FrameHeader.length else { return .needMoreData }
        let header = try buffer.withUnsafeReadableBytes { bytes in
            try FrameHeader.decode(UnsafeRawBufferPointer(rebasing: bytes[..<FrameHeader.length]))
        }
        guard buffer.readableBytes >= header.frameLength else { return .needMoreData }
        buffer.moveReaderIndex(forwardBy: FrameHeader.length)
        guard let payload = buffer.readSlice(length: header.payloadLength) else { return .needMoreData }
        try payload.withUnsafeReadableBytes { bytes in try header.verify(payload: bytes) }
        context.fireChannelRead(wrapInboundOut(LinkFrame(header: header, payload: payload)))
        return .continue
    }

    mutating func decodeLast(
        context: ChannelHandlerContext, buffer: inout ByteBuffer, seenEOF: Bool
    ) throws -> DecodingState {
        while try decode(context: context, buffer: &buffer) == .continue {}
        return .needMoreData
    }
}

extension ByteBuffer {
    /// Appends a frame with a typed payload.
    @discardableResult
    mutating func writeFrame(_ payload: some LinkPayload, generation: Generation, epoch: Epoch) -> FrameHeader {
        var writer = ByteWriter()
        let header = Frame.append(payload, generation: generation, epoch: epoch, to: &writer)
        writeBytes(writer.bytes)
        return header
    }

    /// Appends a command frame, which has no payload.
    mutating func writeCommand(_ kind: FrameKind, generation: Generation, epoch: Epoch) {
        FrameHeader(command: kind, generation: generation, epoch: epoch).withEncoded { _ = writeBytes($0) }
    }

    /// Appends a frame made of two pieces; the only copy is the one into this buffer.
    mutating func writeFrame(
        _ kind: FrameKind, generation: Generation, epoch: Epoch, prefix: UnsafeRawBufferPointer,
        data: UnsafeRawBufferPointer
    ) -> FrameHeader {
        let header = FrameHeader(kind: kind, generation: generation, epoch: epoch, pieces: prefix, data)
        header.withEncoded { _ = writeBytes($0) }
        writeBytes(prefix)
        writeBytes(data)
        return header
    }
}
