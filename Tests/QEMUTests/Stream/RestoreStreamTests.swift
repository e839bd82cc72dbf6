import QEMU
import Testing

/// A small reader of restore streams, independent of the parser under test.
private struct RestoreReader {
    var bytes: [UInt8]
    var position = 0

    struct Contents: Equatable {
        var configuration: [UInt8] = []
        var layout: [RamBlockDescription] = []
        /// Pages by block name, in the order of the stream; nil for a page sent as zero.
        var pages: [String: [UInt64: [UInt8]?]] = [:]
        var rest: [UInt8] = []
    }

    struct Unexpected: Error { var position: Int }

    mutating func number(_ width: Int) throws -> UInt64 {
        try take(width).reduce(0) { $0 << 8 | UInt64($1) }
    }

    mutating func take(_ count: Int) throws -> [UInt8] {
        guard position + count <= bytes.count else { throw Unexpected(position: position) }
        defer { position += count }
        return Array(bytes[position..<position + count])
    }

    mutating func expect(_ expected: [UInt8]) throws {
        guard try take(expected.count) == expected else { throw Unexpected(position: position) }
    }

    mutating func text() throws -> String { String(decoding: try take(Int(try number(1))), as: UTF8.self) }

    mutating func read(configurationLength: Int, id: UInt32) throws -> Contents {
        var contents = Contents()
        try expect([0x51, 0x45, 0x56, 0x4D, 0, 0, 0, 3, 7])
        contents.configuration = try take(configurationLength)
        try expect([1] + be(id) + [3, 0x72, 0x61, 0x6D, 0, 0, 0, 0, 0, 0, 0, 4])
        var left = try number(8) ^ 4
        while left > 0 {
            let name = try text()
            let length = try number(8)
            contents.layout.append(RamBlockDescription(name: name, length: length))
            left -= min(left, length)
        }
        try expect(be(UInt64(0x10)) + [0x7E] + be(id) + [3] + be(id))
        var name = ""
        while true {
            let item = try number(8)
            if item == 0x10 { break }
            if item & 0x20 == 0 { name = try text() }
            let isZero = item & 0x02 != 0
            if isZero { try expect([0]) }
            contents.pages[name, default: [:]][item & ~0xFFF] = .some(isZero ? nil : try take(4096))
        }
        try expect([0x7E] + be(id))
        contents.rest = Array(bytes[position...])
        return contents
    }
}

@Suite("The stream that restores a guest")
struct RestoreStreamTests {
    private let state = StreamWriter().deviceState

    private func build(_ stream: RestoreStream, _ contents: [[UInt8]], _ state: [UInt8]) throws -> [UInt8] {
        // Each block's bytes lie in one array, which stays where it is while the stream is built.
        let joined = contents.flatMap { $0 }
        let starts = contents.indices.map { contents[..<$0].reduce(0) { $0 + $1.count } }
        var out: [UInt8] = [0xAA]
        try joined.withUnsafeBytes { all in
            try state.withUnsafeBytes { state in
                try stream.build(
                    smallBlockPages: {
                        UnsafeRawBufferPointer(rebasing: all[starts[$0]..<starts[$0] + contents[$0].count])
                    },
                    deviceState: state, into: &out)
            }
        }
        #expect(out.removeFirst() == 0xAA)
        return out
    }

    @Test("Configuration, layout, small blocks and device state are sent; mapped blocks get no pages")
    func contents() throws {
        var writer = StreamWriter()
        writer.subsections = [5] + named("configuration/capabilities") + be(UInt32(1)) + be(UInt32(1))
        writer.subsections += named("x-ignore-shared")
        let stream = try RestoreStream(
            configuration: writer.configurationPayload, ramSectionID: 77, blocks: writer.blocks, mapped: [0])
        let zero = [UInt8](repeating: 0, count: 4096)
        var last = zero
        last[4095] = 1
        let tables = pageContents(1) + zero + last + zero
        let out = try build(stream, [[], tables, zero], state)
        var reader = RestoreReader(bytes: out)
        let read = try reader.read(configurationLength: writer.configurationPayload.count, id: 77)
        #expect(read.configuration == writer.configurationPayload)
        #expect(read.layout == writer.blocks)
        #expect(read.pages["pc.ram"] == nil)
        #expect(read.pages["/rom@etc/acpi/tables"] == [0: pageContents(1), 4096: nil, 8192: last, 12288: nil])
        #expect(read.pages["pc.bios"] == [0: nil])
        #expect(read.rest == state + [6, 0, 0, 0, 2] + Array("{}".utf8))
    }

