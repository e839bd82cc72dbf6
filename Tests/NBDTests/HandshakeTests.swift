import NBD
import Testing
import Units

@Suite("NBD handshake")
struct HandshakeTests {
    private static let exports = [NBDExport(name: "vda", size: 65536), NBDExport(name: "vdb", size: 1 << 40)]

    private static func rig() throws -> Rig {
        var rig = Rig(exports)
        #expect(rig.start() == Server.greeting)
        #expect(try rig.say(Client.flags).isEmpty)
        return rig
    }

    /// Transmission flags of a full export: has, flush, fua, trim, zeroes, cache, fast zero.
    private static let flags: UInt16 = 0b1100_0110_1101 & ~(1 << 9)

    private static func info(_ option: UInt32, size: UInt64, flags: UInt16 = flags) -> [UInt8] {
        Server.reply(option, 3, be16(0) + be64(size) + be16(flags))
    }

    private static func blockSize(_ option: UInt32) -> [UInt8] {
        Server.reply(option, 3, be16(3) + be32(1) + be32(4096) + be32(32 << 20))
    }

    @Test("QEMU's way: structured replies, meta context, GO with block size")
    func qemu() throws {
        var rig = try Self.rig()
        #expect(try rig.say(Client.option(8)) == Server.reply(8, 1))
        let context = text("vdb") + be32(1) + text("base:allocation")
        #expect(try rig.say(Client.option(10, context)) == Server.reply(10, 1))
        let flags = Self.flags | 1 << 7
        #expect(
            try rig.say(Client.go("vdb", [3])) == Self.info(7, size: 1 << 40, flags: flags) + Self.blockSize(7)
                + Server.reply(7, 1))
        #expect(rig.session.selectedExport == 1)
        #expect(rig.session.bytesNeeded == 28)
        #expect(rig.session.exports == Self.exports)
    }

    @Test("INFO answers as GO does, with the name when it is wanted, and leaves the choice open")
    func info() throws {
        var rig = try Self.rig()
        let request = text("") + be16(2) + be16(1) + be16(77)
        #expect(
            try rig.say(Client.option(6, request)) == Self.info(6, size: 65536)
                + Server.reply(6, 3, be16(1) + Array("vda".utf8)) + Self.blockSize(6) + Server.reply(6, 1))
        #expect(rig.session.selectedExport == nil)
        #expect(rig.session.bytesNeeded == 16)
    }

    @Test("EXPORT_NAME gives size and flags, and 124 zeroes unless they were declined")
    func exportName() throws {
        var rig = try Self.rig()
        let name = Array("vda".utf8)
        #expect(try rig.say(Client.option(1, name)) == be64(65536) + be16(Self.flags))
        var old = Rig(Self.exports)
        old.start()
        #expect(
            try old.say(be32(1) + Client.option(1, name)) == be64(65536) + be16(Self.flags)
                + Array(repeating: 0, count: 124))
        var first = try Self.rig()
        #expect(try first.say(Client.option(1)) == be64(65536) + be16(Self.flags))
        #expect(first.session.selectedExport == 0)
    }

    @Test("LIST names every export")
    func list() throws {
        var rig = try Self.rig()
        #expect(
            try rig.say(Client.option(3)) == Server.reply(3, 2, text("vda")) + Server.reply(3, 2, text("vdb"))
                + Server.reply(3, 1))
        #expect(try rig.say(Client.option(3, [1])).starts(with: Self.refusal(3, 3)))
    }

    @Test("ABORT is answered, and ends the session")
    func abort() throws {
        var rig = try Self.rig()
        #expect(try rig.say(Client.option(2)) == Server.reply(2, 1))
        #expect(rig.session.isFinished)
        #expect(rig.session.bytesNeeded == 0)
        var output: [UInt8] = []
        let late = [UInt8](repeating: 0, count: 4).withUnsafeBytes { raw in
            Result { () throws(NBDError) in try rig.session.consume(raw, output: &output, handler: &rig.disk) }
        }
        #expect(late == .failure(.finished))
    }

    /// The beginning of a refusal: everything but the words.
    private static func refusal(_ option: UInt32, _ code: UInt32) -> [UInt8] {
        Array(Server.reply(option, 0x8000_0000 + code).prefix(16))
    }

    @Test("options that are unknown, unwanted or malformed are refused, and the next one is heard")
    func refusals() throws {
        let cases: [(UInt32, [UInt8], UInt32)] = [
            (5, [], 2),  // STARTTLS: policy
            (4, [1, 2], 1), (11, [], 1), (99, [], 1), (.max, [], 1),  // unknown
            (8, [0], 3),  // STRUCTURED_REPLY with data
            (10, text("vda") + be32(0), 3),  // SET_META_CONTEXT before structured replies
            (7, [], 3), (7, text("vda"), 3), (7, text("vda") + be16(1), 3),  // GO too short
            (7, text("vda") + be16(0) + [0], 3), (7, be32(.max) + be16(0), 3),  // GO too long, GO lying
            (6, be32(2) + [0xFF, 0xFE] + be16(0), 3),  // no UTF-8
            (7, text("vdc") + be16(0), 6),  // unknown export
            (7, text(String(repeating: "n", count: 4097)) + be16(0), 9),
        ]
        var rig = try Self.rig()
        for (option, data, code) in cases {
            let output = try rig.say(Client.option(option, data))
            #expect(output.starts(with: Self.refusal(option, code)), "option \(option), \(data.count) bytes")
            #expect(rig.session.bytesNeeded == 16)
        }
        _ = try rig.say(Client.option(8))
        for (data, code) in [
            ([], 3), (text("vda"), 3), (text("vda") + be32(1), 3), (text("vda") + be32(.max) + text("q"), 3),
            (text("vda") + be32(0) + [1], 3), (text("vdc") + be32(0), 6),
        ] as [([UInt8], UInt32)] {
            #expect(try rig.say(Client.option(9, data)).starts(with: Self.refusal(9, code)))
        }
        _ = try rig.say(Client.go("vda"))
        #expect(rig.session.selectedExport == 0)
    }

    @Test("what cannot be answered ends the connection, and says why")
    func drops() throws {
        func fresh() -> Rig {
            var rig = Rig(Self.exports)
            rig.start()
            return rig
        }
        var rig = fresh()
        #expect(rig.fail(be32(4)) == .unknownClientFlags(4))
        #expect(rig.session.isFinished)
        rig = fresh()
        #expect(rig.fail(be32(2)) == .notFixedNewstyle)
        rig = try Self.rig()
        #expect(rig.fail(Array("IHAVEOPS".utf8) + be64(0)) == .badOptionMagic(0x4948_4156_454F_5053))
        rig = try Self.rig()
        #expect(
            rig.fail(Array("IHAVEOPT".utf8) + be32(7) + be32(65537)) == .optionTooLong(option: 7, length: 65537))
        rig = try Self.rig()
        #expect(rig.fail(Client.option(1, Array("vdx".utf8))) == .unknownExport("vdx"))
        rig = try Self.rig()
        #expect(rig.fail((0..<65).flatMap { _ in Client.option(99) }) == .tooManyOptions)
    }

    @Test("an option of the greatest length is read whole")
    func longOption() throws {
        var rig = try Self.rig()
        #expect(try rig.say(Client.option(99, Array(repeating: 1, count: 65536))).starts(with: Self.refusal(99, 1)))
    }

    @Test("an export's smallest block divides its size")
    func blockMin() {
        #expect(NBDExport(name: "a", size: 65536, blockMin: 4096).blockMin == 4096)
        #expect(NBDExport(name: "a", size: 65536 + 512, blockMin: 4096).blockMin == 512)
        #expect(NBDExport(name: "a", size: 65537, blockMin: 512).blockMin == 1)
        #expect(NBDExport(name: "a", size: 0, blockMin: 512).blockMin == 512)
    }
}
