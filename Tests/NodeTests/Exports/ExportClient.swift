import Foundation
import Glibc

/// A client that says whatever a test wants, byte by byte, on a blocking unix socket.
///
/// One thread at a time uses it.
// Unchecked: tests hand it from one thread to the next and do not share it.
final class ExportClient: @unchecked Sendable {
    struct Failed: Error, CustomStringConvertible {
        let description: String
    }

    private let descriptor: Int32
    private var isOpen = true

    init(_ path: String, timeout seconds: Int = 10) throws {
        descriptor = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0)
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: Array(path.utf8)) }
        let answer = withUnsafePointer(to: &address) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                connect(descriptor, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
            }
        }
        guard answer == 0 else { throw Failed(description: "connect: errno \(errno)") }
        var limit = timeval(tv_sec: seconds, tv_usec: 0)
        setsockopt(descriptor, SOL_SOCKET, SO_RCVTIMEO, &limit, socklen_t(MemoryLayout<timeval>.size))
        setsockopt(descriptor, SOL_SOCKET, SO_SNDTIMEO, &limit, socklen_t(MemoryLayout<timeval>.size))
    }

    deinit { close() }

    func close() {
        if isOpen { Glibc.close(descriptor) }
        isOpen = false
    }

    /// Sends all; false when the server has closed or does not take it in time.
    @discardableResult
    func send(_ bytes: [UInt8]) -> Bool {
        var done = 0
        while done < bytes.count {
            let count = bytes[done...].withUnsafeBytes {
                Glibc.send(descriptor, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL))
            }
            if count <= 0 { return false }
            done += count
        }
        return true
    }

    /// Sends what the socket takes at once; returns how much that was.
    func sendSome(_ bytes: [UInt8]) -> Int {
        var done = 0
        while done < bytes.count {
            let count = bytes[done...].withUnsafeBytes {
                Glibc.send(descriptor, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL | MSG_DONTWAIT))
            }
            if count <= 0 { break }
            done += count
        }
        return done
    }

    /// Exactly so many bytes.
    func receive(_ count: Int) throws -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: count)
        var done = 0
        while done < count {
            let got = bytes[done...].withUnsafeMutableBytes { recv(descriptor, $0.baseAddress, $0.count, 0) }
            if got == 0 { throw Failed(description: "the server closed after \(done) of \(count) bytes") }
            if got < 0 { throw Failed(description: "nothing came after \(done) of \(count) bytes: errno \(errno)") }
            done += got
        }
        return bytes
    }

    /// Whether the server has closed; waits for it.
    func isClosedByServer() -> Bool {
        var bytes = [UInt8](repeating: 0, count: 65536)
        while true {
            let got = recv(descriptor, &bytes, bytes.count, 0)
            if got == 0 || got < 0 && errno == ECONNRESET { return true }
            if got < 0 { return false }
        }
    }

    // MARK: Protocol

    static func be<T: FixedWidthInteger>(_ value: T) -> [UInt8] { withUnsafeBytes(of: value.bigEndian) { Array($0) } }

    static func option(_ number: UInt32, _ data: [UInt8] = []) -> [UInt8] {
        Array("IHAVEOPT".utf8) + be(number) + be(UInt32(data.count)) + data
    }

    static func request(
        _ type: UInt16, flags: UInt16 = 0, cookie: UInt64 = 1, offset: UInt64 = 0, length: UInt32 = 0,
        data: [UInt8] = []
    ) -> [UInt8] {
        be(0x2560_9513 as UInt32) + be(flags) + be(type) + be(cookie) + be(offset) + be(length) + data
    }

    static func simple(_ error: UInt32, _ cookie: UInt64) -> [UInt8] {
        be(0x6744_6698 as UInt32) + be(error) + be(cookie)
    }

    static func chunk(_ type: UInt16, _ cookie: UInt64, isLast: Bool, _ data: [UInt8]) -> [UInt8] {
        be(0x668E_33EF as UInt32) + be(UInt16(isLast ? 1 : 0)) + be(type) + be(cookie) + be(UInt32(data.count)) + data
    }

    /// Everything that a client says up to transmission with the default export.
    static func handshake(structured: Bool) -> [UInt8] {
        let name = be(UInt32(0))
        let context = name + be(UInt32(1)) + be(UInt32(15)) + Array("base:allocation".utf8)
        return be(UInt32(3)) + (structured ? option(8) + option(10, context) : []) + option(7, name + be(UInt16(0)))
    }

    /// Greeting to transmission.
    func go(structured: Bool = false) throws {
        send(Self.handshake(structured: structured))
        _ = try receive(18)
        while true {
            let header = try receive(20)
            let length = header[16..<20].reduce(0) { $0 << 8 | Int($1) }
            _ = try receive(length)
            let option = header[11]
            if option == 7, header[12...15].elementsEqual([0, 0, 0, 1]) { return }
            guard header[12] == 0 else { throw Failed(description: "option \(option) was refused") }
        }
    }

    func write(_ data: [UInt8], at offset: UInt64, cookie: UInt64 = 7) throws {
        send(Self.request(1, cookie: cookie, offset: offset, length: UInt32(data.count), data: data))
        let answer = try receive(16)
        guard answer == Self.simple(0, cookie) else { throw Failed(description: "write refused: \(answer)") }
    }

    func read(_ count: Int, at offset: UInt64, cookie: UInt64 = 8) throws -> [UInt8] {
        send(Self.request(0, cookie: cookie, offset: offset, length: UInt32(count)))
        let answer = try receive(16)
        guard answer == Self.simple(0, cookie) else { throw Failed(description: "read refused: \(answer)") }
        return try receive(count)
    }
}

/// Pages of this process in memory, in bytes.
func residentBytes() throws -> Int {
    let text = try String(contentsOfFile: "/proc/self/statm", encoding: .utf8)
    let fields = text.split(separator: " ")
    guard fields.count > 1, let pages = Int(fields[1]) else { throw ExportClient.Failed(description: "statm: \(text)") }
    return pages * 4096
}
