import RamCache
import Testing
import Units

/// Batches that lie. None may crash, and none may change memory unless it says exactly what was encoded.
@Suite struct HostileBatchTests {
    private static func layout() throws -> RamLayout {
        try RamLayout(blocks: [.init(name: "pc.ram", length: 64 * 4096), .init(name: "vga", length: 4 * 4096)])
    }

    /// A batch with entries of every kind; compressed or not.
    private static func sample(compressed: Bool, seed: UInt64) -> [UInt8] {
        var random = SplitMix64(seed: seed)
        let page = UnsafeMutableRawPointer.allocate(byteCount: Sizes.page, alignment: 64)
        let shadow = UnsafeMutableRawPointer.allocate(byteCount: Sizes.page, alignment: 64)
        defer { page.deallocate() }
        defer { shadow.deallocate() }
        let encoder = PageBatchEncoder(useDelta: true)
        PagePattern.random.fill(page, using: &random)
        encoder.add(block: 0, page: 1, data: UnsafeRawPointer(page), shadow: nil)
        shadow.copyMemory(from: page, byteCount: Sizes.page)
        PagePattern.fivePercent.fill(page, using: &random)
        encoder.add(block: 0, page: 1, data: UnsafeRawPointer(page), shadow: shadow)
        encoder.addZero(block: 1, page: 2, shadow: nil)
        if compressed {
            PagePattern.text.fill(page, using: &random)
            for index in 10..<30 {
                encoder.add(block: 0, page: UInt64(index), data: UnsafeRawPointer(page), shadow: nil)
            }
        }
        var bytes: [UInt8] = []
        _ = encoder.finish(into: &bytes)
        return bytes
    }

    /// Puts the right checksum in, so that the checks behind it are reached.
    private static func reseal(_ batch: inout [UInt8]) {
        guard batch.count >= 24 else { return }
        var crc = CRC32C()
        crc.update(Array(batch[0..<20]))
        crc.update(Array(batch[24...]))
        for index in 0..<4 { batch[20 + index] = UInt8(truncatingIfNeeded: crc.value >> UInt32(24 - index * 8)) }
    }

    private static func error(_ batch: [UInt8], _ layout: RamLayout) -> RamBatchError? {
        let decoder = PageBatchDecoder()
        return batch.withUnsafeBytes { bytes in
            do throws(RamBatchError) {
                try decoder.prepare(bytes, layout: layout)
                return nil
            } catch { return error }
        }
    }

    /// A batch with the given payload, uncompressed.
    private static func batch(pages: UInt16, payload: [UInt8], codec: UInt8 = 0, rawLength: Int? = nil) -> [UInt8] {
        var writer = ByteWriter()
        writer.write(PageBatch.magic)
        writer.write(PageBatch.version)
        writer.write(codec)
        writer.write(UInt16(0))
        writer.write(pages)
        writer.write(UInt16(0))
        writer.write(UInt32(rawLength ?? payload.count))
        writer.write(UInt32(payload.count))
        writer.write(UInt32(0))
        writer.write(bytes: payload)
        var bytes = writer.bytes
        reseal(&bytes)
        return bytes
    }

