import Checkpointer
import Testing
import Units

@Suite("Commit slot")
struct CommitSlotTests {
    @Test("comes back as it was written, up to the limits")
    func roundTrip() {
        #expect(decodeSlot(CommitSlot.encode(.sample())) == .success(.sample()))
        for seed in UInt64(1)...40 {
            var random = SplitMix64(seed: seed)
            let record = CommitRecord.random(&random)
            let bytes = CommitSlot.encode(record)
            #expect(bytes.count == 4096)
            #expect(decodeSlot(bytes) == .success(record), "seed \(seed)")
        }
    }

    @Test("sixteen disks and sixteen RAM files with the longest names fit")
    func fullest() {
        let long = String(repeating: "n", count: 62)
        var record = CommitRecord.sample()
        record.guest = long + "gg"
        record.disks = (10..<26).map { .init(id: long + "\($0)", size: .max) }
        record.ramFiles = (10..<26).map { .init(kind: .log, name: long + "\($0)", length: .max, digest: .max) }
        #expect(CommitSlot.fits(record))
        #expect(decodeSlot(CommitSlot.encode(record)) == .success(record))
        record.disks.append(.init(id: "one-more", size: 1))
        #expect(!CommitSlot.fits(record))
    }

    @Test("names that are none, or twice the same, do not fit")
    func names() {
        func fits(_ change: (inout CommitRecord) -> Void) -> Bool {
            var record = CommitRecord.sample()
            change(&record)
            return CommitSlot.fits(record)
        }
        #expect(!fits { $0.guest = "" })
        #expect(!fits { $0.guest = "../x" })
        #expect(!fits { $0.disks[1].id = "vda" })
        #expect(!fits { $0.ramFiles[0].name = "a/b" })
        #expect(!fits { $0.ramFiles[0].name = "delta-31.log" })
        #expect(!fits { $0.device?.name = ".." })
        #expect(fits { $0.device = nil })
    }

    @Test("every single bit that flips is noticed")
    func bitFlips() {
        var bytes = CommitSlot.encode(.sample())
        var unnoticed: [Int] = []
        for bit in 0..<4096 * 8 {
            bytes[bit / 8] ^= 1 << UInt8(bit % 8)
            if decodeSlot(bytes).failure == nil { unnoticed.append(bit) }
            bytes[bit / 8] ^= 1 << UInt8(bit % 8)
        }
        #expect(unnoticed.isEmpty)
    }

    @Test("a slot that was never written is empty; a short one, a strange one and a newer one have names of their own")
    func faults() {
        let good = CommitSlot.encode(.sample())
        #expect(decodeSlot([UInt8](repeating: 0, count: 4096)).failure == .empty)
        #expect(decodeSlot(Array(good.dropLast())).failure == .wrongLength(4095))
        #expect(decodeSlot([]).failure == .wrongLength(0))
        #expect(decodeSlot([UInt8](repeating: 1, count: 4096)).failure == .badMagic(0x0101_0101_0101_0101))
        #expect(decodeSlot(forge(good, 8, [0, 2])).failure == .newerVersion(2))
        #expect(decodeSlot(forge(good, 8, [0, 0])).failure == .badField("version", offset: 8))
        // A torn slot of a newer version is torn, not newer.
        var torn = forge(good, 8, [0, 2])
        torn[100] ^= 1
        guard case .badChecksum? = decodeSlot(torn).failure else {
            Issue.record("a torn slot was taken for \(decodeSlot(torn))")
            return
        }
    }

    @Test("impossible values are refused by field, though the checksum is right")
    func fields() {
        let good = CommitSlot.encode(.sample())
        let cases: [(Int, [UInt8], String)] = [
            (10, [2], "role"), (11, [2], "durability"), (80, [0], "guest name"), (80, [65], "guest name"),
            (81, [17], "RAM file count"), (82, [17], "disk count"), (83, [2], "device state present"),
            (88, [UInt8(ascii: "/")], "guest name"), (88, [0xFF], "guest name"), (232, [3], "RAM file kind"),
            (233, [0], "RAM file name"), (1513, [200], "disk id"), (153, [0], "device state name"),
            (84, [0, 0, 0, 1], "a reserved or unused part"), (2792, [1], "a reserved or unused part"),
            (4091, [1], "a reserved or unused part"), (232 + 80 * 5, [1], "a reserved or unused part"),
            (88 + 20, [65], "a reserved or unused part"), (82, [1], "a reserved or unused part"),
        ]
        for (offset, bytes, field) in cases {
            guard case .badField(let named, _)? = decodeSlot(forge(good, offset, bytes)).failure else {
                Issue.record("byte \(offset) = \(bytes) was taken")
                continue
            }
            #expect(named == field, "byte \(offset)")
        }
    }

    @Test("random bytes with a right checksum never crash the decoder, and what is taken is encoded again the same")
    func garbage() {
        let good = CommitSlot.encode(.sample())
        for seed in UInt64(1)...800 {
            var random = SplitMix64(seed: seed)
            var bytes = good
            for _ in 0...random.below(3) { bytes[10 + random.below(400)] = UInt8(truncatingIfNeeded: random.next()) }
            bytes = forge(bytes, 0, [])
            if let record = decodeSlot(bytes).success { #expect(CommitSlot.encode(record) == bytes, "seed \(seed)") }
        }
    }
}
