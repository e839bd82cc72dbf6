import NBD
import Testing
import Units

@Suite("NBD metadata contexts and STARTTLS")
struct ContextAndTLSTests {
    private static let exports = [
        NBDExport(name: "told", size: 65536, description: "tells holes", tellsAllocation: true),
        NBDExport(name: "mute", size: 65536),
    ]

    private static func rig(structured: Bool = true, tls: NBDTLSMode = .off) throws -> Rig {
        var rig = Rig(exports)
        rig.session = NBDServerSession(exports: exports, tls: tls)
        rig.start()
        _ = try rig.say(Client.flags + (structured ? Client.option(8) : []))
        return rig
    }

    private static func queries(_ export: String, _ names: String...) -> [UInt8] {
        text(export) + be32(UInt32(names.count)) + names.flatMap(text)
    }

    private static func context(_ option: UInt32, id: UInt32) -> [UInt8] {
        Server.reply(option, 4, be32(id) + Array("base:allocation".utf8))
    }

    @Test("LIST names base:allocation where it is asked for, SET gives it a number")
    func contexts() throws {
        var rig = try Self.rig()
        let listed = Self.context(9, id: 0) + Server.reply(9, 1)
        for question in [
            Self.queries("told"), Self.queries("told", "base:"), Self.queries("", "qemu:x", "base:allocation"),
        ] {
            #expect(try rig.say(Client.option(9, question)) == listed)
        }
        #expect(try rig.say(Client.option(9, Self.queries("told", "base:alloc"))) == Server.reply(9, 1))
        #expect(try rig.say(Client.option(9, Self.queries("mute"))) == Server.reply(9, 1))
        #expect(try rig.say(Client.option(10, Self.queries("told"))) == Server.reply(10, 1))
        #expect(try rig.say(Client.option(10, Self.queries("told", "base:"))) == Server.reply(10, 1))
        #expect(
            try rig.say(Client.option(10, Self.queries("told", "base:allocation", "base:allocation")))
                == Self.context(10, id: 1) + Server.reply(10, 1))
    }

    /// The answer to block status after options of a client.
    private static func status(_ options: [UInt8], export: String) throws -> [UInt8] {
        var rig = try rig()
        _ = try rig.say(options + Client.go(export))
        rig.disk.extents = [
            NBDExtent(byteCount: 512, isHole: true, isZero: true),
            NBDExtent(byteCount: 100, isHole: false, isZero: false),
        ]
        return try rig.say(Client.request(7, cookie: 3, length: 65536))
    }

    @Test("block status is answered for the export that the context was chosen for, and for no other")
    func blockStatus() throws {
        let chosen = Client.option(10, Self.queries("told", "base:allocation"))
        let told = Server.chunk(5, cookie: 3, data: be32(1) + be32(512) + be32(3) + be32(100) + be32(0))
        let refused = Server.chunk(0x8001, cookie: 3, data: be32(22) + be16(0))
        #expect(try Self.status(chosen, export: "told") == told)
        #expect(try Self.status(chosen, export: "mute") == refused)
        #expect(try Self.status([], export: "told") == refused)
        // A later choice replaces the first, also when it is refused or chooses nothing.
        #expect(try Self.status(chosen + Client.option(10, Self.queries("told")), export: "told") == refused)
        #expect(try Self.status(chosen + Client.option(10, [1]), export: "told") == refused)
        #expect(try Self.status(chosen + Client.option(10, Self.queries("none")), export: "told") == refused)
        #expect(try Self.status(chosen + Client.option(9, Self.queries("told")), export: "told") == told)
    }

    @Test("REQ_ONE gives one extent, and block status outside of the export none")
    func oneExtent() throws {
        var rig = try Self.rig()
        _ = try rig.say(Client.option(10, Self.queries("told", "base:allocation")) + Client.go("told"))
        rig.disk.extents = [
            NBDExtent(byteCount: 512, isHole: false, isZero: false),
            NBDExtent(byteCount: 9, isHole: true, isZero: true),
        ]
        #expect(
            try rig.say(Client.request(7, flags: 8, length: 1024))
                == Server.chunk(5, data: be32(1) + be32(512) + be32(0)))
        for (offset, length) in [(65536, 1), (0, 65537), (0, 0), (UInt64.max, 2)] as [(UInt64, UInt32)] {
            #expect(
                try rig.say(Client.request(7, offset: offset, length: length))
                    == Server.chunk(0x8001, data: be32(22) + be16(0)))
        }
        rig.disk.extents = []
        #expect(try rig.say(Client.request(7, length: 9)) == Server.chunk(0x8001, data: be32(5) + be16(0)))
    }

    @Test("descriptions are told to those who ask")
    func descriptions() throws {
        var rig = try Self.rig()
        let list = try rig.say(Client.option(3))
        #expect(list.starts(with: Server.reply(3, 2, text("told") + Array("tells holes".utf8))))
        let info = try rig.say(Client.option(6, text("told") + be16(1) + be16(2)))
        let wanted = Server.reply(6, 3, be16(2) + Array("tells holes".utf8))
        #expect((0..<info.count - wanted.count).contains { info[$0...].starts(with: wanted) })
        #expect(try rig.say(Client.option(6, text("mute") + be16(1) + be16(2))).count == 32 + 34 + 20)
    }

    private static func refusal(_ option: UInt32, _ code: UInt32) -> [UInt8] {
        Array(Server.reply(option, 0x8000_0000 + code).prefix(16))
    }

    @Test("where TLS is required, everything but STARTTLS and ABORT is refused before it")
    func tlsRequired() throws {
        var rig = try Self.rig(structured: false, tls: .required)
        for option in [3, 6, 7, 8, 9, 10, 99] as [UInt32] {
            #expect(try rig.say(Client.option(option, text("told"))).starts(with: Self.refusal(option, 5)))
        }
        #expect(try rig.say(Client.option(5, [1])).starts(with: Self.refusal(5, 3)))
        #expect(try rig.say(Client.option(5)) == Server.reply(5, 1))
        #expect(rig.session.awaitsTLS)
        rig.session.tlsStarted()
        #expect(try rig.say(Client.option(5)).starts(with: Self.refusal(5, 3)))
        _ = try rig.say(Client.go("told"))
        #expect(rig.session.selectedExport == 0)
        var old = try Self.rig(structured: false, tls: .required)
        #expect(old.fail(Client.option(1, Array("told".utf8))) == .tlsRequired)
        var shy = try Self.rig(structured: false, tls: .required)
        #expect(try shy.say(Client.option(2)) == Server.reply(2, 1))
    }

    @Test("what was agreed in the clear is forgotten when TLS starts")
    func tlsResets() throws {
        var rig = try Self.rig(tls: .allow)
        _ = try rig.say(Client.option(10, Self.queries("told", "base:allocation")))
        _ = try rig.say(Client.option(5))
        rig.session.tlsStarted()
        _ = try rig.say(Client.go("told"))
        #expect(try rig.say(Client.request(7, length: 9)) == Server.simple(22))
        #expect(try rig.say(Client.request(0, length: 1)) == Server.simple(0, data: [0]))
    }

    @Test("requests are handed out with their data's place, and no more than were asked for")
    func intake() throws {
        var rig = try Self.rig(structured: false)
        _ = try rig.say(Client.go("told"))
        let bytes =
            Client.request(1, cookie: 1, offset: 5, length: 3, data: [1, 2, 3])
            + Client.request(1, cookie: 2, offset: 65536, length: 2, data: [9, 9])
            + Client.request(0, cookie: 3, length: 100) + Client.request(0, cookie: 4, length: 100)
        var output: [UInt8] = []
        var requests: [NBDRequest] = []
        func take(_ limit: NBDServerSession.Intake, from place: Int) throws -> Int {
            try bytes.withUnsafeBytes {
                try rig.session.consume(
                    UnsafeRawBufferPointer(rebasing: $0[place...]), output: &output, requests: &requests, limit: limit)
            }
        }
        var used = try take(.init(requests: 2, bytes: 1000), from: 0)
        #expect(requests.map(\.cookie) == [1, 2])
        #expect(requests.map(\.refusal) == [nil, .noSpace])
        #expect(Array(bytes[requests[0].payloadOffset...].prefix(3)) == [1, 2, 3])
        #expect(requests.map(\.weight) == [3, 0])
        used += try take(.init(requests: 9, bytes: 50), from: used)
        #expect(requests.map(\.cookie) == [1, 2, 3])
        #expect(try take(.init(requests: 9, bytes: 0), from: used) == 0)
        used += try take(.init(requests: 1, bytes: 1), from: used)
        #expect(requests.map(\.cookie) == [1, 2, 3, 4])
        #expect(used == bytes.count)
        #expect(output.isEmpty)
    }
}
