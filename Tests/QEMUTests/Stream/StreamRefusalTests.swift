import QEMU
import Testing

/// A stream that must be refused, and why.
private struct Refusal: CustomTestStringConvertible, Sendable {
    var name: String
    var segments: [[UInt8]]
    var reason: MigrationStreamError.Reason
    var limits = MigrationLimits()

    var testDescription: String { name }

    init(
        _ name: String, _ bytes: [UInt8], _ reason: MigrationStreamError.Reason,
        limits: MigrationLimits = MigrationLimits()
    ) {
        self.init(name, segments: [bytes], reason, limits: limits)
    }

    init(
        _ name: String, segments: [[UInt8]], _ reason: MigrationStreamError.Reason,
        limits: MigrationLimits = MigrationLimits()
    ) {
        self.name = name
        self.segments = segments
        self.reason = reason
        self.limits = limits
    }

    private static let writer = StreamWriter()
    private static let opened = StreamWriter.header + writer.configuration
    private static let laidOut = opened + StreamWriter.colo + writer.start

    static let openings: [Refusal] = {
        var few = MigrationLimits()
        few.maxConfigurationBytes = 100
        let other = StreamWriter.header + be(UInt32(4))
        func subsection(_ name: String, version: UInt32 = 1, _ contents: [UInt8]) -> [UInt8] {
            opened + [5] + named(name) + be(version) + contents + [8]
        }
        return [
            Refusal("no migration stream", Array("NBDMAGIC".utf8), .wrongMagic(0x4E42_444D)),
            Refusal("another version", other.prefix(4) + be(UInt32(4)), .unsupportedVersion(4)),
            Refusal("no configuration", StreamWriter.header + StreamWriter.colo, .configurationExpected(found: 8)),
            Refusal(
                "endless machine name", StreamWriter.header + [7] + be(UInt32.max),
                .configuration(.tooLong(limit: 60 << 10))),
            Refusal(
                "endless subsections",
                subsection("configuration/capabilities", be(UInt32(1)) + named(String(repeating: "x", count: 200))),
                .configuration(.tooLong(limit: 100)), limits: few),
            Refusal(
                "unknown subsection", subsection("configuration/x", []),
                .configuration(.unknownSubsection("configuration/x"))),
            Refusal(
                "newer subsection", subsection("configuration/uuid", version: 2, []),
                .configuration(.unsupportedSubsectionVersion(name: "configuration/uuid", version: 2))),
            Refusal(
                "too many capabilities", subsection("configuration/capabilities", be(UInt32.max)),
                .configuration(.tooManyCapabilities(.max))),
            Refusal(
                "x-ignore-shared", subsection("configuration/capabilities", be(UInt32(1)) + named("x-ignore-shared")),
                .unsupportedCapability("x-ignore-shared")),
            Refusal(
                "64 KiB pages", subsection("configuration/target-page-bits", be(UInt32(16))), .unsupportedPageBits(16)),
            Refusal(
                "return path", opened + StreamWriter.command(1, []),
                .refusedCommand(number: 1, name: "open-return-path")),
            Refusal(
                "postcopy", opened + StreamWriter.command(3, []), .refusedCommand(number: 3, name: "postcopy-advise")),
            Refusal("ordinary migration", opened + writer.start, .coloNotEnabled),
            Refusal(
                "live block migration",
                opened + StreamWriter.colo + [1] + be(UInt32(1)) + named("block") + be(UInt32(0)) + be(UInt32(1)),
                .unsupportedLiveSection(name: "block")),
            Refusal(
                "newer RAM section",
                opened + StreamWriter.colo + [1] + be(UInt32(1)) + named("ram") + be(UInt32(0)) + be(UInt32(5)),
                .unsupportedRamSection(version: 5, instance: 0)),
            Refusal(
                "early device section", opened + StreamWriter.colo + [4],
                .unexpectedSection(type: 4, expected: "a command (0x08) or the RAM layout (0x01)")),
        ]
    }()

