import Link
import Testing
import Units

@Suite("Epoch tally")
struct EpochTallyTests {
    private static func header(_ kind: FrameKind, _ length: Int, _ crc: UInt32) -> FrameHeader {
        FrameHeader(kind: kind, generation: .first, epoch: Epoch(1), payloadLength: length, payloadChecksum: crc)
    }

    private static let frames = [
        header(.diskWrite, 10 + 4096, 1), header(.diskZeroes, 18, 2), header(.diskDiscard, 18, 3),
        header(.ramBatch, 5000, 4), header(.size, 8, 5), header(.deviceState, 8 + 77, 6),
    ]

    private static func tally(_ frames: [FrameHeader]) -> EpochTally {
        var tally = EpochTally()
        for frame in frames { tally.add(frame) }
        return tally
    }

    private static func verify(_ tally: EpochTally, _ seal: Seal) -> LinkError? {
        Result { () throws(LinkError) in try tally.verify(seal) }.failure
    }

    @Test("counts what the seal has to say, and both sides agree")
    func counts() {
        let seal = Self.tally(Self.frames).seal
        #expect(seal.diskFrames == 3)
        #expect(seal.diskBytes == 4096)
        #expect(seal.ramBatches == 1)
        #expect(seal.ramBytes == 5000)
        #expect(seal.deviceBytes == 77)
        #expect(Self.verify(Self.tally(Self.frames), seal) == nil)
        #expect(decode(encode(seal), Seal.decode) == .success(seal))
    }

    @Test("the digest is the one that the document defines")
    func digest() {
        var bytes: [UInt8] = []
        for frame in Self.frames {
            bytes += [frame.kind.rawValue, 0, 0, 0, UInt8(frame.payloadChecksum)]
        }
        #expect(Self.tally(Self.frames).seal.digest == CRC32C.checksum(bytes))
    }

    @Test("a missing, doubled, swapped, changed or renamed frame breaks the seal")
    func differences() {
        let seal = Self.tally(Self.frames).seal
        for index in Self.frames.indices {
            var missing = Self.frames
            missing.remove(at: index)
            #expect(Self.verify(Self.tally(missing), seal) != nil)
            var doubled = Self.frames
            doubled.insert(Self.frames[index], at: index)
            #expect(Self.verify(Self.tally(doubled), seal) != nil)
            var changed = Self.frames
            let old = changed[index]
            changed[index] = Self.header(old.kind, old.payloadLength, old.payloadChecksum ^ 0x8000_0000)
            #expect(Self.verify(Self.tally(changed), seal) != nil)
        }
        var swapped = Self.frames
        swapped.swapAt(0, 3)
        #expect(Self.verify(Self.tally(swapped), seal)?.description.contains("digest") == true)
        var renamed = Self.frames
        renamed[1] = Self.header(.diskDiscard, 18, 2)
        #expect(Self.verify(Self.tally(renamed), seal) != nil)
    }

    @Test("commands, heartbeats and the seal itself count for nothing")
    func others() {
        var tally = Self.tally(Self.frames)
        let before = tally.seal
        for kind in FrameKind.allCases where !kind.isEpochContent {
            tally.add(Self.header(kind, kind.payloadLengths.lowerBound, 99))
        }
        #expect(tally.seal == before)
    }
}
