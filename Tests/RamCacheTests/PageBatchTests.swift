import RamCache
import Testing
import Units

@Suite struct PageBatchTests {
    private static func layout() throws -> RamLayout {
        try RamLayout(blocks: [.init(name: "pc.ram", length: 256 * 4096), .init(name: "vga", length: 16 * 4096)])
    }

    /// Encodes random changes of `guest` round by round and checks that the decoded copy stays equal.
    private static func roundTrip(seed: UInt64, useDelta: Bool) throws -> (equal: Bool, shadowEqual: Bool) {
        let layout = try layout()
        var random = SplitMix64(seed: seed)
        let guest = PlainMemory(layout)
        let shadow = PlainMemory(layout)
        var copy = PlainMemory(layout)
        let encoder = PageBatchEncoder(useDelta: useDelta)
        let decoder = PageBatchDecoder()
        func flush() throws {
            guard let batch = encoder.finish() else { return }
            #expect(try PageBatch.verify(batch) <= PageBatch.maximumPages)
            try decoder.prepare(batch, layout: layout)
            decoder.apply(to: &copy)
        }
        for _ in 0..<400 {
            let block = Int.random(in: 0..<2, using: &random)
            let page = UInt64.random(in: 0..<layout.blocks[block].pageCount, using: &random)
            let address = guest.address(block, page)
            PagePattern.allCases[Int.random(in: 0..<PagePattern.allCases.count, using: &random)]
                .fill(address, using: &random)
            if encoder.isFull { try flush() }
            encoder.add(
                block: UInt16(block), page: page, data: UnsafeRawPointer(address),
                shadow: shadow.address(block, page))
            if Int.random(in: 0..<20, using: &random) == 0 { try flush() }
        }
        try flush()
        return (copy.contents == guest.contents, !useDelta || shadow.contents == guest.contents)
    }

    @Test(arguments: [true, false]) func `what is encoded decodes to the same memory`(useDelta: Bool) throws {
        for seed in UInt64(1)...8 {
            let result = try Self.roundTrip(seed: seed, useDelta: useDelta)
            #expect(result.equal, "seed \(seed)")
            #expect(result.shadowEqual, "seed \(seed)")
        }
    }

    @Test func `every pattern after every other one round-trips, one page to a batch`() throws {
        let layout = try Self.layout()
        var random = SplitMix64(seed: 7)
        let guest = PlainMemory(layout)
        let shadow = PlainMemory(layout)
        var copy = PlainMemory(layout)
        let encoder = PageBatchEncoder(useDelta: true)
        let decoder = PageBatchDecoder()
        for first in PagePattern.allCases {
            for second in PagePattern.allCases {
                for pattern in [first, second] {
                    pattern.fill(guest.address(0, 3), using: &random)
                    encoder.add(
                        block: 0, page: 3, data: UnsafeRawPointer(guest.address(0, 3)), shadow: shadow.address(0, 3))
                    guard let batch = encoder.finish() else { continue }
                    try decoder.prepare(batch, layout: layout)
                    decoder.apply(to: &copy)
                }
                #expect(copy.contents == guest.contents, "\(first) then \(second)")
            }
        }
        #expect(shadow.contents == guest.contents)
    }

