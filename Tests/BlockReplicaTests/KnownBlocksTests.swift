import BlockReplica
import Testing
import TestSupport
import Units

/// A mirror's disk and a secondary's disk, a byte for each 4 KiB, and what travels between them.
private struct Copy {
    static let unit = UInt64(4096)

    let unitsPerBlock: Int
    var known: KnownBlocks
    var mirror: [UInt8]
    var secondary: [UInt8]
    var sent = 0

    /// - Parameter units: length of the disk; the last block may be short.
    init(secondary: [UInt8], unitsPerBlock: Int = 16, digestLimit: Int = .max) throws {
        self.unitsPerBlock = unitsPerBlock
        self.secondary = secondary
        mirror = secondary
        known = KnownBlocks(
            diskSize: UInt64(secondary.count) * Self.unit, blockSize: unitsPerBlock * Int(Self.unit),
            digestLimit: min(digestLimit, 1 << 20))
        var block = 0
        while block < known.blockCount {
            if isZero(contents(block)) {
                try known.describe(zeroes: 1, from: UInt64(block))
            } else {
                try known.describe([digest(contents(block))], from: UInt64(block))
            }
            block += 1
        }
        #expect(known.isComplete)
    }

    func units(_ block: Int) -> Range<Int> {
        block * unitsPerBlock..<min((block + 1) * unitsPerBlock, secondary.count)
    }

    private func contents(_ block: Int) -> ArraySlice<UInt8> { secondary[units(block)] }
    private func isZero(_ bytes: ArraySlice<UInt8>) -> Bool { bytes.allSatisfy { $0 == 0 } }

    private func digest(_ bytes: ArraySlice<UInt8>) -> BlockDigest {
        var value = BlockDigest(high: UInt64(bytes.count), low: 14_695_981_039_346_656_037)
        for byte in bytes {
            value = BlockDigest(
                high: value.high &* 31 &+ UInt64(byte), low: (value.low ^ UInt64(byte)) &* 1_099_511_628_211)
        }
        return value
    }

    /// A write as the agent takes it: whole blocks of zeroes are zeroes.
    mutating func write(_ range: Range<Int>, _ bytes: [UInt8], asZeroes: Bool) {
        mirror.replaceSubrange(range, with: bytes)
        var start = range.lowerBound
        while start < range.upperBound {
            let block = start / unitsPerBlock
            let part = start..<min(units(block).upperBound, range.upperBound)
            let isWhole = part == units(block)
            let piece = mirror[part]
            let isZeroes = asZeroes || (isWhole && isZero(piece))
            let digest = digest(piece)
            let verdict =
                isZeroes ? known.zeroes(block, isWhole: isWhole) : known.data(block, isWhole: isWhole) { digest }
            if verdict == .zeroBlockAndSend {
                for unit in units(block) { secondary[unit] = 0 }
                sent += units(block).count
            }
            if verdict != .nothing {
                secondary.replaceSubrange(part, with: piece)
                sent += part.count
            }
            start = part.upperBound
        }
    }

    mutating func settle(by count: Int) {
        while true {
            let held = known.takeHeld(ranges: count)
            if held.isEmpty { return }
            #expect(held.count <= count)
            for range in held {
                for unit in Int(range.offset / Self.unit)..<Int(range.end / Self.unit) { secondary[unit] = 0 }
            }
        }
    }
}

@Suite("What the secondary is known to hold")
struct KnownBlocksTests {
    @Test("whatever is written in whatever order, the secondary ends with what the mirror believes to have written")
    func random() throws {
        for seed in UInt64(1)...400 {
            var random = SplitMix64(seed: seed)
            let units = Int.random(in: 1...400, using: &random)
            // Few values, so that blocks come to be equal by chance, and many are zero.
            func contents(_ count: Int) -> [UInt8] {
                var value = UInt8.random(in: 0...2, using: &random)
                return (0..<count).map { index in
                    if index % 16 == 0, Bool.random(using: &random) { value = UInt8.random(in: 0...2, using: &random) }
                    return Int.random(in: 0..<200, using: &random) == 0 ? 9 : value
                }
            }
            var copy = try Copy(
                secondary: contents(units), unitsPerBlock: [1, 4, 16][Int(seed % 3)],
                digestLimit: Bool.random(using: &random) ? .max : 3)
            for _ in 0..<Int.random(in: 0...60, using: &random) {
                var start = Int.random(in: 0..<units, using: &random)
                var end = Int.random(in: start + 1...units, using: &random)
                if Int.random(in: 0..<4, using: &random) > 0 {
                    start = start / 16 * 16
                    end = min((end + 15) / 16 * 16, units)
                }
                switch Int.random(in: 0..<3, using: &random) {
                case 0: copy.write(start..<end, Array(repeating: 0, count: end - start), asZeroes: true)
                case 1: copy.write(start..<end, Array(copy.secondary[start..<end]), asZeroes: false)
                default: copy.write(start..<end, contents(end - start), asZeroes: false)
                }
                if Int.random(in: 0..<20, using: &random) == 0 { _ = copy.known.takeHeld(ranges: 0) }
            }
            copy.settle(by: Int.random(in: 1...5, using: &random))
            #expect(copy.secondary == copy.mirror, "seed \(seed)")
        }
    }

