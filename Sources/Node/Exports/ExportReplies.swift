import NBD
import NIOCore
import Synchronization
import Units

/// Where a device answers the requests of one connection. Every method may be called from any thread; on the
/// connection's own event loop the answer is written in place, elsewhere it is collected and handed to the loop once for
/// many. Answers to a client that has left go nowhere, without harm.
///
/// Each request ends with exactly one call of ``done(_:)``, ``fail(_:_:at:)``, ``read(_:fill:)``, ``read(_:bytes:)``,
/// ``zeroes(_:)`` or ``extents(_:_:)``; the parts of a read come before its ``done(_:)``. Answering twice traps.
public final class ExportReplies: Sendable {
    /// What other threads have answered and the loop has not taken yet.
    struct Outbox {
        var buffers: [ByteBuffer] = []
        /// The last buffer takes more.
        var isOpen = false
        var endedRequests = 0
        var endedBytes = 0
        /// The loop was told.
        var isScheduled = false
    }

    /// Replies of up to so many bytes share a buffer.
    private static let sharedMax = 64 << 10
    private static let sharedBuffer = 256 << 10

    private let loop: any EventLoop
    private let connection: NIOLoopBound<ExportConnection>
    private let outbox = Mutex(Outbox())

    /// Called on the connection's loop.
    init(_ connection: ExportConnection, loop: any EventLoop) {
        self.loop = loop
        self.connection = NIOLoopBound(connection, eventLoop: loop)
    }

    /// A write, zeroes, trim, flush or cache request went well; or the parts of a read have all been given.
    public func done(_ request: ExportRequest) {
        let cookie = request.wire.cookie
        if request.operation == .read {
            precondition(request.mayFragment, "this read is answered with its data")
            put(NBDReply.longest, ends: request) { NBDReply.end(cookie: cookie, into: $0) }
        } else {
            put(NBDReply.longest, ends: request) { NBDReply.simple(cookie: cookie, nil, into: $0) }
        }
    }

    /// A request failed, where known at a byte of the device inside of the request's range. Parts of a read that were
    /// given before stay true.
    public func fail(_ request: ExportRequest, _ error: NBDErrno, at offset: UInt64? = nil) {
        put(NBDReply.longest, ends: request) { NBDReply.failure(of: request.wire, error, at: offset, into: $0) }
    }

    /// Answers a read: `fill` writes the whole range's bytes to the memory that it is lent, on the caller's thread and
    /// before this returns. For up to 64 KiB, and on the loop, it only copies: the loop waits for it. When it returns an
    /// error, that is the answer.
    public func read(_ request: ExportRequest, fill: (UnsafeMutableRawBufferPointer) -> NBDErrno?) {
        let count = request.byteCount
        put(NBDReply.longest + count, ends: request) { memory in
            let header = NBDReply.readHeader(of: request.wire, into: memory)
            let error = fill(UnsafeMutableRawBufferPointer(rebasing: memory[header..<header + count]))
            guard let error else { return header + count }
            return NBDReply.failure(of: request.wire, error, into: memory)
        }
    }

    /// Answers a read with bytes, which are copied; as many as the request wants.
    public func read(_ request: ExportRequest, bytes: UnsafeRawBufferPointer) {
        precondition(bytes.count == request.byteCount, "a read is answered whole")
        read(request) { memory in
            memory.copyMemory(from: bytes)
            return nil
        }
    }

    /// Answers a read of which every byte is zero; costs the client no data where it understands holes.
    public func zeroes(_ request: ExportRequest) {
        guard request.wire.isStructured else {
            return read(request) { memory in
                memory.initializeMemory(as: UInt8.self, repeating: 0)
                return nil
            }
        }
        let wire = request.wire
        put(NBDReply.longest, ends: request) {
            NBDReply.hole(
                cookie: wire.cookie, offset: wire.offset, byteCount: wire.byteCount, isLast: true, into: $0)
        }
    }

    /// Gives some of a read's bytes, where ``ExportRequest/mayFragment``; parts do not overlap and cover the range before
    /// ``done(_:)``. An error of `fill` ends the request as ``fail(_:_:at:)`` does, and is returned: no more parts then.
    public func part(
        _ request: ExportRequest, offset: UInt64, byteCount: Int, fill: (UnsafeMutableRawBufferPointer) -> NBDErrno?
    ) -> NBDErrno? {
        checkPart(request, offset, byteCount)
        var failure: NBDErrno?
        put(NBDReply.longest + byteCount, ends: nil) { memory in
            let header = NBDReply.data(
                cookie: request.wire.cookie, offset: offset, byteCount: UInt32(byteCount), isLast: false, into: memory)
            failure = fill(UnsafeMutableRawBufferPointer(rebasing: memory[header..<header + byteCount]))
            return failure == nil ? header + byteCount : 0
        }
        if let failure { fail(request, failure, at: offset) }
        return failure
    }