    static let layouts: [Refusal] = {
        let front = opened + StreamWriter.colo + writer.startHeader
        let entry = named("a") + be(UInt64(8192))
        var few = MigrationLimits()
        few.maxBlocks = 2
        let hugeTotal: UInt64 = 1 << 60
        return [
            Refusal("too much RAM", front + be(hugeTotal | 4), .ramTooLarge(bytes: hugeTotal, limit: 1 << 40)),
            Refusal("no RAM", front + be(UInt64(4)), .badBlockLength(name: "(all blocks)", length: 0, left: 0)),
            Refusal("a block twice", front + be(UInt64(16384 | 4)) + entry + entry, .duplicateBlock("a")),
            Refusal(
                "more than the total", front + be(UInt64(4096 | 4)) + entry,
                .badBlockLength(name: "a", length: 8192, left: 4096)),
            Refusal(
                "an uneven length", front + be(UInt64(8192 | 4)) + named("a") + be(UInt64(4097)),
                .badBlockLength(name: "a", length: 4097, left: 8192)),
            Refusal(
                "an empty block", front + be(UInt64(8192 | 4)) + named("a") + be(UInt64(0)),
                .badBlockLength(name: "a", length: 0, left: 8192)),
            Refusal("an empty name", front + be(UInt64(8192 | 4)) + [0], .emptyName),
            Refusal("a name that is not text", front + be(UInt64(8192 | 4)) + [1, 0xFF], .nameNotText),
            Refusal(
                "too many blocks",
                front + be(UInt64(12288 | 4)) + named("a") + be(UInt64(4096)) + named("b") + be(UInt64(4096)) + [1],
                .tooManyBlocks(limit: 2), limits: few),
            Refusal("an end without a list", front + be(UInt64(0x10)), .ramLayoutMissing),
            Refusal(
                "a second list", laidOut + [2] + be(UInt32(2)) + be(UInt64(8192 | 4)), .ramLayoutRepeated),
            Refusal(
                "a second layout section", laidOut + writer.start,
                .unexpectedSection(type: 1, expected: "a RAM section (0x02, 0x03) or a command (0x08)")),
            Refusal(
                "a missing footer", front + writer.list(writer.blocks, total: writer.total) + [2],
                .footerExpected(found: 2)),
            Refusal(
                "another section's footer",
                front + writer.list(writer.blocks, total: writer.total) + [0x7E] + be(UInt32(9)),
                .wrongFooterID(found: 9, expected: 2)),
        ]
    }()

    static let pages: [Refusal] = {
        let front = laidOut + [2] + be(UInt32(2))
        let page = pageContents(1)
        let flags: [(String, UInt64)] = [
            ("obsolete full pages", 0x01), ("xbzrle", 0x40), ("an RDMA hook", 0x80), ("compressed pages", 0x100),
            ("a multifd flush", 0x200), ("a page that is zero too", 0x0A), ("no flag at all", 0x00),
            ("an end with continue", 0x30), ("a flag from the future", 0x800),
        ]
        return flags.map { Refusal($0.0, front + be($0.1), .unsupportedRamFlags($0.1)) } + [
            Refusal("an end with an offset", front + be(UInt64(4096 | 0x10)), .unsupportedRamFlags(0x10)),
            Refusal("an unknown block", front + be(UInt64(0x08)) + named("pc.rom") + page, .unknownBlock("pc.rom")),
            Refusal("continue without a block", front + be(UInt64(0x28)) + page, .noBlockYet),
            Refusal(
                "a page behind its block", front + be(UInt64(4096 | 0x08)) + named("pc.bios") + page,
                .pageOutsideBlock(name: "pc.bios", offset: 4096, length: 4096)),
            Refusal(
                "a continued page right behind its block",
                front + be(UInt64(0x02)) + named("pc.bios") + [0] + be(UInt64(4096 | 0x28)) + page,
                .pageOutsideBlock(name: "pc.bios", offset: 4096, length: 4096)),
            Refusal(
                "a continued page far behind its block",
                front + be(UInt64(0x02)) + named("pc.ram") + [0] + be(UInt64.max & ~0xFFF | 0x28) + page,
                .pageOutsideBlock(name: "pc.ram", offset: UInt64.max & ~0xFFF, length: 64 << 12)),
            Refusal(
                "a section of something else", laidOut + [2] + be(UInt32(7)), .wrongSectionID(found: 7, expected: 2)),
            Refusal(
                "a description without devices", laidOut + [6],
                .unexpectedSection(type: 6, expected: "a RAM section (0x02, 0x03) or a command (0x08)")),
            Refusal(
                "RAM behind its end", laidOut + [3] + be(UInt32(2)) + be(UInt64(0x10)) + writer.footer + [3],
                .unexpectedSection(type: 3, expected: "a device section (0x04) or a command (0x08)")),
        ]
    }()

