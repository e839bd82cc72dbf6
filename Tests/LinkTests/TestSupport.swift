import Link
import Units

/// SplitMix64: small, seeded, good enough to shuffle tests.
struct SplitMix64: RandomNumberGenerator {
    private var state: UInt64

    init(seed: UInt64) {
        state = seed
    }

    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var value = state
        value = (value ^ value >> 30) &* 0xBF58_476D_1CE4_E5B9
        value = (value ^ value >> 27) &* 0x94D0_49BB_1331_11EB
        return value ^ value >> 31
    }

    mutating func bytes(_ count: Int) -> [UInt8] { (0..<count).map { _ in UInt8(truncatingIfNeeded: next()) } }
}

/// A frame that was decoded, with its payload copied.
struct Received: Equatable {
    let header: FrameHeader
    let payload: [UInt8]
}

func decodeHeader(_ bytes: [UInt8]) -> Result<FrameHeader, LinkError> {
    bytes.withUnsafeBytes { raw in Result { () throws(LinkError) in try FrameHeader.decode(raw) } }
}

func verify(_ header: FrameHeader, _ payload: [UInt8]) -> Result<Void, LinkError> {
    payload.withUnsafeBytes { raw in Result { () throws(LinkError) in try header.verify(payload: raw) } }
}

/// Runs a payload decoder over bytes.
func decode<Value>(
    _ bytes: [UInt8], _ decoder: (UnsafeRawBufferPointer) throws(LinkError) -> Value
) -> Result<Value, LinkError> {
    bytes.withUnsafeBytes { raw in Result { () throws(LinkError) in try decoder(raw) } }
}

func encode(_ payload: some LinkPayload) -> [UInt8] {
    var writer = ByteWriter()
    payload.encode(into: &writer)
    return writer.bytes
}

func encodeHeader(_ header: FrameHeader) -> [UInt8] {
    header.withEncoded { Array($0) }
}

/// Feeds a stream in the given pieces.
func feed(_ pieces: [ArraySlice<UInt8>], _ decoder: inout FrameDecoder) -> (frames: [Received], error: LinkError?) {
    var frames: [Received] = []
    for piece in pieces {
        let outcome = Array(piece).withUnsafeBytes { raw in
            Result { () throws(LinkError) in
                try decoder.feed(raw) { (header, payload) throws(LinkError) in
                    frames.append(Received(header: header, payload: Array(payload)))
                }
            }
        }
        if case .failure(let error) = outcome { return (frames, error) }
    }
    return (frames, nil)
}

extension Result {
    var failure: Failure? {
        if case .failure(let error) = self { return error }
        return nil
    }

    var success: Success? {
        if case .success(let value) = self { return value }
        return nil
    }
}
