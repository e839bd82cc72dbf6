import Checkpointer
import Testing
import Units

@Suite("docs/store-format.md")
struct StoreFormatTests {
    private static let document = Document("store-format.md")

    @Test("lists the fields of a slot where the code puts them")
    func slot() {
        let rows = Self.document.table(["Offset", "Length", "Field", "Value"])
        let record = CommitRecord.sample()
        let bytes = CommitSlot.encode(record)
        func number(_ range: Range<Int>) -> UInt64 { bytes[range].reduce(0) { $0 << 8 | UInt64($1) } }
        let numbers: [String: UInt64] = [
            "magic": 0x434F_4C4F_434D_4954, "version": 1, "role": 0, "durability": 1, "ramSectionID": 2,
            "sequence": 7, "generation": 3, "epoch": 40, "wallClock": 1_700_000_000_000, "guestNameLength": 5,
            "ramFileCount": 2, "diskCount": 2, "devicePresent": 1, "reserved": 0,
            "checksum": UInt64(CRC32C.checksum(Array(bytes[..<4092]))),
        ]
        let zeroes = [UInt8](repeating: 0, count: 4096)
        let parts: [String: [UInt8]] = [
            "store": Array(repeating: 0x11, count: 8) + Array(repeating: 0x22, count: 8),
            "session": Array(repeating: 0x33, count: 8) + Array(repeating: 0x44, count: 8),
            "guestName": Array("web-1".utf8) + zeroes[..<59], "padding": Array(zeroes[..<1300]),
            "device": Self.entry(0, "state-40", 0xDEAD_BEEF, 13023),
            "ramFiles": Self.entry(1, "base-30.ram", 0xAABB_CCDD, 1 << 28)
                + Self.entry(2, "delta-31.log", 0x0102_0304, 5000) + zeroes[..<1120],
            "disks": Self.entry(0, "vda", 0, 1 << 30) + Self.entry(0, "vdb", 0, 4097) + zeroes[..<1120],
        ]
        #expect(rows.count == numbers.count + parts.count)
        var end = 0
        for row in rows {
            guard let offset = Int(row[0]), let length = Int(row[1]) else {
                Issue.record("no numbers in \(row)")
                continue
            }
            #expect(offset == end, "\(row[2])")
            end = offset + length
            if let part = parts[row[2]] {
                #expect(Array(bytes[offset..<end]) == part, "\(row[2])")
            } else {
                #expect(numbers[row[2]] == number(offset..<end), "\(row[2])")
            }
        }
        #expect(end == CommitSlot.length)
    }

    /// An entry as the document's second table lays it out.
    private static func entry(_ kind: UInt8, _ name: String, _ word: UInt32, _ length: UInt64) -> [UInt8] {
        var bytes: [UInt8] = []
        let fields: [[UInt8]] = [
            [kind], [UInt8(name.utf8.count)], [0, 0], withUnsafeBytes(of: word.bigEndian) { Array($0) },
            withUnsafeBytes(of: length.bigEndian) { Array($0) },
            Array(name.utf8) + Array(repeating: 0, count: 64 - name.utf8.count),
        ]
        let rows = document.table(["Entry offset", "Length", "Field"])
        #expect(rows.count == fields.count)
        for (row, field) in zip(rows, fields) {
            #expect(row[0] == "\(bytes.count)")
            #expect(row[1] == "\(field.count)")
            bytes += field
        }
        return bytes
    }

    @Test("store.info is three lines, and nothing else is taken for it")
    func storeInfo() {
        let description = StoreDescription(id: Identifier(high: 0x0123_4567_89AB_CDEF, low: 0x0123_4567_89AB_CDEF))
        let text = "colo-blk store\nformat: 1\nid: 0123456789abcdef0123456789abcdef\n"
        #expect(description.encode() == Array(text.utf8))
        func decode(_ text: String) -> Result<StoreDescription, StoreDescription.Fault> {
            Result { () throws(StoreDescription.Fault) in try StoreDescription.decode(Array(text.utf8)) }
        }
        #expect(decode(text) == .success(description))
        let id = "id: 0123456789abcdef0123456789abcdef\n"
        for (text, fault) in [
            ("", .notAStore), ("colo-blk stor\n", .notAStore), (String(repeating: "x", count: 5000), .notAStore),
            ("colo-blk store", .badLine(2)), ("colo-blk store\nformat: x\n" + id, .badLine(2)),
            ("colo-blk store\nformat: 01\n" + id, .badLine(2)), ("colo-blk store\nformat: 0\n" + id, .badLine(2)),
            ("colo-blk store\nformat: 2\nanything", .newerFormat(2)), ("colo-blk store\nformat: 1\n", .badLine(3)),
            ("colo-blk store\nformat: 1\nid: 0123\n", .badLine(3)), (text + "more\n", .badLine(4)),
            (String(text.dropLast()), .badLine(4)),
        ] as [(String, StoreDescription.Fault)] {
            #expect(decode(text).failure == fault, "\(text)")
        }
    }

    @Test("file names are recognised exactly")
    func fileNames() {
        for name in [
            "secondary.raw", "active.qcow2", "hidden-7.qcow2", "scratch-rehearsal.qcow2", "base-0.ram", "base-12.sum",
            "delta-18446744073709551615.log", "state-40", "hidden-8.qcow2.new",
        ] {
            #expect(StoreFileName(name)?.name == name, "\(name)")
        }
        #expect(StoreFileName("hidden-7.qcow2") == .hidden(Epoch(7)))
        for name in [
            "", "hidden-.qcow2", "hidden-07.qcow2", "hidden-+7.qcow2", "hidden--7.qcow2", "hidden-7.qcow", "state-",
            "state-1x", "base-1.raw", "delta-18446744073709551616.log", "Secondary.raw", ".new", "scratch-.qcow2",
        ] {
            #expect(StoreFileName(name) == nil, "\(name)")
        }
    }
}