    static let checkpoints: [Refusal] = {
        var writer = StreamWriter()
        let initial = writer.initial([[]])
        let request = StreamWriter.request
        let ram = writer.section(3, [])
        let expected = "a RAM section (0x02, 0x03), a command (0x08) or the end mark (0x00)"
        var small = MigrationLimits()
        small.maxDeviceStateBytes = 200
        small.maxVmdescBytes = 2000
        func devices(_ state: [UInt8]) -> [[UInt8]] {
            [initial, request, be(UInt32(3)) + ram + [0] + be(UInt32(4)) + be(UInt64(state.count)) + state]
        }
        let begin = "it does not begin with a device section (0x04)"
        let end = "it does not end with a footer (0x7e) and the end mark (0x00)"
        return [
            Refusal(
                "another message than a request", segments: [initial, be(UInt32(3))],
                .wrongMessage(found: 3, expected: .checkpointRequest)),
            Refusal(
                "data before our reply", segments: [initial, request + be(UInt32(3))], .unexpectedData(bytes: 4)),
            Refusal(
                "a second request", segments: [initial, request, request],
                .wrongMessage(found: 1, expected: .vmstateSend)),
            Refusal(
                "a checkpoint without RAM", segments: [initial, request, be(UInt32(3)) + [0]], .checkpointWithoutRam),
            Refusal(
                "device sections without a size", segments: [initial, request, be(UInt32(3)) + ram + [4]],
                .unexpectedSection(type: 4, expected: expected)),
            Refusal(
                "two ends of RAM", segments: [initial, request, be(UInt32(3)) + ram + ram],
                .unexpectedSection(type: 3, expected: expected)),
            Refusal(
                "no size message", segments: [initial, request, be(UInt32(3)) + ram + [0] + be(UInt32(6))],
                .wrongMessage(found: 6, expected: .vmstateSize)),
            Refusal(
                "an endless device state",
                segments: [initial, request, be(UInt32(3)) + ram + [0] + be(UInt32(4)) + be(UInt64.max)],
                .deviceStateTooLarge(bytes: .max, limit: 256 << 20)),
            Refusal(
                "an endless initial device state",
                segments: [
                    Array(initial.dropLast()) + Array(repeating: 0x20, count: 2000)
                ],
                .deviceStateTooLarge(
                    bytes: UInt64(writer.deviceState.count + writer.vmdesc(.qemu7).count + 1999), limit: 200),
                limits: small),
            Refusal("an empty device state", segments: devices([]), .malformedDeviceState("it is empty")),
            Refusal("a device state of something else", segments: devices([9, 9]), .malformedDeviceState(begin)),
            Refusal("a short device state", segments: devices([4, 0]), .malformedDeviceState(end)),
            Refusal(
                "a cut device state", segments: devices(writer.deviceState.dropLast()), .malformedDeviceState(end)),
            Refusal(
                "data behind a checkpoint", segments: [initial, request, writer.checkpoint([]) + [1]],
                .unexpectedData(bytes: 1)),
        ]
    }()
}

@Suite("What a stream is refused for")
struct StreamRefusalTests {
    @Test("openings", arguments: Refusal.openings)
    fileprivate func openings(_ refusal: Refusal) { check(refusal) }

    @Test("RAM layouts", arguments: Refusal.layouts)
    fileprivate func layouts(_ refusal: Refusal) { check(refusal) }

    @Test("RAM pages", arguments: Refusal.pages)
    fileprivate func pages(_ refusal: Refusal) { check(refusal) }

    @Test("checkpoints", arguments: Refusal.checkpoints)
    fileprivate func checkpoints(_ refusal: Refusal) { check(refusal) }

    private func check(_ refusal: Refusal) {
        let error = StreamPlayer.error(refusal.segments, limits: refusal.limits)
        #expect(error?.reason == refusal.reason)
        #expect(error?.description.contains("\(refusal.reason)") == true)
        #expect(refusal.reason.description.count > 8)
    }

