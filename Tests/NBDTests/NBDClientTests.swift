import NBD
import Testing
import Units

/// The client against our own server, byte by byte.
@Suite("The NBD client")
struct NBDClientTests {
    private struct Pattern: NBDRequestHandler {
        func read(export: Int, offset: UInt64, into memory: UnsafeMutableRawBufferPointer) -> NBDErrno? {
            guard offset != 8192 else { return .io }
            for index in memory.indices { memory[index] = UInt8(truncatingIfNeeded: Int(offset) + index) }
            return nil
        }
        func write(export: Int, offset: UInt64, bytes: UnsafeRawBufferPointer, fua: Bool) -> NBDErrno? { .io }
        func zero(export: Int, range: ByteRange, mayPunchHole: Bool, fast: Bool, fua: Bool) -> NBDErrno? { .io }
        func trim(export: Int, range: ByteRange, fua: Bool) -> NBDErrno? { .io }
        func flush(export: Int) -> NBDErrno? { nil }
    }

    private struct Endless: Error {}

    private struct Server {
        var session = NBDServerSession(exports: [
            NBDExport(name: "d0", size: 1 << 20, flags: [.readOnly], blockMin: 1)
        ])
        var output: [UInt8] = []
        var handler = Pattern()

        mutating func give(_ bytes: [UInt8]) throws {
            var rest = bytes
            while !rest.isEmpty {
                let used = try rest.withUnsafeBytes { try session.consume($0, output: &output, handler: &handler) }
                guard used > 0 else { return }
                rest.removeFirst(used)
            }
        }

        mutating func take(_ count: Int) -> [UInt8] {
            defer { output.removeFirst(min(count, output.count)) }
            return Array(output.prefix(count))
        }
    }

    private func connected(_ export: String) throws -> (server: Server, size: UInt64?, refusal: UInt32?) {
        var server = Server()
        server.session.start(output: &server.output)
        try NBDClient.checkGreeting(server.take(NBDClient.greetingLength))
        try server.give(NBDClient.hello(export: export))
        var size: UInt64?
        for _ in 0..<8 {
            switch try NBDClient.optionReply(server.take(NBDClient.optionReplyLength)) {
            case .info(let count): size = NBDClient.size(inInfo: server.take(count)) ?? size
            case .ready: return (server, size, nil)
            case .refused(let code, let count):
                _ = server.take(count)
                return (server, size, code)
            }
        }
        throw Endless()
    }

    @Test("chooses an export, learns its size and reads")
    func reads() throws {
        var (server, size, refusal) = try connected("d0")
        #expect(size == 1 << 20 && refusal == nil)
        for (handle, range) in [(1, ByteRange(offset: 5, length: 7)), (2, ByteRange(offset: 4096, length: 65536))] {
            try server.give(NBDClient.readRequest(handle: UInt64(handle), range: range))
            try NBDClient.checkReply(server.take(NBDClient.replyLength), handle: UInt64(handle))
            let bytes = server.take(Int(range.length))
            #expect(bytes.first == UInt8(truncatingIfNeeded: range.offset) && bytes.count == Int(range.length))
            #expect(server.output.isEmpty)
        }
        try server.give(NBDClient.readRequest(handle: 3, range: ByteRange(offset: 8192, length: 512)))
        let failed = server.take(NBDClient.replyLength)
        #expect(throws: NBDClient.Fault.self) { try NBDClient.checkReply(failed, handle: 3) }
    }

    @Test("an export that there is not is refused")
    func unknown() throws {
        #expect(try connected("d1").refusal != nil)
    }

    @Test("what is no server's answer is a fault, whatever its length")
    func hostile() {
        for count in 0...20 {
            for byte in [UInt8(0), 0x4E, 0xFF] {
                let bytes = [UInt8](repeating: byte, count: count)
                #expect(throws: NBDClient.Fault.self) { try NBDClient.checkGreeting(bytes) }
                #expect(throws: NBDClient.Fault.self) { try NBDClient.optionReply(bytes) }
                #expect(throws: NBDClient.Fault.self) { try NBDClient.checkReply(bytes, handle: 1) }
                #expect(NBDClient.size(inInfo: bytes) == nil || count >= 10)
            }
        }
    }
}
