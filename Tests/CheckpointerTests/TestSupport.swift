import Checkpointer
import Glibc
import Units

/// SplitMix64, seeded.
struct SplitMix64: RandomNumberGenerator {
    private var state: UInt64

    init(seed: UInt64) {
        state = seed
    }

    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var value = state
        value = (value ^ value >> 30) &* 0xBF58_476D_1CE4_E5B9
        value = (value ^ value >> 27) &* 0x94D0_49BB_1331_11EB
        return value ^ value >> 31
    }

    mutating func below(_ limit: Int) -> Int { Int(next() % UInt64(limit)) }
}

/// The tables of a document in `docs`.
struct Document {
    private let rows: [[String]]

    init(_ name: String) {
        let root = #filePath.split(separator: "/").dropLast(3).joined(separator: "/")
        guard let file = fopen("/\(root)/docs/\(name)", "r") else {
            rows = []
            return
        }
        defer { fclose(file) }
        var bytes: [UInt8] = []
        var byte = fgetc(file)
        while byte != EOF {
            bytes.append(UInt8(truncatingIfNeeded: byte))
            byte = fgetc(file)
        }
        rows = String(decoding: bytes, as: UTF8.self).split(separator: "\n").filter { $0.hasPrefix("|") }.map { line in
            line.dropFirst().dropLast().split(separator: "|", omittingEmptySubsequences: false).map { cell in
                String(cell.drop { $0 == " " }.reversed().drop { $0 == " " }.reversed())
            }
        }
    }

    /// The rows behind the header row with these cells, as long as they have as many.
    func table(_ header: [String]) -> [[String]] {
        guard let start = rows.firstIndex(of: header) else { return [] }
        return Array(rows[(start + 2)...].prefix { $0.count == header.count })
    }
}

extension CommitRecord {
    /// A record with something in every field.
    static func sample(sequence: UInt64 = 7, epoch: UInt64 = 40, role: Role = .replica) -> CommitRecord {
        CommitRecord(
            store: Identifier(high: 0x1111_1111_1111_1111, low: 0x2222_2222_2222_2222),
            session: Identifier(high: 0x3333_3333_3333_3333, low: 0x4444_4444_4444_4444), guest: "web-1",
            sequence: sequence, generation: Generation(3), epoch: Epoch(epoch), role: role, durability: .disk,
            wallClockMilliseconds: 1_700_000_000_000, ramSectionID: 2,
            ramFiles: [
                .init(kind: .base, name: "base-30.ram", length: 1 << 28, digest: 0xAABB_CCDD),
                .init(kind: .log, name: "delta-31.log", length: 5000, digest: 0x0102_0304),
            ],
            device: .init(name: "state-\(epoch)", length: 13023, checksum: 0xDEAD_BEEF),
            disks: [.init(id: "vda", size: 1 << 30), .init(id: "vdb", size: 4097)])
    }

    /// One with random contents, up to the limits.
    static func random(_ random: inout SplitMix64) -> CommitRecord {
        func name(_ index: Int, _ random: inout SplitMix64) -> String {
            "n\(index)" + String(repeating: "x", count: random.below(62))
        }
        var record = sample(sequence: random.next(), epoch: random.next())
        record.store = Identifier(using: &random)
        record.session = Identifier(using: &random)
        record.generation = Generation(random.next())
        record.role = random.below(2) == 0 ? .replica : .promoted
        record.durability = random.below(2) == 0 ? .memory : .disk
        record.wallClockMilliseconds = random.next()
        record.ramSectionID = UInt32(truncatingIfNeeded: random.next())
        record.guest = name(0, &random)
        record.ramFiles = (0..<random.below(17)).map { index in
            .init(
                kind: random.below(2) == 0 ? .base : .log, name: name(index, &random), length: random.next(),
                digest: UInt32(truncatingIfNeeded: random.next()))
        }
        record.disks = (0..<random.below(17)).map { .init(id: name($0, &random), size: random.next()) }
        if random.below(4) == 0 { record.device = nil }
        return record
    }
}

func decodeSlot(_ bytes: [UInt8]) -> Result<CommitRecord, CommitSlot.Fault> {
    Result { () throws(CommitSlot.Fault) in try CommitSlot.decode(bytes) }
}

func choose(_ first: [UInt8], _ second: [UInt8], store: Identifier? = nil) -> Result<
    CommitSlots.Choice, CommitSlots.Fault
> {
    Result { () throws(CommitSlots.Fault) in try CommitSlots.choose(first, second, store: store) }
}

extension Result {
    var failure: Failure? {
        if case .failure(let error) = self { return error }
        return nil
    }

    var success: Success? {
        if case .success(let value) = self { return value }
        return nil
    }
}

/// Changes bytes of a slot and makes its checksum right again.
func forge(_ slot: [UInt8], _ offset: Int, _ bytes: [UInt8]) -> [UInt8] {
    var forged = slot
    forged.replaceSubrange(offset..<offset + bytes.count, with: bytes)
    let crc = CRC32C.checksum(Array(forged[..<4092]))
    forged.replaceSubrange(4092..<4096, with: withUnsafeBytes(of: crc.bigEndian) { Array($0) })
    return forged
}
