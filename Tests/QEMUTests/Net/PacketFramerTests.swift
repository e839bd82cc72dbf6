import QEMU
import TestSupport
import Testing

@Suite("Packets of a network filter")
struct PacketFramerTests {
    /// A packet as the filter writes it.
    private static func frame(_ body: [UInt8], header: UInt32?) -> [UInt8] {
        bytes(UInt32(body.count)) + (header.map(bytes) ?? []) + body
    }

    private static func bytes(_ value: UInt32) -> [UInt8] { withUnsafeBytes(of: value.bigEndian) { Array($0) } }

    private static func take(_ framer: inout PacketFramer, _ bytes: ArraySlice<UInt8>) -> (
        [[UInt8]], PacketFramer.Malformed?
    ) {
        var packets: [[UInt8]] = []
        var malformed: PacketFramer.Malformed?
        Array(bytes).withUnsafeBytes { input in
            do throws(PacketFramer.Malformed) {
                try framer.take(input) { packets.append(Array($0)) }
            } catch {
                malformed = error
            }
        }
        return (packets, malformed)
    }

    @Test("come out whole and in order, whatever the socket cuts", arguments: [true, false])
    func cutAnywhere(hasHeaderLength: Bool) {
        let seed = UInt64.random(in: 0...UInt64(UInt32.max))
        var random = SplitMix64(seed: seed)
        for round in 0..<200 {
            let packets = (0..<1 + random.below(6)).map { _ in
                let length = random.below(8) == 0 ? PacketFramer.packetMax : 1 + random.below(1600)
                let header = hasHeaderLength ? UInt32(random.below(min(length, 20) + 1)) : nil
                return Self.frame((0..<length).map { UInt8(truncatingIfNeeded: $0 &* 7 &+ round) }, header: header)
            }
            let stream = Array(packets.joined())
            var framer = PacketFramer(hasHeaderLength: hasHeaderLength)
            var found: [[UInt8]] = []
            var place = 0
            while place < stream.count {
                let length = min(1 + random.below(random.below(2) == 0 ? 9 : 100_000), stream.count - place)
                let (some, malformed) = Self.take(&framer, stream[place..<place + length])
                #expect(malformed == nil, "seed \(seed)")
                found += some
                place += length
                #expect(framer.pendingCount <= PacketFramer.packetMax + 8, "seed \(seed)")
            }
            #expect(found == packets, "seed \(seed), round \(round)")
            #expect(framer.pendingCount == 0)
        }
    }

    @Test("may be cut between any two bytes")
    func everyCut() {
        let packets = [Self.frame([1, 2, 3], header: 0), Self.frame([4], header: 1), Self.frame([5, 6], header: 2)]
        let stream = Array(packets.joined())
        for first in 0...stream.count {
            for second in first...stream.count {
                var framer = PacketFramer(hasHeaderLength: true)
                let parts = [stream[..<first], stream[first..<second], stream[second...]]
                #expect(parts.flatMap { Self.take(&framer, $0).0 } == packets)
            }
        }
    }

    @Test("with an impossible length end the stream, before anything is kept for them")
    func hostile() {
        let good = Self.frame([9, 9], header: 0)
        let tooLong = UInt32(PacketFramer.packetMax + 1)
        let cases: [([UInt8], PacketFramer.Malformed.Reason)] = [
            (Self.bytes(0) + Self.bytes(0), .length(0)),
            (Self.bytes(tooLong) + Self.bytes(0), .length(tooLong)),
            (Self.bytes(.max) + Self.bytes(0), .length(.max)),
            (Self.bytes(8) + Self.bytes(9), .headerLength(9, packet: 8)),
            (Self.bytes(8) + Self.bytes(.max), .headerLength(.max, packet: 8)),
        ]
        for (bad, reason) in cases {
            for cut in 0...bad.count {
                var framer = PacketFramer(hasHeaderLength: true)
                let (packets, early) = Self.take(&framer, (good + bad[..<cut])[...])
                #expect(packets == [good])
                let error = early ?? Self.take(&framer, bad[cut...]).1
                #expect(error?.reason == reason && error?.offset == UInt64(good.count))
                #expect(framer.pendingCount <= 8)
            }
        }
    }
}

extension SplitMix64 {
    fileprivate mutating func below(_ limit: Int) -> Int { Int.random(in: 0..<limit, using: &self) }
}
