import Foundation
import Link
import Testing
import Units

/// The tables of docs/wire-format.md that describe payloads, held against the code's bytes.
@Suite("docs/wire-format.md, payloads")
struct PayloadDocumentTests {
    /// Offset and length of each field of fixed place, in the table below `**name**`.
    private static func fields(of name: String) throws -> [(offset: Int, length: Int, field: String)] {
        let file = URL(filePath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
            .deletingLastPathComponent().appending(path: "docs/wire-format.md")
        let lines = try String(contentsOf: file, encoding: .utf8).split(
            separator: "\n", omittingEmptySubsequences: false)
        let start = try #require(lines.firstIndex { $0.hasPrefix("**") && $0.contains("**\(name)**") }, "\(name)")
        let table = lines[start...].drop { !$0.hasPrefix("|") }.prefix { $0.hasPrefix("|") }.dropFirst(2)
        return table.compactMap { line in
            let cells = line.split(separator: "|").map { $0.trimmingCharacters(in: .whitespaces) }
            guard cells.count == 3, let offset = Int(cells[0]), let length = Int(cells[1]) else { return nil }
            return (offset, length, cells[2])
        }
    }

    /// A payload, and what its fields of fixed place hold, in their order.
    private struct Sample {
        let bytes: [UInt8]
        let values: [UInt64]

        init(_ payload: some LinkPayload, _ values: [UInt64]) {
            bytes = encode(payload)
            self.values = values
        }
    }

    private static let hello = Hello(
        protocolVersion: 1, guest: "g", session: Identifier(high: 0, low: 0x1122), durability: .disk, label: "l",
        disks: [.init(id: "d", size: 5)], generation: Generation(0x33), agentVersion: "v")

    private static var seal: Seal {
        var seal = Seal()
        (seal.diskFrames, seal.diskBytes, seal.ramBatches) = (1, 2, 3)
        (seal.ramBytes, seal.deviceBytes, seal.digest) = (4, 5, 6)
        return seal
    }

    private static func samples() -> [String: Sample] {
        let digest = BlockDigest(high: 1, low: 2)
        let ramAsk = RamVerify(source: .guest, first: 9, count: 2)
        return [
            "hello": Sample(hello, [1, 1, 1, 0x1122, 0x33]),
            "welcome": Sample(
                Welcome(
                    generation: Generation(1), firstEpoch: Epoch(2), lastCommitted: Epoch(3), creditWindow: 4,
                    serverVersion: "v"), [1, 2, 3, 4]),
            "refuse": Sample(Refuse(code: .busy, message: "m"), [8]),
            "guestState": Sample(GuestState(code: .halted, message: "m"), [1]),
            "bye": Sample(Bye(code: 7, reason: "r"), [7]),
            "ramLayout": Sample(
                RamLayoutPayload(ramSectionID: 1, configuration: [7, 7], blocks: [.init(name: "a", length: 4096)]),
                [1, 2, 1]),
            "diskZeroes": Sample(
                DiskExtent.zeroes(disk: 3, range: ByteRange(offset: 512, length: 1024)), [3, 512, 1024]),
            "diskDiscard": Sample(
                DiskExtent.discard(disk: 3, range: ByteRange(offset: 512, length: 1024)), [3, 512, 1024]),
            "ramKnown": Sample(RamKnown(isLast: true, first: 9, runs: [.data([digest])]), [1, 0, 9]),
            "diskDigests": Sample(
                DiskDigests(disk: 2, isLast: true, first: 5, runs: [.data([digest])]), [2, 1, 0, 5]),
            "seal": Sample(seal, [1, 2, 3, 4, 5, 6]),
            "ramVerify": Sample(ramAsk, [1, 0, 0, 2, 9]),
            "ramDigests": Sample(RamDigests(ask: ramAsk, outcome: .digests([1, 2])), [1, 0, 0, 2, 9]),
            "diskVerify": Sample(DiskVerify(action: .repair, disk: 3, first: 7, count: 9), [1, 0, 3, 9, 7]),
            "diskCheck": Sample(
                DiskCheck(disk: 3, outcome: .digests([.init(block: 1, digest: digest)])), [0, 0, 3, 1]),
            "ramRepair": Sample(RamRepair(source: .guest, pages: [4, 5, 6]), [1, 0, 3]),
        ]
    }

    @Test("each field of fixed place lies where its table says, without gaps")
    func fixedFields() throws {
        for (name, sample) in Self.samples() {
            let fields = try Self.fields(of: name)
            #expect(fields.count == sample.values.count, "\(name)")
            var end = 0
            for (field, value) in zip(fields, sample.values) {
                #expect(field.offset == end, "\(name): \(field.field)")
                end = field.offset + field.length
                guard end <= sample.bytes.count else {
                    Issue.record("\(name): \(field.field) lies behind the end")
                    continue
                }
                let found = sample.bytes[field.offset..<end].reduce(UInt64(0)) { $0 << 8 | UInt64($1) }
                #expect(found == value, "\(name): \(field.field)")
            }
        }
    }

    @Test("every kind with fields has a table, or words that name it")
    func complete() throws {
        let without: Set<FrameKind> = [.ready, .request, .reply, .send, .received, .loaded, .ramBatch, .identity]
        let inWords: Set<FrameKind> = [.size, .deviceState, .ramFigures, .credit, .heartbeat, .primaryFigures]
        for kind in FrameKind.allCases where !without.contains(kind) && !inWords.contains(kind) {
            #expect(try !Self.fields(of: kind.name).isEmpty, "\(kind)")
        }
    }
}
