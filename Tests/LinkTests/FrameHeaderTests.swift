import Link
import Testing
import Units

@Suite("Frame header")
struct FrameHeaderTests {
    private static let header = FrameHeader(
        kind: .diskWrite, generation: Generation(3), epoch: Epoch(0x0102_0304_0506_0708), payloadLength: 4106,
        payloadChecksum: 0xDEAD_BEEF)

    @Test("has exactly the documented bytes")
    func bytes() {
        let bytes = encodeHeader(Self.header)
        #expect(
            Array(bytes[..<36]) == [
                0x43, 0x42, 0x4C, 0x4B, 1, 20, 0, 0,
                0, 0, 0, 0, 0, 0, 0, 3,
                1, 2, 3, 4, 5, 6, 7, 8,
                0, 0, 0x10, 0x0A, 0xDE, 0xAD, 0xBE, 0xEF,
                0, 0, 0, 0,
            ])
        let crc = CRC32C.checksum(Array(bytes[..<36]))
        #expect(bytes[36...].reduce(0) { $0 << 8 | UInt32($1) } == crc)
        #expect(bytes.count == 40)
        var writer = ByteWriter()
        Self.header.encode(into: &writer)
        #expect(writer.bytes == bytes)
    }

    @Test("comes back as it was written, for every kind at both ends of its lengths")
    func roundTrip() {
        for kind in FrameKind.allCases {
            for length in [kind.payloadLengths.lowerBound, kind.payloadLengths.upperBound] {
                let header = FrameHeader(
                    kind: kind, generation: Generation(.max), epoch: Epoch(7), payloadLength: length,
                    payloadChecksum: 1)
                #expect(decodeHeader(encodeHeader(header)) == .success(header))
            }
            #expect(kind.payloadLengths.upperBound <= LinkLimits.payloadMax, "\(kind)")
        }
    }

    @Test("every single bit that flips is noticed")
    func bitFlips() {
        let good = encodeHeader(Self.header)
        for bit in 0..<320 {
            var bad = good
            bad[bit / 8] ^= 1 << UInt8(bit % 8)
            #expect(decodeHeader(bad).failure != nil, "bit \(bit)")
        }
    }

    @Test("every shorter piece is refused, with the number of bytes that were there")
    func truncated() {
        let good = encodeHeader(Self.header)
        for count in 0..<40 {
            #expect(decodeHeader(Array(good[..<count])) == .failure(.headerTruncated(count)))
        }
    }

    /// Changes bytes and makes the checksum right again.
    private static func forged(_ offset: Int, _ bytes: [UInt8], of header: FrameHeader = header) -> [UInt8] {
        var forged = encodeHeader(header)
        forged.replaceSubrange(offset..<offset + bytes.count, with: bytes)
        let crc = CRC32C.checksum(Array(forged[..<36]))
        forged.replaceSubrange(36..<40, with: withUnsafeBytes(of: crc.bigEndian) { Array($0) })
        return forged
    }

    @Test("another magic, version, kind, flag or reserved word is refused by name")
    func refusals() {
        #expect(decodeHeader(Self.forged(0, [0x51])).failure == .badMagic(0x5142_4C4B))
        #expect(decodeHeader(Self.forged(4, [2])).failure == .unsupportedVersion(2))
        #expect(decodeHeader(Self.forged(5, [7])).failure == .unknownKind(7))
        #expect(decodeHeader(Self.forged(5, [99])).failure == .unknownKind(99))
        #expect(decodeHeader(Self.forged(6, [0x80, 0])).failure == .unknownFlags(0x8000))
        #expect(decodeHeader(Self.forged(32, [0, 0, 0, 9])).failure == .reservedNotZero(9))
    }

    @Test("a length that the kind cannot have is refused with the header")
    func lengths() {
        #expect(
            decodeHeader(Self.forged(24, [0xFF, 0xFF, 0xFF, 0xFF])).failure
                == .payloadLength(.diskWrite, length: .max, allowed: 11...1_048_586))
        for kind in FrameKind.allCases {
            let allowed = kind.payloadLengths
            let header = FrameHeader(
                kind: kind, generation: .first, epoch: .none, payloadLength: allowed.lowerBound, payloadChecksum: 0)
            for length in [allowed.lowerBound - 1, allowed.upperBound + 1] where length >= 0 {
                let bytes = withUnsafeBytes(of: UInt32(length).bigEndian) { Array($0) }
                #expect(
                    decodeHeader(Self.forged(24, bytes, of: header)).failure
                        == .payloadLength(kind, length: UInt32(length), allowed: allowed))
            }
        }
    }

    @Test("a payload is checked against length and checksum")
    func payload() {
        let payload: [UInt8] = Array(0..<16)
        let header = payload.withUnsafeBytes {
            FrameHeader(kind: .heartbeat, generation: .first, epoch: .none, pieces: $0)
        }
        #expect(verify(header, payload).failure == nil)
        #expect(verify(header, Array(payload.dropLast())).failure != nil)
        var bad = payload
        bad[15] ^= 0x40
        let computed = CRC32C.checksum(bad)
        #expect(
            verify(header, bad).failure
                == .payloadChecksum(.heartbeat, computed: computed, carried: CRC32C.checksum(payload)))
    }

    @Test("a payload in two pieces has the checksum of the whole")
    func pieces() {
        let whole: [UInt8] = Array(0..<200)
        let one = whole.withUnsafeBytes {
            FrameHeader(kind: .ramBatch, generation: .first, epoch: Epoch(1), pieces: $0)
        }
        for cut in [0, 1, 8, 13, 199, 200] {
            let two = whole.withUnsafeBytes { raw in
                FrameHeader(
                    kind: .ramBatch, generation: .first, epoch: Epoch(1),
                    pieces: UnsafeRawBufferPointer(rebasing: raw[..<cut]), UnsafeRawBufferPointer(rebasing: raw[cut...])
                )
            }
            #expect(two == one, "cut at \(cut)")
        }
    }
}
