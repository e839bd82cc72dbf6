import Glibc
import Units

/// A plain NBD client over a unix socket, one request at a time; as much of one as a mirror job is.
final class NBDTestClient {
    struct Failed: Error, CustomStringConvertible { let description: String }

    enum Command: UInt16 { case read = 0, write = 1, disconnect = 2, flush = 3, trim = 4, writeZeroes = 6 }

    let size: UInt64
    private let descriptor: CInt
    private var cookie: UInt64 = 0

    init(socket path: String, export: String) throws {
        let descriptor = Glibc.socket(AF_UNIX, CInt(SOCK_STREAM.rawValue), 0)
        guard descriptor >= 0 else { throw Failed(description: "socket: errno \(errno)") }
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: Array(path.utf8)) }
        let answer = withUnsafePointer(to: &address) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                connect(descriptor, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
            }
        }
        guard answer == 0 else {
            close(descriptor)
            throw Failed(description: "connect to \(path): errno \(errno)")
        }
        self.descriptor = descriptor
        _ = try Self.receive(18, from: descriptor)
        // Fixed newstyle without zeroes; then EXPORT_NAME.
        var hello = ByteWriter()
        hello.write(UInt32(3))
        hello.write(UInt64(0x4948_4156_454F_5054))
        hello.write(UInt32(1))
        hello.write(UInt32(export.utf8.count))
        hello.write(bytes: Array(export.utf8))
        try Self.send(hello.bytes, to: descriptor)
        let reply = try Self.receive(10, from: descriptor)
        size = reply[..<8].reduce(0) { $0 << 8 | UInt64($1) }
    }

    deinit { close(descriptor) }

    func write(_ offset: Int, _ bytes: [UInt8]) throws -> UInt32 {
        try request(.write, offset, bytes.count, bytes)
    }

    func zero(_ range: Range<Int>) throws -> UInt32 { try request(.writeZeroes, range.lowerBound, range.count) }
    func trim(_ range: Range<Int>) throws -> UInt32 { try request(.trim, range.lowerBound, range.count) }
    func flush() throws -> UInt32 { try request(.flush, 0, 0) }
    func read(_ range: Range<Int>) throws -> UInt32 { try request(.read, range.lowerBound, range.count) }

    /// Returns the errno of the reply; 0 when all went well.
    private func request(_ command: Command, _ offset: Int, _ length: Int, _ data: [UInt8] = []) throws -> UInt32 {
        cookie += 1
        var writer = ByteWriter()
        writer.write(UInt32(0x2560_9513))
        writer.write(UInt16(0))
        writer.write(command.rawValue)
        writer.write(cookie)
        writer.write(UInt64(offset))
        writer.write(UInt32(length))
        try Self.send(writer.bytes + data, to: descriptor)
        let reply = try Self.receive(16, from: descriptor)
        guard Array(reply[..<4]) == [0x67, 0x44, 0x66, 0x98] else { throw Failed(description: "reply \(reply)") }
        let error = reply[4..<8].reduce(0) { $0 << 8 | UInt32($1) }
        if command == .read, error == 0 { _ = try Self.receive(length, from: descriptor) }
        return error
    }

    private static func send(_ bytes: [UInt8], to descriptor: CInt) throws {
        var done = 0
        while done < bytes.count {
            let count = bytes.withUnsafeBytes {
                Glibc.send(
                    descriptor, $0.baseAddress.map { $0 + done }, bytes.count - done, CInt(MSG_NOSIGNAL))
            }
            guard count > 0 else { throw Failed(description: "send: errno \(errno)") }
            done += count
        }
    }

    private static func receive(_ count: Int, from descriptor: CInt) throws -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: count)
        var done = 0
        while done < count {
            let got = bytes.withUnsafeMutableBytes {
                recv(descriptor, $0.baseAddress.map { $0 + done }, count - done, 0)
            }
            guard got > 0 else { throw Failed(description: "the server closed the connection") }
            done += got
        }
        return bytes
    }
}