    @Test(arguments: [true, false]) func `every cut is refused`(compressed: Bool) throws {
        let layout = try Self.layout()
        let whole = Self.sample(compressed: compressed, seed: 3)
        #expect(Self.error(whole, layout) == nil)
        for count in 0..<min(whole.count, 600) { #expect(Self.error(Array(whole[0..<count]), layout) != nil) }
        #expect(Self.error(whole + [0], layout)?.fault == .encodedLength)
    }

    @Test(arguments: [true, false]) func `every flipped bit is found`(compressed: Bool) throws {
        let layout = try Self.layout()
        let whole = Self.sample(compressed: compressed, seed: 4)
        var random = SplitMix64(seed: 5)
        var positions = Array(0..<32)
        for _ in 0..<200 { positions.append(Int.random(in: 0..<whole.count, using: &random)) }
        for position in positions {
            var broken = whole
            broken[position] ^= 1 << UInt8.random(in: 0..<8, using: &random)
            #expect(Self.error(broken, layout) != nil, "seed 5, byte \(position)")
        }
    }

    @Test(arguments: [true, false]) func `mutations under a right checksum never crash`(compressed: Bool) throws {
        let layout = try Self.layout()
        var refused = 0
        for seed in UInt64(1)...300 {
            var random = SplitMix64(seed: seed)
            var batch = Self.sample(compressed: compressed, seed: 6)
            for _ in 0..<Int.random(in: 1...6, using: &random) {
                // The entries' own bytes are hit more often than the pages' contents.
                let end = Bool.random(using: &random) ? min(60, batch.count) : batch.count
                let position = Int.random(in: 0..<end, using: &random)
                batch[position] = UInt8.random(in: 0...255, using: &random)
            }
            if Int.random(in: 0..<4, using: &random) == 0 {
                batch.removeLast(Int.random(in: 1...batch.count / 2, using: &random))
                let encoded = UInt32(max(0, batch.count - 24))
                for index in 0..<4 { batch[16 + index] = UInt8(truncatingIfNeeded: encoded >> UInt32(24 - index * 8)) }
            }
            Self.reseal(&batch)
            let decoder = PageBatchDecoder()
            var memory = PlainMemory(layout)
            let untouched = memory.contents
            let failed = batch.withUnsafeBytes { bytes in
                do {
                    try decoder.prepare(bytes, layout: layout)
                    decoder.apply(to: &memory)
                    return false
                } catch {
                    // A refused batch leaves nothing behind, even if it is applied by mistake.
                    decoder.apply(to: &memory)
                    return true
                }
            }
            if failed {
                refused += 1
                #expect(memory.contents == untouched, "seed \(seed)")
            }
        }
        #expect(refused > 100)
    }

    @Test func `each rule of the format has its own refusal`() throws {
        let layout = try Self.layout()
        func fault(_ pages: UInt16, _ payload: [UInt8]) -> RamBatchError.Fault? {
            Self.error(Self.batch(pages: pages, payload: payload), layout)?.fault
        }
        let first: [UInt8] = [0b1111_0100, 0, 0, 0, 0, 0]  // zero page, block 0, page 0
        #expect(fault(1, first) == nil)
        #expect(fault(2, first + [0b0000_0000]) == nil)
        #expect(fault(0, first) == .pageCount)
        #expect(fault(65, first) == .pageCount)
        #expect(fault(2, first) == .truncatedEntry)
        #expect(fault(1, first + [0]) == .trailingBytes)
        #expect(fault(1, [0b0000_0000]) == .tag)  // no block in the first entry
        #expect(fault(1, [0b0000_0100, 0, 0]) == .tag)  // a block, but no page
        #expect(fault(1, [0b1111_0111, 0, 0, 0, 0, 0]) == .tag)  // kind 3
        #expect(fault(1, [0b1111_0100, 0, 2, 0, 0, 0]) == .block)
        #expect(fault(1, [0b1111_0100, 0, 1, 0, 0, 4]) == .page)
        #expect(fault(1, [0b1111_1100, 0, 1, 0xFF, 0xFF, 0xFF, 0xFF]) == .page)
        #expect(fault(2, [0b1111_0100, 0, 1, 0, 0, 3, 0]) == .page)  // a gap behind the last page
        #expect(fault(1, [0b1111_0101, 0, 0, 0, 0, 0, 1, 2, 3]) == .truncatedEntry)
        let delta: [UInt8] = [0b1111_0110, 0, 0, 0, 0, 0]
        #expect(fault(1, delta + [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1]) == .delta)  // no line
        #expect(fault(1, delta + [0, 0, 0, 0, 0, 0, 0, 1, 0, 1, 1, 1, 1, 1, 1, 1, 1]) == .delta)  // no word
        #expect(fault(1, delta + [0, 0, 0, 0, 0, 0, 0, 1, 3, 1, 1, 1, 1, 1, 1, 1, 1]) == .delta)  // second word missing
        #expect(fault(1, delta + [0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]) == nil)
        let whole = [UInt8](repeating: 0xFF, count: 8) + (0..<64).flatMap { _ in [UInt8](repeating: 0xFF, count: 65) }
        #expect(fault(1, delta + whole) == .delta)  // longer than its page
    }

    @Test func `a header cannot ask for more memory or lie about zstd`() throws {
        let layout = try Self.layout()
        func fault(_ bytes: [UInt8]) -> RamBatchError.Fault? { Self.error(bytes, layout)?.fault }
        let payload = [UInt8](repeating: 0, count: 40)
        #expect(fault(Self.batch(pages: 1, payload: payload, codec: 1, rawLength: 0xFFFF_FFFF)) == .rawLength)
        #expect(fault(Self.batch(pages: 1, payload: payload, codec: 1, rawLength: 0)) == .rawLength)
        #expect(fault(Self.batch(pages: 1, payload: payload, codec: 1, rawLength: 200_000)) == .decompression)
        #expect(fault(Self.batch(pages: 1, payload: payload, codec: 2)) == .codec)
        #expect(fault(Self.batch(pages: 1, payload: payload, codec: 0, rawLength: 41)) == .encodedLength)
        // A true frame whose contents are longer or shorter than the header says.
        let sample = Self.sample(compressed: true, seed: 8)
        #expect(sample[5] == 1)
        let raw = sample[12..<16].reduce(0) { $0 << 8 | Int($1) }
        for wrong in [raw - 1, raw + 1] {
            let lied = Self.batch(pages: 23, payload: Array(sample[24...]), codec: 1, rawLength: wrong)
            #expect(fault(lied) == .decompression)
        }
        var version = sample
        version[4] = 2
        #expect(fault(version) == .version)
        var reserved = sample
        reserved[10] = 1
        #expect(fault(reserved) == .reserved)
        #expect(Self.error([], layout)?.fault == .truncatedHeader)
    }

    @Test func `an error names the fault, the byte and the value`() throws {
        let layout = try Self.layout()
        let error = try #require(Self.error(Self.batch(pages: 1, payload: [0b1111_0100, 0, 7, 0, 0, 0]), layout))
        #expect(error.description.contains("names a RAM block that does not exist (byte 1, value 7)"))
    }
}
