import Link
import Testing
import Units

@Suite("Comparing RAM on the link")
struct RamCheckFrameTests {
    @Test("questions, answers and figures come back as they were written")
    func roundTrips() {
        for source in [RamCheckSource.copy, .guest] {
            let ask = RamVerify(source: source, first: 1 << 33, count: 3)
            #expect(decode(encode(ask), RamVerify.decode) == .success(ask))
            #expect(encode(ask).count == RamVerify.length)
            for outcome in [RamDigests.Outcome.digests([1, 0xFFFF_FFFF, 3]), .unavailable("keine Kopie, weil …")] {
                let digests = RamDigests(ask: ask, outcome: outcome)
                #expect(decode(encode(digests), RamDigests.decode) == .success(digests))
                #expect(FrameKind.ramDigests.payloadLengths.contains(encode(digests).count))
            }
        }
        var figures = RamFigures()
        (figures.pages, figures.identical, figures.zero, figures.delta) = (1, 2, 3, 4)
        (figures.raw, figures.rawBytes, figures.bytes) = (5, 6, .max)
        #expect(decode(encode(figures), RamFigures.decode) == .success(figures))
        #expect(encode(figures).count == RamFigures.length)
    }

    @Test("every cut, every extra byte and every impossible field is refused")
    func refusals() {
        let ask = encode(RamVerify(source: .copy, first: 7, count: 2))
        let digests = encode(RamDigests(ask: RamVerify(source: .guest, first: 7, count: 2), outcome: .digests([1, 2])))
        let words = encode(RamDigests(ask: RamVerify(source: .guest, first: 7, count: 2), outcome: .unavailable("no")))
        for count in 0..<ask.count { #expect(decode(Array(ask[..<count]), RamVerify.decode).failure != nil) }
        #expect(decode(ask + [0], RamVerify.decode).failure != nil)
        for whole in [digests, words] {
            for count in 0..<whole.count { #expect(decode(Array(whole[..<count]), RamDigests.decode).failure != nil) }
            #expect(decode(whole + [0], RamDigests.decode).failure != nil)
        }
        func broken(_ bytes: [UInt8], _ offset: Int, _ value: UInt8) -> [UInt8] {
            var bytes = bytes
            bytes[offset] = value
            return bytes
        }
        #expect(decode(broken(ask, 0, 2), RamVerify.decode).failure != nil)  // source
        #expect(decode(broken(ask, 2, 1), RamVerify.decode).failure != nil)  // reserved
        #expect(decode(broken(ask, 7, 0), RamVerify.decode).failure != nil)  // no page
        #expect(decode(broken(ask, 5, 1), RamVerify.decode).failure != nil)  // 65,538 pages
        #expect(decode(broken(digests, 1, 2), RamDigests.decode).failure != nil)  // result
        #expect(decode(broken(digests, 7, 3), RamDigests.decode).failure != nil)  // another count than digests
        let figures = encode(RamFigures())
        #expect(decode(Array(figures.dropLast()), RamFigures.decode).failure != nil)
        #expect(decode(figures + [0], RamFigures.decode).failure != nil)
    }

    @Test("digests and figures are content of their epoch, the question is not")
    func content() {
        #expect(FrameKind.ramDigests.isEpochContent)
        #expect(FrameKind.ramFigures.isEpochContent)
        #expect(!FrameKind.ramVerify.isEpochContent)
    }
}
