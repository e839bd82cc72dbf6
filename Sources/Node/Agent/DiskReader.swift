import CLinux
import Dispatch
import Glibc
import NBD
import Synchronization
import Units

/// Reads a disk of the guest through QEMU's own NBD server, while the guest writes to it: a blocking client on a thread of
/// its own.
///
/// `@unchecked Sendable`: buffer and handle are touched on `queue` only, or before anybody else has the object; the
/// descriptor is closed when nobody has it any more, and ``close()`` only shuts the socket down.
final class DiskReader: @unchecked Sendable {
    struct Failed: Error, CustomStringConvertible {
        let description: String
    }

    /// The most bytes of one read.
    static let readMax = 1 << 20
    /// Seconds after which a server that says nothing is given up.
    private static let patience = 5

    private let queue: DispatchQueue
    private let descriptor: CInt
    private let isClosed = Atomic<Bool>(false)
    private let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: readMax, alignment: Sizes.page)
    private var handle: UInt64 = 0

    /// Connects and chooses the export, which must have this size. Blocks.
    init(socket path: String, export: String, size: UInt64) throws {
        queue = DispatchQueue(label: "colo-blk.read.\(export)", qos: .utility)
        descriptor = clx_connect_unix(path)
        guard descriptor >= 0 else {
            throw Failed(description: "QEMU's NBD server cannot be reached (error \(-descriptor))")
        }
        _ = fcntl(descriptor, F_SETFL, 0)
        var patience = timeval(tv_sec: Self.patience, tv_usec: 0)
        for option in [SO_RCVTIMEO, SO_SNDTIMEO] {
            setsockopt(descriptor, SOL_SOCKET, option, &patience, socklen_t(MemoryLayout<timeval>.size))
        }
        try NBDClient.checkGreeting(try receive(NBDClient.greetingLength))
        try send(NBDClient.hello(export: export))
        var found: UInt64?
        while true {
            switch try NBDClient.optionReply(try receive(NBDClient.optionReplyLength)) {
            case .info(let count):
                found = NBDClient.size(inInfo: try receive(count)) ?? found
                continue
            case .refused(let code, let count):
                let words = String(decoding: try receive(count), as: UTF8.self)
                throw Failed(description: "QEMU does not export '\(export)' (\(code) \(words))")
            case .ready: break
            }
            break
        }
        guard found == size else {
            throw Failed(description: "QEMU exports \(found ?? 0) bytes of '\(export)', the disk has \(size)")
        }
    }

    deinit {
        if descriptor >= 0 { Glibc.close(descriptor) }
        buffer.deallocate()
    }

    /// Ends all reads, now and later.
    func close() {
        if !isClosed.exchange(true, ordering: .relaxed) { _ = shutdown(descriptor, CInt(SHUT_RDWR)) }
    }

    /// Reads at most ``readMax`` bytes and hands them to `done` on the reader's thread; they are lent for that call.
    func read(_ range: ByteRange, done: @escaping @Sendable (Result<UnsafeRawBufferPointer, any Error>) -> Void) {
        precondition(range.length <= UInt64(Self.readMax))
        queue.async { [self] in done(Result { try readNow(range) }) }
    }

    private func readNow(_ range: ByteRange) throws -> UnsafeRawBufferPointer {
        guard !isClosed.load(ordering: .relaxed) else { throw Failed(description: "the disk is not read any more") }
        handle += 1
        try send(NBDClient.readRequest(handle: handle, range: range))
        try NBDClient.checkReply(try receive(NBDClient.replyLength), handle: handle)
        let target = UnsafeMutableRawBufferPointer(rebasing: buffer[..<Int(range.length)])
        try fill(target)
        return UnsafeRawBufferPointer(target)
    }

    private func receive(_ count: Int) throws -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: count)
        try bytes.withUnsafeMutableBytes { try fill($0) }
        return bytes
    }

    private func fill(_ target: UnsafeMutableRawBufferPointer) throws {
        var done = 0
        while done < target.count, let base = target.baseAddress {
            let count = recv(descriptor, base + done, target.count - done, 0)
            if count < 0, errno == EINTR { continue }
            guard count > 0 else { throw Failed(description: "QEMU's NBD server has gone, or says nothing") }
            done += count
        }
    }

    private func send(_ bytes: [UInt8]) throws {
        try bytes.withUnsafeBytes { source in
            var done = 0
            while done < source.count, let base = source.baseAddress {
                let count = Glibc.send(descriptor, base + done, source.count - done, CInt(MSG_NOSIGNAL))
                if count < 0, errno == EINTR { continue }
                guard count > 0 else { throw Failed(description: "QEMU's NBD server has gone, or does not listen") }
                done += count
            }
        }
    }
}
