import Link
import RamCache
import Testing
import Units

@testable import Node

@Suite("What the secondary's memory is known to hold")
struct KnownPagesTests {
    private let layout: RamLayout

    init() throws {
        layout = try RamLayout(blocks: [
            RamLayout.Block(name: "pc.ram", length: 16 << 12), RamLayout.Block(name: "rom", length: 4 << 12),
        ])
    }

    private static func page(_ value: UInt8) -> [UInt8] { [UInt8](repeating: value, count: Sizes.page) }

    private static func digest(_ value: UInt8) -> BlockDigest { page(value).withUnsafeBytes { BlockDigest.of($0) } }

    private func judge(_ known: KnownPages, _ block: UInt16, _ page: UInt32, _ value: UInt8?) -> KnownPages.Verdict {
        guard let value else { return known.judge(block: block, page: page, nil) }
        return Self.page(value).withUnsafeBytes { known.judge(block: block, page: page, $0.baseAddress) }
    }

    @Test("a page is the same, or differs, once; what comes later is judged by the shadow")
    func judging() {
        let known = KnownPages(layout)
        #expect(known.describe(RamKnown(isLast: false, first: 0, runs: [.zeroes(15), .data([Self.digest(1)])])) == nil)
        #expect(
            known.describe(RamKnown(isLast: true, first: 16, runs: [.data([Self.digest(2)]), .zeroes(3)])) == nil)
        #expect(judge(known, 0, 0, nil) == .same && judge(known, 0, 0, 5) == .judgedBefore)
        #expect(judge(known, 0, 1, 0) == .same, "zeroes that came as data")
        #expect(judge(known, 0, 2, 7) == .different && judge(known, 0, 2, nil) == .judgedBefore)
        #expect(judge(known, 0, 15, 1) == .same && judge(known, 1, 0, 3) == .different)
        #expect(judge(known, 1, 1, nil) == .same)
        #expect(!known.isSpent)
        for page in 3..<15 { #expect(judge(known, 0, UInt32(page), nil) == .same) }
        for page in 2..<4 { #expect(judge(known, 1, UInt32(page), nil) == .same) }
        #expect(known.isSpent, "every page has come")
    }

    @Test("zeroes differ from what is known to be data")
    func zeroed() {
        let known = KnownPages(layout)
        #expect(known.describe(RamKnown(isLast: true, first: 0, runs: [.data([Self.digest(1)]), .zeroes(19)])) == nil)
        #expect(judge(known, 0, 0, nil) == .different)
    }

    @Test("a description with a gap, too long or too short is refused")
    func malformed() {
        #expect(KnownPages(layout).describe(RamKnown(isLast: true, first: 0, runs: [])) == nil, "a new cache")
        #expect(KnownPages(layout).describe(RamKnown(isLast: true, first: 1, runs: [.zeroes(19)])) != nil)
        #expect(KnownPages(layout).describe(RamKnown(isLast: true, first: 0, runs: [.zeroes(19)])) != nil)
        #expect(KnownPages(layout).describe(RamKnown(isLast: true, first: 0, runs: [.zeroes(21)])) != nil)
        #expect(KnownPages(layout).describe(RamKnown(isLast: false, first: 0, runs: [.zeroes(Int(Int32.max))])) != nil)
    }
}