    @Test("a copy as QEMU makes it, zeroes first and then data, sends the blocks that differ and nothing else")
    func copyOfAnAlmostEqualDisk() throws {
        var old = [UInt8](repeating: 0, count: 16 * 100)
        for block in 20..<60 { for unit in block * 16..<block * 16 + 16 { old[unit] = UInt8(block) } }
        var new = old
        new[16 * 25 + 3] = 200
        for unit in 16 * 30..<16 * 31 { new[unit] = 0 }
        new[16 * 70] = 1
        var copy = try Copy(secondary: old)
        copy.write(0..<1600, [UInt8](repeating: 0, count: 1600), asZeroes: true)
        #expect(copy.sent == 0)
        copy.write(0..<1600, new, asZeroes: false)
        #expect(copy.sent == 32, "two blocks with data differ")
        #expect(copy.known.takeHeld(ranges: 9) == [ByteRange(offset: 30 * 65536, length: 65536)])
        for unit in 16 * 30..<16 * 31 { copy.secondary[unit] = 0 }
        #expect(copy.secondary == new)
        #expect(copy.known.skipped == 38)
    }

    @Test("a guest's write between zeroing and copying is not lost, whatever part of a block it has")
    func guestWritesInBetween() throws {
        let old = [UInt8](repeating: 7, count: 48)
        for range in [0..<1, 3..<5, 0..<16, 15..<17, 8..<40] {
            var copy = try Copy(secondary: old)
            copy.write(0..<48, [UInt8](repeating: 0, count: 48), asZeroes: true)
            copy.write(range, [UInt8](repeating: 8, count: range.count), asZeroes: false)
            // The copy reads the block after the guest's write; a block that it copied before stays as it is.
            copy.write(16..<32, Array(copy.mirror[16..<32]), asZeroes: false)
            copy.settle(by: 1)
            #expect(copy.secondary == copy.mirror, "\(range)")
        }
    }

    @Test("a description that is out of order, too long or beyond the disk is refused")
    func malformed() throws {
        let digest = BlockDigest(high: 1, low: 1)
        var known = KnownBlocks(diskSize: 65536 * 2 + 512, blockSize: 65536, digestLimit: 10)
        #expect(known.blockCount == 3)
        #expect(throws: KnownBlocks.Malformed.self) { try known.describe(zeroes: 1, from: 1) }
        #expect(throws: KnownBlocks.Malformed.self) { try known.describe(zeroes: 4, from: 0) }
        #expect(throws: KnownBlocks.Malformed.self) { try known.describe(zeroes: .max, from: 0) }
        #expect(throws: KnownBlocks.Malformed.self) { try known.describe(zeroes: 1, from: .max) }
        try known.describe(zeroes: 2, from: 0)
        #expect(throws: KnownBlocks.Malformed.self) { try known.describe([digest], from: 0) }
        #expect(throws: KnownBlocks.Malformed.self) { try known.describe([digest, digest], from: 2) }
        try known.describe([digest], from: 2)
        #expect(known.isComplete)
        #expect(throws: KnownBlocks.Malformed.self) { try known.describe([digest], from: 3) }
        #expect(known.range(of: 2) == 131_072..<131_584)
    }

    @Test("digests beyond the limit are not kept, and their blocks are sent")
    func limit() throws {
        var known = KnownBlocks(diskSize: 65536 * 200, blockSize: 65536, digestLimit: 70)
        let digests = (0..<200).map { BlockDigest(high: UInt64($0), low: 5) }
        try known.describe(Array(digests[..<90]), from: 0)
        try known.describe(Array(digests[90...]), from: 90)
        #expect(known.digestCount == 70)
        for block in 0..<200 {
            let verdict = known.data(block, isWhole: true) { digests[block] }
            #expect(verdict == (block < 70 ? .nothing : .send), "block \(block)")
        }
    }
}
