import Testing
import Units

@Suite("Words")
struct WordsTests {
    @Test("a byte range never wraps around")
    func ranges() {
        #expect(ByteRange(checking: .max, length: 1) == nil)
        #expect(ByteRange(checking: .max, length: 0)?.end == .max)
        let range = ByteRange(offset: 4096, length: 512)
        #expect(range.fits(in: 4608))
        #expect(!range.fits(in: 4607))
        #expect(range.overlaps(ByteRange(offset: 4607, length: 1)))
        #expect(!range.overlaps(ByteRange(offset: 4608, length: 1)))
        #expect(!range.overlaps(ByteRange(offset: 0, length: 4096)))
    }

    @Test("time that has not passed is zero")
    func moments() {
        let early = Moment(nanoseconds: 5)
        let late = early.advanced(byNanoseconds: 10)
        #expect(late.nanoseconds(since: early) == 10)
        #expect(early.nanoseconds(since: late) == 0)
        #expect(early < late)
    }

    @Test("epochs and generations follow each other")
    func epochs() {
        #expect(Epoch.none.next == Epoch(1))
        #expect(Generation.first.next == Generation(2))
        #expect(Epoch(3) < Epoch(4))
    }

    @Test("an identifier is 32 hexadecimal digits and nothing else")
    func identifiers() {
        let identifier = Identifier(high: 0x0123, low: .max)
        #expect(identifier.hex == "0000000000000123ffffffffffffffff")
        #expect(Identifier(hex: identifier.hex) == identifier)
        for bad in ["", "0", identifier.hex + "0", identifier.hex.uppercased(), String(repeating: "g", count: 32)] {
            #expect(Identifier(hex: bad) == nil, "\(bad)")
        }
    }

    @Test("only names that stay in their folder may become files")
    func names() {
        for good in ["a", "web-1", "_x", "0", "a.b-c_d", String(repeating: "n", count: 64)] {
            #expect(FileSafeName.isValid(good), "\(good)")
        }
        for bad in ["", ".", "..", ".a", "-a", "a/b", "a\\b", "a b", "ö", "a\0", String(repeating: "n", count: 65)] {
            #expect(!FileSafeName.isValid(bad), "\(bad)")
        }
    }
}