    @Test("A sink may refuse the machine in its own words")
    func sinkRefuses() {
        let error = StreamPlayer.error([StreamWriter.header + StreamWriter().configuration + [8]], refusal: "not mine")
        #expect(error?.reason == .refusedBySink("not mine"))
        #expect(error?.offset == 8)
        #expect(error?.state == .configuration)
    }

    @Test("Data that comes before our checkpoint-ready is refused")
    func dataBeforeReady() throws {
        var writer = StreamWriter()
        var player = StreamPlayer()
        try player.feed(writer.initial([[]]))
        #expect(player.stream.state == .awaitingReady)
        let error = #expect(throws: MigrationStreamError.self) { try player.feed(StreamWriter.request) }
        #expect(error?.reason == .unexpectedData(bytes: 4))
    }

    @Test("The error says at which byte, and a failed stream stays failed")
    func place() throws {
        var writer = StreamWriter()
        let initial = writer.initial([[.filled(block: 0, offset: 0, byte: 0)]])
        let good = be(UInt32(3)) + [3] + be(UInt32(2)) + be(UInt64(0x22)) + [0]
        var player = StreamPlayer()
        try player.feed(initial)
        player.answer()
        try player.feed(StreamWriter.request)
        player.answer()
        try player.feed(good.prefix(9))
        let expected = MigrationStreamError(
            reason: .unsupportedRamFlags(0x200), offset: UInt64(initial.count + 4 + good.count), state: .checkpointRam,
            checkpoint: 1)
        #expect(throws: expected) { try player.feed(good.dropFirst(9) + be(UInt64(0x200))) }
        #expect(throws: expected) { try player.feed(be(UInt64(0x10))) }
        #expect(player.stream.connectionClosed() == expected)
        #expect(expected.description.hasSuffix("checkpoint 1, RAM of the stopped guest: \(expected.reason)"))
        #expect("\(expected.reason)".contains("0x200 (multifd-flush)"))
    }

    @Test("Damaged streams are refused or read, never a crash", arguments: 0..<40 as Range<UInt64>)
    func damage(seed: UInt64) {
        var random = StreamRandom(seed: seed)
        var writer = StreamWriter()
        writer.devices.append(StreamWriter.Device(name: "big", instance: 0, contents: random.bytes(500)))
        let first: [StreamWriter.RamItem] = [
            .filled(block: 1, offset: 4096, byte: 0), .page(block: 0, offset: 0, contents: pageContents(1)),
        ]
        let segments = [writer.initial([first, []]), StreamWriter.request, writer.checkpoint(first)]
        for _ in 0..<12 {
            var player = StreamPlayer()
            // Damage near the beginning and the end of a segment, where there is structure.
            let damaged = Int.random(in: 0..<3, using: &random)
            var failed: MigrationStreamError?
            for (index, segment) in segments.enumerated() where failed == nil {
                var bytes = segment
                if index == damaged {
                    for _ in 0..<Int.random(in: 1...3, using: &random) {
                        let position = Int.random(in: 0..<bytes.count, using: &random)
                        let near = Bool.random(using: &random) ? position % 250 : bytes.count - 1 - position % 900
                        bytes[max(0, min(bytes.count - 1, near))] = UInt8.random(in: 0...255, using: &random)
                    }
                    if Bool.random(using: &random) {
                        let start = Int.random(in: 0..<bytes.count, using: &random)
                        bytes.removeSubrange(start..<min(bytes.count, start + Int.random(in: 0...9, using: &random)))
                    }
                }
                do throws(MigrationStreamError) {
                    try player.feed(bytes) { Int.random(in: 1...3000, using: &random) }
                    player.answer()
                } catch {
                    failed = error
                }
            }
            if let failed {
                #expect(failed.offset <= UInt64(segments.reduce(0) { $0 + $1.count }), "seed \(seed)")
                #expect(!failed.description.isEmpty, "seed \(seed)")
                #expect(player.stream.connectionClosed() == failed, "seed \(seed)")
            } else {
                let length = segments.reduce(0) { $0 + $1.count }
                #expect(player.stream.offset + UInt64(player.held.count) <= UInt64(length), "seed \(seed)")
            }
        }
    }
}
