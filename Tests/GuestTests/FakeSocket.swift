import Foundation
import Glibc
import Synchronization

/// One connected socket, blocking, with a time-out of its reads. Closed when it is let go.
final class FakeStream: Sendable {
    private let descriptor: Int32

    init(descriptor: Int32) {
        self.descriptor = descriptor
        setReadLimit(30)
    }

    deinit { Glibc.close(descriptor) }

    /// `unix:/PATH` or `127.0.0.1:PORT`.
    static func connect(to address: String) throws -> FakeStream {
        let descriptor = try FakeAddress(address).withSockaddr { family, pointer, length in
            let descriptor = socket(family, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
            guard descriptor >= 0, Glibc.connect(descriptor, pointer, length) == 0 else {
                let reason = String(cString: strerror(errno))
                if descriptor >= 0 { Glibc.close(descriptor) }
                throw FakeFailure("connect \(address): \(reason)")
            }
            return descriptor
        }
        return FakeStream(descriptor: descriptor)
    }

    func setReadLimit(_ seconds: Double) {
        var limit = timeval(tv_sec: Int(seconds), tv_usec: Int((seconds - Double(Int(seconds))) * 1e6))
        setsockopt(descriptor, SOL_SOCKET, SO_RCVTIMEO, &limit, socklen_t(MemoryLayout<timeval>.size))
    }

    /// What has come, up to `count` bytes; empty at the end of the stream or when nothing came in time.
    func read(_ count: Int = 65536) -> [UInt8] {
        let bytes = [UInt8](unsafeUninitializedCapacity: count) { buffer, length in
            length = max(0, recv(descriptor, buffer.baseAddress, count, 0))
        }
        return bytes
    }

    /// Whether the peer closes within the time; what it says before is thrown away.
    func closes(within seconds: Double) -> Bool {
        setReadLimit(0.05)
        return FakeTool.wait(seconds) {
            var byte: UInt8 = 0
            while true {
                let count = recv(descriptor, &byte, 1, 0)
                if count == 0 { return true }
                if count < 0 { return errno != EAGAIN && errno != EINTR }
            }
        }
    }

    @discardableResult
    func write(_ bytes: some Collection<UInt8>) -> Bool {
        let bytes = Array(bytes)
        var done = 0
        while done < bytes.count {
            let count = bytes.withUnsafeBytes { buffer in
                send(descriptor, buffer.baseAddress?.advanced(by: done), bytes.count - done, Int32(MSG_NOSIGNAL))
            }
            if count <= 0 { return false }
            done += count
        }
        return true
    }

    /// Ends both directions now; the descriptor itself is closed with the object.
    func shut() { shutdown(descriptor, Int32(SHUT_RDWR)) }
}

private struct FakeAddress {
    let text: String

    init(_ text: String) { self.text = text }

    func withSockaddr<Value>(_ body: (Int32, UnsafePointer<sockaddr>, socklen_t) throws -> Value) throws -> Value {
        if text.hasPrefix("unix:") {
            var address = sockaddr_un()
            address.sun_family = sa_family_t(AF_UNIX)
            let path = Array(text.dropFirst(5).utf8)
            guard path.count < MemoryLayout.size(ofValue: address.sun_path) else {
                throw FakeFailure("too long: \(text)")
            }
            withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: path) }
            return try Self.rebound(&address) { try body(AF_UNIX, $0, $1) }
        }
        let port = text.split(separator: ":").last.flatMap { UInt16($0) } ?? 0
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        address.sin_port = port.bigEndian
        address.sin_addr.s_addr = UInt32(0x7F00_0001).bigEndian
        return try Self.rebound(&address) { try body(AF_INET, $0, $1) }
    }

    private static func rebound<Address, Value>(
        _ address: inout Address, _ body: (UnsafePointer<sockaddr>, socklen_t) throws -> Value
    ) throws -> Value {
        try withUnsafePointer(to: &address) { pointer in
            try pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                try body($0, socklen_t(MemoryLayout<Address>.size))
            }
        }
    }
}

/// A server of one behaviour: each connection gets a thread that runs it.
final class FakeListener: Sendable {
    let address: String
    private let descriptor: Int32
    private let streams = Mutex<[FakeStream]>([])

    /// - Parameter address: `unix:/PATH`, or `127.0.0.1:0` for a free port.
    init(_ address: String, serve: @escaping @Sendable (FakeStream) -> Void) throws {
        descriptor = try FakeAddress(address).withSockaddr { family, pointer, length in
            let descriptor = socket(family, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
            guard descriptor >= 0, bind(descriptor, pointer, length) == 0, listen(descriptor, 16) == 0 else {
                throw FakeFailure("listen \(address): \(String(cString: strerror(errno)))")
            }
            return descriptor
        }
        self.address = address.hasPrefix("unix:") ? address : "127.0.0.1:\(Self.port(descriptor))"
        Thread.detachNewThread { [weak self, descriptor] in
            while true {
                let accepted = accept(descriptor, nil, nil)
                if accepted < 0 { if errno == EINTR { continue } else { return } }
                _ = fcntl(accepted, F_SETFD, FD_CLOEXEC)
                let stream = FakeStream(descriptor: accepted)
                self?.streams.withLock { $0.append(stream) }
                Thread.detachNewThread { serve(stream) }
            }
        }
    }

    deinit { stop() }

    /// Refuses new connections and ends those that there are.
    func stop() {
        shutdown(descriptor, Int32(SHUT_RDWR))
        for stream in streams.withLock({ $0 }) { stream.shut() }
        if address.hasPrefix("unix:") { unlink(String(address.dropFirst(5))) }
    }

    private static func port(_ descriptor: Int32) -> UInt16 {
        var address = sockaddr_in()
        var length = socklen_t(MemoryLayout<sockaddr_in>.size)
        _ = withUnsafeMutablePointer(to: &address) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { getsockname(descriptor, $0, &length) }
        }
        return UInt16(bigEndian: address.sin_port)
    }
}
