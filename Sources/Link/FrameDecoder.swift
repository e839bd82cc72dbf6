import Units

/// Cuts a stream, given in arbitrary pieces, into verified frames.
///
/// Holds at most one frame (``FrameHeader/length`` + ``LinkLimits/payloadMax`` bytes), and only while one is
/// incomplete; a frame that lies whole inside a piece is lent without a copy. After the first
/// fault nothing is decoded any more.
public struct FrameDecoder {
    private var pending: [UInt8] = []
    private var header: FrameHeader?
    private var fault: LinkError?
    /// Offset in the stream of the frame that is decoded next.
    public private(set) var streamOffset: UInt64 = 0

    public init() {}

    /// Bytes that are held of an incomplete frame.
    public var pendingCount: Int { pending.count }

    /// Takes in a piece and calls `deliver` with each frame that is complete; payloads are valid during the call only.
    public mutating func feed(
        _ piece: UnsafeRawBufferPointer,
        _ deliver: (FrameHeader, UnsafeRawBufferPointer) throws(LinkError) -> Void
    ) throws(LinkError) {
        if let fault { throw fault }
        do throws(LinkError) {
            var rest = piece
            while !rest.isEmpty {
                let used = try pending.isEmpty ? decodeInPlace(rest, deliver) : collect(rest, deliver)
                rest = UnsafeRawBufferPointer(rebasing: rest[used...])
            }
        } catch {
            fault = error
            pending = []
            throw error
        }
    }

    /// Decodes one frame from the start of `rest`, or keeps all of it when it is not whole.
    private mutating func decodeInPlace(
        _ rest: UnsafeRawBufferPointer,
        _ deliver: (FrameHeader, UnsafeRawBufferPointer) throws(LinkError) -> Void
    ) throws(LinkError) -> Int {
        guard rest.count >= FrameHeader.length else {
            pending.append(contentsOf: rest)
            return rest.count
        }
        let header = try FrameHeader.decode(rest)
        guard rest.count >= header.frameLength else {
            self.header = header
            pending.reserveCapacity(header.frameLength)
            pending.append(contentsOf: rest)
            return rest.count
        }
        let payload = UnsafeRawBufferPointer(rebasing: rest[FrameHeader.length..<header.frameLength])
        try finish(header, payload, deliver)
        return header.frameLength
    }

    /// Completes the pending header or frame from the start of `rest`.
    private mutating func collect(
        _ rest: UnsafeRawBufferPointer,
        _ deliver: (FrameHeader, UnsafeRawBufferPointer) throws(LinkError) -> Void
    ) throws(LinkError) -> Int {
        let wanted = (header?.frameLength ?? FrameHeader.length) - pending.count
        let used = min(wanted, rest.count)
        pending.append(contentsOf: rest[..<used])
        guard used == wanted else { return used }
        if header == nil {
            let decoded = try Self.decodeHeader(pending)
            header = decoded
            guard decoded.payloadLength == 0 else { return used }
        }
        guard let header else { return used }
        var frame: [UInt8] = []
        swap(&frame, &pending)
        self.header = nil
        let outcome = frame.withUnsafeBytes { bytes in
            Result { () throws(LinkError) in
                try finish(header, UnsafeRawBufferPointer(rebasing: bytes[FrameHeader.length...]), deliver)
            }
        }
        frame.removeAll(keepingCapacity: true)
        swap(&frame, &pending)
        try outcome.get()
        return used
    }

    private static func decodeHeader(_ bytes: [UInt8]) throws(LinkError) -> FrameHeader {
        try bytes.withUnsafeBytes { raw in
            Result { () throws(LinkError) in try FrameHeader.decode(raw) }
        }.get()
    }

    private mutating func finish(
        _ header: FrameHeader, _ payload: UnsafeRawBufferPointer,
        _ deliver: (FrameHeader, UnsafeRawBufferPointer) throws(LinkError) -> Void
    ) throws(LinkError) {
        try header.verify(payload: payload)
        try deliver(header, payload)
        streamOffset += UInt64(header.frameLength)
    }
}