    /// Says that some of a read's bytes are zeroes; see ``part(_:offset:byteCount:fill:)``.
    public func hole(_ request: ExportRequest, offset: UInt64, byteCount: Int) {
        checkPart(request, offset, byteCount)
        put(NBDReply.longest, ends: nil) {
            NBDReply.hole(
                cookie: request.wire.cookie, offset: offset, byteCount: UInt32(byteCount), isLast: false, into: $0)
        }
    }

    private func checkPart(_ request: ExportRequest, _ offset: UInt64, _ byteCount: Int) {
        precondition(request.mayFragment, "this read is answered whole")
        precondition(
            byteCount > 0 && offset >= request.offset && offset + UInt64(byteCount) <= request.range.end,
            "a part lies inside of its read")
    }

    /// Answers block status with the runs from the request's start on. They may end before the request does, or behind
    /// it; neighbours of one kind are joined and what the client may not be told is cut off. None at all is an error.
    public func extents(_ request: ExportRequest, _ extents: some Sequence<ExportExtent>) {
        var told: [NBDExtent] = []
        var left = UInt64(request.byteCount)
        let most = request.wantsOneExtent ? 1 : NBDLimits.extentsMax
        for extent in extents {
            let count = UInt32(min(extent.byteCount, left))
            if count == 0 { break }
            if let last = told.last, last.isHole == extent.isHole, last.isZero == extent.isZero {
                told[told.count - 1].byteCount += count
            } else if told.count == most {
                break
            } else {
                told.append(NBDExtent(byteCount: count, isHole: extent.isHole, isZero: extent.isZero))
            }
            left -= UInt64(count)
        }
        guard !told.isEmpty else { return fail(request, .io) }
        put(NBDReply.longest + told.count * NBDExtent.length, ends: request) { memory in
            var length = NBDReply.blockStatus(cookie: request.wire.cookie, count: told.count, into: memory)
            for extent in told {
                extent.put(into: UnsafeMutableRawBufferPointer(rebasing: memory[length...]))
                length += NBDExtent.length
            }
            return length
        }
    }

    /// Has `write` put at most `capacity` bytes into the output of the connection.
    @inline(__always)
    private func put(_ capacity: Int, ends request: ExportRequest?, _ write: (UnsafeMutableRawBufferPointer) -> Int) {
        if loop.inEventLoop {
            connection.value.put(capacity, write)
            if let request { connection.value.ended(request) }
            return
        }
        putFromElsewhere(capacity, ends: request, write)
    }

    private func putFromElsewhere(
        _ capacity: Int, ends request: ExportRequest?, _ write: (UnsafeMutableRawBufferPointer) -> Int
    ) {
        var large: ByteBuffer?
        if capacity > Self.sharedMax {
            // Filled without the lock: the loop never waits for a long copy.
            var buffer = ByteBufferAllocator().buffer(capacity: capacity)
            buffer.writeWithUnsafeMutableBytes(minimumWritableBytes: capacity, write)
            large = buffer
        }
        let tellsLoop = outbox.withLock { outbox in
            if let large {
                outbox.buffers.append(large)
                outbox.isOpen = false
            } else {
                if !outbox.isOpen {
                    outbox.buffers.append(ByteBufferAllocator().buffer(capacity: max(capacity, 4096)))
                    outbox.isOpen = true
                }
                let last = outbox.buffers.count - 1
                outbox.buffers[last].writeWithUnsafeMutableBytes(minimumWritableBytes: capacity, write)
                if outbox.buffers[last].readableBytes >= Self.sharedBuffer { outbox.isOpen = false }
            }
            if let request {
                outbox.endedRequests += 1
                outbox.endedBytes += request.wire.weight
            }
            defer { outbox.isScheduled = true }
            return !outbox.isScheduled
        }
        if tellsLoop { loop.execute { self.connection.value.collect() } }
    }

    /// Empties the outbox; called on the loop.
    func takeOutbox() -> Outbox {
        outbox.withLock { outbox in
            var taken = Outbox()
            swap(&taken, &outbox)
            return taken
        }
    }
}
