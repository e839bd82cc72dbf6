import Link
import Testing
import Units

#if canImport(Glibc)
    import Glibc
#endif

/// Rows of the tables of docs/wire-format.md.
private enum Document {
    static let rows: [[String]] = {
        let path = #filePath.split(separator: "/").dropLast(3).joined(separator: "/")
        guard let file = fopen("/\(path)/docs/wire-format.md", "r") else { return [] }
        defer { fclose(file) }
        var bytes: [UInt8] = []
        var byte = fgetc(file)
        while byte != EOF {
            bytes.append(UInt8(truncatingIfNeeded: byte))
            byte = fgetc(file)
        }
        return String(decoding: bytes, as: UTF8.self).split(separator: "\n").filter { $0.hasPrefix("|") }.map { line in
            line.dropFirst().dropLast().split(separator: "|", omittingEmptySubsequences: false).map { cell in
                String(cell.drop { $0 == " " }.reversed().drop { $0 == " " }.reversed())
            }
        }
    }()

    /// The rows behind the header row with these cells.
    static func table(_ header: [String]) -> [[String]] {
        guard let start = rows.firstIndex(of: header) else { return [] }
        return Array(rows[(start + 2)...].prefix { $0.count == header.count && !$0[0].contains("Offset") })
    }
}

@Suite("docs/wire-format.md")
struct WireFormatDocumentTests {
    @Test("lists exactly the kinds of the code, with values, names and lengths")
    func kinds() {
        let rows = Document.table(["Kind", "Name", "From", "Epoch", "Payload bytes"])
        #expect(rows.map { $0[0] } == FrameKind.allCases.map { "\($0.rawValue)" })
        #expect(rows.map { $0[1] } == FrameKind.allCases.map(\.name))
        #expect(
            rows.map { $0[4] }
                == FrameKind.allCases.map { "\($0.payloadLengths.lowerBound)...\($0.payloadLengths.upperBound)" })
    }

    @Test("lists the header's fields where the code puts them")
    func header() {
        let rows = Document.table(["Offset", "Length", "Field", "Value"])
        #expect(rows.count == 10)
        // Each field gets a value of its own, which must be found where the document says.
        let header = FrameHeader(
            kind: .ramBatch, generation: Generation(0x1111_1111_1111_1111), epoch: Epoch(0x2222_2222_2222_2222),
            payloadLength: 0x33333, payloadChecksum: 0x4444_4444)
        let bytes = encodeHeader(header)
        let values: [String: UInt64] = [
            "magic": 0x4342_4C4B, "version": 1, "kind": 23, "flags": 0, "generation": 0x1111_1111_1111_1111,
            "epoch": 0x2222_2222_2222_2222, "payloadLength": 0x33333, "payloadChecksum": 0x4444_4444, "reserved": 0,
            "headerChecksum": UInt64(CRC32C.checksum(Array(bytes[..<36]))),
        ]
        var end = 0
        for row in rows {
            guard let offset = Int(row[0]), let length = Int(row[1]) else {
                Issue.record("no numbers in \(row)")
                continue
            }
            #expect(offset == end, "\(row[2])")
            end = offset + length
            #expect(bytes[offset..<end].reduce(0) { $0 << 8 | UInt64($1) } == values[row[2]], "\(row[2])")
        }
        #expect(end == FrameHeader.length)
    }

    @Test("lists the refusal codes of the code")
    func refusals() {
        let rows = Document.table(["Refuse code", "Name"])
        #expect(rows.map { $0[0] } == Refuse.Code.allCases.map { "\($0.rawValue)" })
        #expect(rows.map { $0[1] } == Refuse.Code.allCases.map { "\($0)" })
    }
}
