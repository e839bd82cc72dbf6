import Link
import Testing
import Units

@Suite("Frame decoder")
struct FrameDecoderTests {
    /// A stream of several frames, with payloads of many lengths.
    private static func stream(_ random: inout SplitMix64) -> (bytes: [UInt8], frames: [Received]) {
        var writer = ByteWriter()
        var frames: [Received] = []
        for length in [0, 1, 39, 40, 41, 3000, 0, 7] {
            let payload = random.bytes(length)
            let kind: FrameKind = length == 0 ? .send : .ramBatch
            let header = Frame.append(
                kind: kind, payload: payload, generation: .first, epoch: Epoch(random.next()), to: &writer)
            frames.append(Received(header: header, payload: payload))
        }
        return (writer.bytes, frames)
    }

    @Test("gives the same frames whatever pieces the stream comes in")
    func pieces() {
        for seed in UInt64(1)...40 {
            var random = SplitMix64(seed: seed)
            let (bytes, frames) = Self.stream(&random)
            var pieces: [ArraySlice<UInt8>] = []
            var start = 0
            let longest = [1, 7, 64, 500, 5000][Int(seed % 5)]
            while start < bytes.count {
                let end = min(bytes.count, start + 1 + Int(random.next() % UInt64(longest)))
                pieces.append(bytes[start..<end])
                start = end
            }
            var decoder = FrameDecoder()
            let (got, error) = feed(pieces, &decoder)
            #expect(error == nil, "seed \(seed)")
            #expect(got == frames, "seed \(seed)")
            #expect(decoder.pendingCount == 0)
            #expect(decoder.streamOffset == UInt64(bytes.count))
        }
    }

    @Test("a stream cut at every byte gives the whole frames before the cut and no error")
    func cuts() {
        var random = SplitMix64(seed: 99)
        let (bytes, frames) = Self.stream(&random)
        for cut in 0...400 {
            var decoder = FrameDecoder()
            let (got, error) = feed([bytes[..<cut]], &decoder)
            #expect(error == nil)
            var end = 0
            let whole = frames.prefix { frame in
                end += frame.header.frameLength
                return end <= cut
            }
            #expect(got == Array(whole), "cut at \(cut)")
        }
    }

    @Test("any flipped bit is noticed, and nothing is decoded behind it")
    func bitFlips() {
        var random = SplitMix64(seed: 7)
        let (bytes, frames) = Self.stream(&random)
        for _ in 0..<600 {
            let bit = Int(random.next() % UInt64(bytes.count * 8))
            var bad = bytes
            bad[bit / 8] ^= 1 << UInt8(bit % 8)
            var decoder = FrameDecoder()
            let (got, error) = feed([bad[...]], &decoder)
            #expect(error != nil, "bit \(bit)")
            #expect(Array(frames.prefix(got.count)) == got, "bit \(bit)")
            #expect(decoder.pendingCount == 0)
            let (after, again) = feed([bytes[...]], &decoder)
            #expect(after.isEmpty)
            #expect(again == error)
        }
    }

    @Test("a header that announces too much is refused before its payload is kept")
    func tooLong() {
        var bytes = encodeHeader(
            FrameHeader(kind: .ramBatch, generation: .first, epoch: Epoch(1), payloadLength: 1, payloadChecksum: 0))
        bytes[24] = 0x7F
        let crc = CRC32C.checksum(Array(bytes[..<36]))
        bytes.replaceSubrange(36..<40, with: withUnsafeBytes(of: crc.bigEndian) { Array($0) })
        var decoder = FrameDecoder()
        let (frames, error) = feed([bytes[...], Array(repeating: 0, count: 100)[...]], &decoder)
        #expect(frames.isEmpty)
        #expect(error == .payloadLength(.ramBatch, length: 0x7F00_0001, allowed: 1...4 << 20))
        #expect(decoder.pendingCount == 0)
    }

    @Test("random bytes end in an error, not in a crash")
    func garbage() {
        var random = SplitMix64(seed: 0xBAD)
        for _ in 0..<500 {
            var decoder = FrameDecoder()
            let bytes = random.bytes(200)
            #expect(feed([bytes[..<100], bytes[100...]], &decoder).error != nil)
        }
    }
}
