import Link
import Testing
import Units

@Suite("Comparing disks, and mending, on the link")
struct DiskCheckFrameTests {
    private let digest = BlockDigest(high: 0x0102_0304_0506_0708, low: .max)

    @Test("questions, answers and figures come back as they were written")
    func roundTrips() {
        for action in [DiskVerify.Action.digest, .repair] {
            let ask = DiskVerify(action: action, disk: 15, first: 1 << 40, count: 1024)
            #expect(decode(encode(ask), DiskVerify.decode) == .success(ask))
            #expect(encode(ask).count == DiskVerify.length)
        }
        let entries = (0..<UInt64(LinkLimits.verifyBlocksMax)).map { DiskCheck.Entry(block: $0 << 20, digest: digest) }
        for outcome in [DiskCheck.Outcome.digests(entries), .digests([entries[0]]), .unavailable("läuft nicht")] {
            let check = DiskCheck(disk: 3, outcome: outcome)
            #expect(decode(encode(check), DiskCheck.decode) == .success(check))
            #expect(FrameKind.diskCheck.payloadLengths.contains(encode(check).count))
        }
        for pages in [[7], (0..<UInt64(LinkLimits.repairPagesMax)).map { $0 * 5 }] {
            let repair = RamRepair(source: .guest, pages: pages)
            #expect(decode(encode(repair), RamRepair.decode) == .success(repair))
            #expect(FrameKind.ramRepair.payloadLengths.contains(encode(repair).count))
        }
        var figures = PrimaryFigures()
        (figures.pauseNanoseconds, figures.dirtyPages, figures.outstandingBytes) = (1, 2, 3)
        (figures.lagNanoseconds, figures.intervalNanoseconds, figures.pausedMillionths) = (4, .max, 6)
        (figures.network, figures.heldPackets, figures.droppedPackets) = (2, 8, 9)
        (figures.holdMedianNanoseconds, figures.holdP95Nanoseconds, figures.holdLongestNanoseconds) = (10, 11, 12)
        #expect(encode(figures).count == PrimaryFigures.length)
        #expect(decode(encode(figures), PrimaryFigures.decode) == .success(figures))
    }

    @Test("every cut, every extra byte and every impossible field is refused")
    func refusals() {
        let ask = encode(DiskVerify(action: .digest, disk: 1, first: 2, count: 3))
        let check = encode(
            DiskCheck(disk: 1, outcome: .digests([.init(block: 5, digest: digest), .init(block: 6, digest: digest)])))
        let words = encode(DiskCheck(disk: 1, outcome: .unavailable("no")))
        let repair = encode(RamRepair(source: .copy, pages: [1, 2]))
        let figures = encode(PrimaryFigures())
        func refuses<Value>(
            _ bytes: [UInt8], _ decoder: (UnsafeRawBufferPointer) throws(LinkError) -> Value
        ) {
            for count in 0..<bytes.count { #expect(decode(Array(bytes[..<count]), decoder).failure != nil) }
            #expect(decode(bytes + [0], decoder).failure != nil)
        }
        refuses(ask, DiskVerify.decode)
        refuses(check, DiskCheck.decode)
        refuses(words, DiskCheck.decode)
        refuses(repair, RamRepair.decode)
        refuses(figures, PrimaryFigures.decode)
        func broken(_ bytes: [UInt8], _ offset: Int, _ value: UInt8) -> [UInt8] {
            var bytes = bytes
            bytes[offset] = value
            return bytes
        }
        #expect(decode(broken(ask, 0, 2), DiskVerify.decode).failure != nil)  // action
        #expect(decode(broken(ask, 1, 1), DiskVerify.decode).failure != nil)  // reserved
        #expect(decode(broken(ask, 7, 0), DiskVerify.decode).failure != nil)  // no block
        #expect(decode(broken(ask, 6, 5), DiskVerify.decode).failure != nil)  // 1,283 blocks
        #expect(decode(broken(check, 0, 2), DiskCheck.decode).failure != nil)  // result
        #expect(decode(broken(check, 0, 1), DiskCheck.decode).failure != nil)  // digests and none
        #expect(decode(broken(check, 7, 3), DiskCheck.decode).failure != nil)  // another count than digests
        #expect(decode(broken(repair, 0, 2), RamRepair.decode).failure != nil)  // source
        #expect(decode(broken(repair, 7, 0), RamRepair.decode).failure != nil)  // another count than pages
    }

    @Test("answers and figures are content of their epoch, questions are not")
    func content() {
        #expect(FrameKind.diskCheck.isEpochContent && FrameKind.primaryFigures.isEpochContent)
        #expect(!FrameKind.diskVerify.isEpochContent && !FrameKind.ramRepair.isEpochContent)
    }
}
