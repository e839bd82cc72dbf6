import NBD
import Testing
import Units

@Suite("NBD transmission")
struct TransmissionTests {
    @Test("each command reaches the handler with its flags, and is answered in order")
    func commands() throws {
        var rig = try Rig.transmitting()
        let data = [UInt8](repeating: 0xAB, count: 1024)
        let output = try rig.say(
            Client.request(1, flags: 1, cookie: 10, offset: 4096, length: 1024, data: data)
                + Client.request(0, cookie: 11, offset: 4608, length: 1024)
                + Client.request(3, cookie: 12)
                + Client.request(4, flags: 1, cookie: 13, offset: 0, length: 65536)
                + Client.request(6, flags: 1 | 2 | 16, cookie: 14, offset: 512, length: 512)
                + Client.request(6, cookie: 15, offset: 512, length: 512)
                + Client.request(5, cookie: 16, offset: 0, length: 1))
        #expect(
            rig.disk.log == [
                "write 0 4096+1024 fua", "read 0 4608+1024", "flush 0", "trim 0 0+65536 fua",
                "zero 0 512+512 nohole fast fua", "zero 0 512+512", "cache 0 0+1",
            ])
        let read = [UInt8](repeating: 0xAB, count: 512) + [UInt8](repeating: 10, count: 512)
        #expect(
            output == Server.simple(0, cookie: 10) + Server.simple(0, cookie: 11, data: read)
                + (12...16).flatMap { Server.simple(0, cookie: $0) })
    }

    @Test("with structured replies a read comes as one chunk, and errors of reads as an error chunk")
    func structured() throws {
        var rig = try Rig.transmitting(structured: true)
        #expect(
            try rig.say(Client.request(0, flags: 4, cookie: 5, offset: 512, length: 4))
                == Server.chunk(1, cookie: 5, data: be64(512) + [1, 1, 1, 1]))
        #expect(
            try rig.say(Client.request(0, cookie: 6, offset: 65535, length: 2))
                == Server.chunk(0x8001, cookie: 6, data: be32(22) + be16(0)))
        rig.disk.answer = .io
        #expect(
            try rig.say(Client.request(0, cookie: 7, offset: 0, length: 2))
                == Server.chunk(0x8001, cookie: 7, data: be32(5) + be16(0)))
        #expect(try rig.say(Client.request(3, cookie: 8)) == Server.simple(5, cookie: 8))
    }

    @Test("the handler's error is the reply's")
    func handlerErrors() throws {
        var rig = try Rig.transmitting()
        for error in NBDErrno.allCases {
            rig.disk.answer = error
            for (type, data) in [(0, []), (1, [UInt8](repeating: 1, count: 4)), (4, []), (6, []), (5, [])]
                as [(UInt16, [UInt8])]
            {
                #expect(
                    try rig.say(Client.request(type, cookie: 9, offset: 8, length: 4, data: data))
                        == Server.simple(error.rawValue, cookie: 9), "command \(type)")
            }
            #expect(try rig.say(Client.request(3)) == Server.simple(error.rawValue))
        }
    }

    @Test("what is not allowed is refused before the handler hears of it, and its data are skipped")
    func refusals() throws {
        let size: UInt64 = 65536
        func check(_ export: NBDExport, _ request: [UInt8], _ error: UInt32, _ what: String) throws {
            var rig = try Rig.transmitting(export)
            #expect(try rig.say(request) == Server.simple(error), "\(what)")
            #expect(rig.disk.log.isEmpty, "\(what)")
            // The session goes on in step.
            #expect(try rig.say(Client.request(0, cookie: 2, offset: 0, length: 512)).count == 16 + 512, "\(what)")
        }
        let full = NBDExport(name: "d", size: size, blockMin: 512)
        let data = [UInt8](repeating: 1, count: 512)
        func write(_ flags: UInt16 = 0, offset: UInt64 = 0, length: Int = 512) -> [UInt8] {
            Client.request(
                1, flags: flags, offset: offset, length: UInt32(length), data: Array(repeating: 1, count: length))
        }
        try check(full, write(offset: size), 28, "write behind the end")
        try check(full, write(offset: size - 512, length: 1024), 28, "write across the end")
        try check(full, write(offset: .max - 511), 28, "write that wraps around")
        try check(full, write(offset: 1), 22, "unaligned offset")
        try check(full, write(length: 511), 22, "unaligned length")
        try check(full, write(length: 0), 22, "empty write")
        for flag in [2, 4, 8, 16, 32, 64, 0x8000] as [UInt16] { try check(full, write(flag), 22, "flag \(flag)") }
        try check(full, Client.request(0, offset: size, length: 512), 22, "read behind the end")
        try check(full, Client.request(0, length: 33 << 20), 22, "read too long")
        try check(full, Client.request(0, flags: 4, length: 512), 22, "DF without structured replies")
        try check(full, Client.request(0, length: 0), 22, "empty read")
        try check(full, Client.request(4, offset: size - 512, length: 1024), 22, "trim across the end")
        try check(full, Client.request(6, offset: size - 512, length: 1024), 28, "zeroes across the end")
        try check(full, Client.request(6, flags: 4, length: 512), 22, "zeroes with DF")
        try check(full, Client.request(5, offset: 512, length: 65536), 22, "cache across the end")
        try check(full, Client.request(3, offset: 512), 22, "flush with an offset")
        try check(full, Client.request(3, length: 512), 22, "flush with a length")
        try check(full, Client.request(7, length: 512), 22, "block status")
        try check(full, Client.request(8, length: 512), 22, "resize")
        try check(full, Client.request(999, length: 512), 22, "unknown command")
        let readOnly = NBDExport(name: "d", size: size, flags: [.full, .readOnly])
        try check(readOnly, Client.request(1, length: 512, data: data), 1, "write to a read-only export")
        try check(readOnly, Client.request(4, length: 512), 1, "trim of a read-only export")
        try check(readOnly, Client.request(6, length: 512), 1, "zeroes on a read-only export")
        let plain = NBDExport(name: "d", size: size, flags: [])
        try check(plain, write(1), 22, "FUA not offered")
        try check(plain, Client.request(3), 22, "flush not offered")
        try check(plain, Client.request(4, length: 512), 22, "trim not offered")
        try check(plain, Client.request(5, length: 512), 22, "cache not offered")
        try check(plain, Client.request(6, length: 512), 22, "zeroes not offered")
        let slow = NBDExport(name: "d", size: size, flags: [.writeZeroes])
        try check(slow, Client.request(6, flags: 16, length: 512), 22, "fast zero not offered")
        let small = NBDExport(name: "d", size: size, blockMax: 4096)
        try check(small, write(length: 8192), 22, "write longer than the export takes")
        try check(small, Client.request(0, length: 8192), 22, "read longer than the export gives")
    }

    @Test("zeroes and trims may be as long as the export, whatever the longest write is")
    func longZeroes() throws {
        var rig = try Rig.transmitting(NBDExport(name: "d", size: 3 << 30, blockMax: 65536))
        #expect(try rig.say(Client.request(6, length: 3 << 30)) == Server.simple(0))
        #expect(try rig.say(Client.request(4, length: 3 << 30)) == Server.simple(0))
    }

    @Test("DISC ends the session without a reply, also with bytes behind it")
    func disconnect() throws {
        var rig = try Rig.transmitting()
        #expect(try rig.say(Client.request(3) + Client.request(2) + Client.request(3)) == Server.simple(0))
        #expect(rig.session.isFinished)
        #expect(rig.disk.log == ["flush 0"])
    }

    @Test("a wrong magic and a write that no buffer holds end the connection")
    func drops() throws {
        var rig = try Rig.transmitting()
        #expect(rig.fail(Array(repeating: 7, count: 28)) == .badRequestMagic(0x0707_0707))
        rig = try Rig.transmitting()
        #expect(rig.fail(Client.request(1, length: (32 << 20) + 1)) == .writeTooLong((32 << 20) + 1))
        #expect(rig.session.isFinished)
    }

    @Test("a write is given to the handler where it lies in the caller's buffer, once it is whole")
    func inPlace() throws {
        struct Probe: NBDRequestHandler {
            var seen: UnsafeRawPointer?
            mutating func write(export: Int, offset: UInt64, bytes: UnsafeRawBufferPointer, fua: Bool) -> NBDErrno? {
                seen = bytes.baseAddress
                return nil
            }
            mutating func read(export: Int, offset: UInt64, into memory: UnsafeMutableRawBufferPointer) -> NBDErrno? {
                .io
            }
            mutating func zero(export: Int, range: ByteRange, mayPunchHole: Bool, fast: Bool, fua: Bool) -> NBDErrno? {
                .io
            }
            mutating func trim(export: Int, range: ByteRange, fua: Bool) -> NBDErrno? { .io }
            mutating func flush(export: Int) -> NBDErrno? { .io }
        }
        var rig = try Rig.transmitting()
        let bytes = Client.request(1, length: 4096, data: Array(repeating: 3, count: 4096))
        #expect(try rig.say(Array(bytes[..<28])).isEmpty)
        #expect(rig.session.bytesNeeded == 4096)
        var probe = Probe()
        var output: [UInt8] = []
        let payload = Array(bytes[28...])
        let places = try payload.withUnsafeBytes { raw in
            let short = try rig.session.consume(
                UnsafeRawBufferPointer(rebasing: raw[..<4095]), output: &output, handler: &probe)
            #expect(short == 0)
            #expect(probe.seen == nil)
            #expect(try rig.session.consume(raw, output: &output, handler: &probe) == 4096)
            return (probe.seen, raw.baseAddress)
        }
        #expect(places.0 == places.1)
        #expect(output == Server.simple(0))
    }

    @Test("replies that nobody takes away stop the reading of requests")
    func outputIsBounded() throws {
        var rig = try Rig.transmitting()
        let bytes = (0..<100).flatMap { Client.request(0, cookie: $0, length: 65536) }
        var output: [UInt8] = []
        let used = try bytes.withUnsafeBytes {
            try rig.session.consume($0, output: &output, handler: &rig.disk)
        }
        #expect(used == 4 * 28)
        #expect(output.count < NBDLimits.outputHigh + 65536 + 16)
        #expect(try rig.say(bytes).count == 100 * (65536 + 16))
    }
}