    @Test func `identical pages are dropped and zero pages cost one tag`() throws {
        let layout = try Self.layout()
        let guest = PlainMemory(layout)
        let shadow = PlainMemory(layout)
        let encoder = PageBatchEncoder(useDelta: true)
        #expect(
            !encoder.add(block: 0, page: 0, data: UnsafeRawPointer(guest.address(0, 0)), shadow: shadow.address(0, 0)))
        #expect(encoder.finish() == nil)
        shadow.address(0, 1).storeBytes(of: 5, as: UInt8.self)
        shadow.address(0, 2).storeBytes(of: 5, as: UInt8.self)
        #expect(encoder.addZero(block: 0, page: 1, shadow: shadow.address(0, 1)))
        #expect(encoder.addZero(block: 0, page: 2, shadow: shadow.address(0, 2)))
        // Header, tag + block + 24-bit page, tag alone.
        #expect(encoder.finish()?.count == 24 + 6 + 1)
        #expect(shadow.address(0, 1).load(as: UInt8.self) == 0)
        #expect(encoder.statistics.identical == 1)
        #expect(encoder.statistics.zero == 2)
        #expect(encoder.statistics.pages == 3)
    }

    @Test func `a change of one word costs a few bytes`() throws {
        let layout = try Self.layout()
        let guest = PlainMemory(layout)
        let shadow = PlainMemory(layout)
        let encoder = PageBatchEncoder(useDelta: true)
        guest.address(0, 9).storeBytes(of: 0x0102_0304, toByteOffset: 128, as: UInt64.self)
        encoder.add(block: 0, page: 9, data: UnsafeRawPointer(guest.address(0, 9)), shadow: shadow.address(0, 9))
        let batch = Array(try #require(encoder.finish()))
        // Entry of 6 bytes, line mask with bit 2, word mask with bit 0, the word itself.
        #expect(batch.count == 24 + 6 + 8 + 1 + 8)
        #expect(Array(batch[24...]) == [0xF6, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 4, 1, 4, 3, 2, 1, 0, 0, 0, 0])
        #expect(
            Array(batch[0..<20]) == [
                0x43, 0x52, 0x42, 0x31, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 23, 0, 0, 0, 23,
            ])
    }

    @Test func `random pages never grow by more than a thousandth and the header`() throws {
        let layout = try RamLayout(blocks: [.init(name: "pc.ram", length: 1 << 30)])
        var random = SplitMix64(seed: 11)
        let page = UnsafeMutableRawPointer.allocate(byteCount: Sizes.page, alignment: 64)
        let shadow = UnsafeMutableRawPointer.allocate(byteCount: Sizes.page, alignment: 64)
        defer { page.deallocate() }
        defer { shadow.deallocate() }
        for useDelta in [true, false] {
            let encoder = PageBatchEncoder(useDelta: useDelta)
            for _ in 0..<20 {
                let count = Int.random(in: 1...64, using: &random)
                for _ in 0..<count {
                    PagePattern.random.fill(page, using: &random)
                    PagePattern.random.fill(shadow, using: &random)
                    let index = UInt64.random(in: 0..<layout.blocks[0].pageCount, using: &random)
                    encoder.add(block: 0, page: index, data: UnsafeRawPointer(page), shadow: shadow)
                }
                let bytes = try #require(encoder.finish()).count
                // A thousandth of the pages, the header, and the block index that the first entry carries.
                #expect(bytes <= count * Sizes.page + count * Sizes.page / 1000 + 24 + 2)
            }
            #expect(encoder.statistics.compressedBatches == 0)
        }
    }

    @Test func `zstd is used when it pays and given up when it does not`() throws {
        var random = SplitMix64(seed: 12)
        let page = UnsafeMutableRawPointer.allocate(byteCount: Sizes.page, alignment: 64)
        defer { page.deallocate() }
        let encoder = PageBatchEncoder(useDelta: false)
        PagePattern.text.fill(page, using: &random)
        for index in 0..<64 { encoder.add(block: 0, page: UInt64(index), data: UnsafeRawPointer(page), shadow: nil) }
        let packed = try #require(encoder.finish()).count
        #expect(packed < 64 * Sizes.page / 20)
        #expect(encoder.statistics.compressedBatches == 1)
        for _ in 0..<40 {
            PagePattern.random.fill(page, using: &random)
            encoder.add(block: 0, page: 1, data: UnsafeRawPointer(page), shadow: nil)
            _ = encoder.finish()
        }
        #expect(encoder.statistics.compressedBatches == 1)
        // Within the longest pause (16 batches) it is tried again, and pays again.
        PagePattern.text.fill(page, using: &random)
        for _ in 0..<17 {
            encoder.add(block: 0, page: 1, data: UnsafeRawPointer(page), shadow: nil)
            _ = encoder.finish()
        }
        #expect(encoder.statistics.compressedBatches > 1)
    }

    @Test func `discarding forgets the unfinished batch`() throws {
        let layout = try Self.layout()
        let guest = PlainMemory(layout)
        let encoder = PageBatchEncoder(useDelta: false)
        encoder.add(block: 0, page: 0, data: UnsafeRawPointer(guest.address(0, 0)), shadow: nil)
        #expect(!encoder.isEmpty)
        encoder.discard()
        #expect(encoder.isEmpty)
        #expect(encoder.finish() == nil)
    }

    @Test func `the digest of an epoch depends on every batch and on their order`() throws {
        var batches: [[UInt8]] = []
        let encoder = PageBatchEncoder(useDelta: false)
        for page in 0..<3 {
            encoder.addZero(block: 0, page: UInt64(page), shadow: nil)
            var bytes: [UInt8] = []
            #expect(encoder.finish(into: &bytes))
            batches.append(bytes)
        }
        func digest(_ order: [Int]) -> RamEpochDigest {
            var digest = RamEpochDigest()
            for index in order { batches[index].withUnsafeBytes { digest.add($0) } }
            return digest
        }
        #expect(digest([0, 1, 2]) == digest([0, 1, 2]))
        #expect(digest([0, 1, 2]).value != digest([0, 2, 1]).value)
        #expect(digest([0, 1, 2]).batches == 3)
        #expect(digest([0, 1, 2]).pages == 3)
        #expect(digest([0, 1]) != digest([0, 1, 2]))
        #expect(digest([]).value == 0)
    }
}