    @Test("Random layouts and contents come back page for page", arguments: 0..<20 as Range<UInt64>)
    func random(seed: UInt64) throws {
        var random = StreamRandom(seed: seed)
        let writer = StreamWriter()
        let blocks = (0..<Int.random(in: 1...10, using: &random)).map {
            RamBlockDescription(
                name: "\($0)" + String(repeating: "n", count: Int.random(in: 0...254, using: &random)),
                length: UInt64.random(in: 1...6, using: &random) << 12)
        }
        let mapped = Set(blocks.indices.filter { _ in Int.random(in: 0..<3, using: &random) == 0 })
        let contents = blocks.map { block in
            (0..<Int(block.length >> 12)).flatMap { page in
                Bool.random(using: &random) ? [UInt8](repeating: 0, count: 4096) : pageContents(page + 1)
            }
        }
        let id = UInt32.random(in: 0...UInt32.max, using: &random)
        let stream = try RestoreStream(
            configuration: writer.configurationPayload, ramSectionID: id, blocks: blocks, mapped: mapped)
        var reader = RestoreReader(bytes: try build(stream, contents, state))
        let read = try reader.read(configurationLength: writer.configurationPayload.count, id: id)
        #expect(read.layout == blocks, "seed \(seed)")
        for (index, block) in blocks.enumerated() {
            let pages = read.pages[block.name]
            #expect((pages == nil) == mapped.contains(index), "seed \(seed)")
            guard let pages else { continue }
            let back = stride(from: 0, to: block.length, by: 4096).flatMap {
                (pages[$0] ?? [0xEE]) ?? [UInt8](repeating: 0, count: 4096)
            }
            #expect(back == contents[index], "seed \(seed)")
        }
    }

    @Test("What cannot be restored is refused by name")
    func refusals() throws {
        let good = StreamWriter().configurationPayload
        func problem(
            _ configuration: [UInt8], _ blocks: [RamBlockDescription], mapped: Set<Int> = []
        ) -> RestoreStream.Problem? {
            do throws(RestoreStream.Problem) {
                _ = try RestoreStream(configuration: configuration, ramSectionID: 2, blocks: blocks, mapped: mapped)
                return nil
            } catch {
                return error
            }
        }
        let block = RamBlockDescription(name: "a", length: 4096)
        let long = String(repeating: "x", count: 256)
        #expect(problem(good, [block]) == nil)
        #expect(problem(good + [1], [block]) == .configuration(.trailingBytes(1)))
        #expect(problem(good, []) == .noBlocks)
        #expect(problem(good, [block, block]) == .duplicateBlock("a"))
        #expect(problem(good, [RamBlockDescription(name: "", length: 4096)]) == .badBlockName(""))
        #expect(problem(good, [RamBlockDescription(name: long, length: 4096)]) == .badBlockName(long))
        #expect(problem(good, [RamBlockDescription(name: "a", length: 0)]) == .badBlockLength(name: "a", length: 0))
        #expect(
            problem(good, [RamBlockDescription(name: "a", length: 4097)]) == .badBlockLength(name: "a", length: 4097))
        #expect(
            problem(good, [block, RamBlockDescription(name: "b", length: .max & ~0xFFF)])
                == .ramTooLarge(limit: 1 << 40))
        #expect(problem(good, [block], mapped: [1]) == .noSuchBlock(index: 1, count: 1))
        #expect(
            problem(good, (0..<1025).map { RamBlockDescription(name: "\($0)", length: 4096) })
                == .tooManyBlocks(limit: 1024))
        let stream = try RestoreStream(configuration: good, ramSectionID: 2, blocks: [block], mapped: [0])
        for broken in [[], Array(state.dropLast()), Array(state.dropFirst()), [4, 0x7E, 0, 0, 0, 0]] {
            #expect(throws: RestoreStream.Problem.malformedDeviceState(bytes: broken.count)) {
                _ = try build(stream, [[]], broken)
            }
        }
    }
}
