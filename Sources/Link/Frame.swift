import Units

/// Whole frames of our own, for everything that is not big data.
public enum Frame {
    /// Appends header and payload; returns the header, for ``EpochTally``.
    @discardableResult
    public static func append(
        _ payload: some LinkPayload, generation: Generation, epoch: Epoch, to writer: inout ByteWriter
    ) -> FrameHeader {
        var body = ByteWriter()
        payload.encode(into: &body)
        return append(kind: payload.kind, payload: body.bytes, generation: generation, epoch: epoch, to: &writer)
    }

    /// Appends header and payload bytes; returns the header.
    @discardableResult
    public static func append(
        kind: FrameKind, payload: [UInt8] = [], generation: Generation, epoch: Epoch, to writer: inout ByteWriter
    ) -> FrameHeader {
        let header = payload.withUnsafeBytes {
            FrameHeader(kind: kind, generation: generation, epoch: epoch, pieces: $0)
        }
        header.encode(into: &writer)
        writer.write(bytes: payload)
        return header
    }
}

/// The typed payload of a frame.
public protocol LinkPayload {
    /// The kind of frame that carries it.
    var kind: FrameKind { get }
    /// Appends the payload bytes. Traps when a value of our own is outside its limits.
    func encode(into writer: inout ByteWriter)
}
