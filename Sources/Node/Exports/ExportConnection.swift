import Logging
import NBD
import NIOCore
import NIOSSL
import Units

/// One client of an ``ExportServer``: a session between a socket and a device. Confined to its event loop.
///
/// What it holds is bounded. Requests are taken in while fewer than the limits are in flight and the client takes its
/// replies; otherwise the socket is not read, and the client feels it. A long write's data are gathered in a buffer that
/// grows as they come.
final class ExportConnection: ChannelDuplexHandler {
    typealias InboundIn = ByteBuffer
    typealias OutboundIn = ByteBuffer
    typealias OutboundOut = ByteBuffer

    /// Replies collected before they go to the socket, in bytes.
    private static let outputHigh = 256 << 10
    /// Data asked for in one batch, in bytes; one request more may be longer.
    private static let batchBytes = 1 << 20
    /// A long write's buffer starts with so many bytes, or fewer.
    private static let gatherFirst = 1 << 20

    private let house: ExportHouse
    private let peer: String
    private var session: NBDServerSession
    private var device: (any ExportDevice)?
    private var context: ChannelHandlerContext?
    private var replies: ExportReplies?
    /// Bytes that came and make no whole yet, or may not be taken in yet.
    private var input = ByteBuffer()
    private var answers: [UInt8] = []
    private var wire: [NBDRequest] = []
    private var batch: [ExportRequest] = []
    private var output = ByteBuffer()
    private var requestsInFlight = 0
    private var bytesInFlight = 0
    /// Set while requests are handed out: the output is sent when that ends.
    private var isBusy = false
    /// The socket wants to be read and was not, because the limits are reached.
    private var readWaits = false
    private var isHeldUp = false
    private var isClosing = false
    private var handshakeLimit: Scheduled<Void>?

    init(house: ExportHouse, peer: String) {
        self.house = house
        self.peer = peer
        session = NBDServerSession(exports: house.offers, tls: house.configuration.tls?.mode ?? .off)
    }

    // MARK: Life

    func handlerAdded(context: ChannelHandlerContext) {
        self.context = context
        replies = ExportReplies(self, loop: context.eventLoop)
        output = context.channel.allocator.buffer(capacity: 4096)
    }

    func channelActive(context: ChannelHandlerContext) {
        let patience = house.configuration.handshakeTimeout
        handshakeLimit = context.eventLoop.assumeIsolated().scheduleTask(in: patience) { [self] in
            guard session.isNegotiating else { return }
            drop("it has not chosen an export within \(patience.nanoseconds / 1_000_000_000) s")
        }
        session.start(output: &answers)
        sendAnswers(context)
        context.fireChannelActive()
    }

    func channelInactive(context: ChannelHandlerContext) {
        leave()
        context.fireChannelInactive()
    }

    func handlerRemoved(context: ChannelHandlerContext) { leave() }

    /// The socket is gone. The object lives on until the device has answered everything.
    private func leave() {
        guard context != nil else { return }
        handshakeLimit?.cancel()
        context = nil
        isClosing = true
        input = ByteBuffer()
        output = ByteBuffer()
        retireIfIdle()
    }

    private func retireIfIdle() {
        guard context == nil, requestsInFlight == 0, replies != nil else { return }
        replies = nil
        device = nil
        house.retired(self)
    }

    func errorCaught(context: ChannelHandlerContext, error: any Error) {
        drop("\(error)")
    }

    /// Ends a connection that went wrong; nothing more is taken in.
    private func drop(_ reason: String) {
        guard !isClosing else { return }
        isClosing = true
        house.log.warning("nbd client dropped: \(reason)", metadata: ["peer": "\(peer)"])
        context?.close(promise: nil)
    }

    // MARK: Reading

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        guard !isClosing else { return }
        var bytes = unwrapInboundIn(data)
        if input.readableBytes == 0 {
            input = bytes
        } else {
            input.writeBuffer(&bytes)
        }
        process(context)
    }

    func read(context: ChannelHandlerContext) {
        if isHeldUp { readWaits = true } else { context.read() }
    }

    func channelWritabilityChanged(context: ChannelHandlerContext) {
        resume()
        context.fireChannelWritabilityChanged()
    }

    /// Goes on where the limits had stopped it.
    private func resume() {
        guard let context, isHeldUp, !isBusy else { return }
        process(context)
        if !isHeldUp, readWaits {
            readWaits = false
            context.read()
        }
    }

    /// Takes in what is there, as far as the limits allow.
    private func process(_ context: ChannelHandlerContext) {
        isBusy = true
        do throws(NBDError) {
            try takeIn(context)
        } catch {
            sendAnswers(context)
            drop("\(error)")
        }
        isBusy = false
        sendOutput()
        if !isClosing { gather() }
        finishIfDone()
    }

    private func takeIn(_ context: ChannelHandlerContext) throws(NBDError) {
        let limits = house.configuration
        isHeldUp = false
        while !isClosing, input.readableBytes > 0, input.readableBytes >= session.bytesNeeded {
            if output.readableBytes >= Self.outputHigh { sendOutput() }
            let room = NBDServerSession.Intake(
                requests: limits.requestsInFlight - requestsInFlight,
                bytes: min(limits.bytesInFlight - bytesInFlight, Self.batchBytes))
            guard room.requests > 0, room.bytes > 0, context.channel.isWritable else {
                isHeldUp = true
                return
            }
            let start = input.readerIndex
            let outcome = input.withUnsafeReadableBytes { bytes in
                Result { () throws(NBDError) in
                    try session.consume(bytes, output: &answers, requests: &wire, limit: room)
                }
            }
            if !wire.isEmpty { handOut(from: start) }
            let used = try outcome.get()
            input.moveReaderIndex(forwardBy: used)
            if !answers.isEmpty { sendAnswers(context) }
            if session.awaitsTLS { try startTLS(context) }
            if used == 0 || session.isFinished { return }
        }
    }

    /// Passes the requests of one call to the device. Writes' data are slices of the input from `start` on.
    private func handOut(from start: Int) {
        guard let replies, let device = chosenDevice() else { return }
        var figures = ExportFigures()
        for request in wire {
            if let refusal = request.refusal {
                put(NBDReply.longest) { NBDReply.failure(of: request, refusal, into: $0) }
                figures.refused += 1
                continue
            }
            var payload: ByteBuffer?
            if request.command == .write {
                payload = input.getSlice(at: start + request.payloadOffset, length: Int(request.byteCount))
                figures.bytesWritten += UInt64(request.byteCount)
            } else if request.command == .read {
                figures.bytesRead += UInt64(request.byteCount)
            }
            guard let item = ExportRequest(request, payload: payload) else { continue }
            batch.append(item)
            bytesInFlight += request.weight
        }
        wire.removeAll(keepingCapacity: true)
        figures.requests = UInt64(batch.count)
        house.add(figures)
        guard !batch.isEmpty else { return }
        requestsInFlight += batch.count
        // Handed over and taken back: a device that has answered at once leaves the storage to the next batch.
        var handed: [ExportRequest] = []
        swap(&handed, &batch)
        device.perform(ExportBatch(requests: handed, replies: replies))
        handed.removeAll(keepingCapacity: true)
        swap(&handed, &batch)
    }

    private func chosenDevice() -> (any ExportDevice)? {
        if device == nil, let index = session.selectedExport {
            device = house.exports[index].device
            handshakeLimit?.cancel()
            let name = house.offers[index].name
            house.log.info("nbd client connected", metadata: ["peer": "\(peer)", "export": "\(name)"])
        }
        return device
    }

    /// Makes room for a long write's data, so that they are copied few times and memory grows as they come.
    private func gather() {
        let needed = session.bytesNeeded
        guard input.readableBytes > 0 || needed > NBDRequest28.small else {
            input = ByteBuffer()
            return
        }
        guard needed > input.readableBytes, !isHeldUp else { return }
        let missing = needed - input.readableBytes
        guard input.writableBytes < missing else { return }
        let size = min(needed, max(Self.gatherFirst, input.readableBytes * 2))
        guard size > input.capacity - input.readerIndex else { return }
        var larger = ByteBufferAllocator().buffer(capacity: size)
        larger.writeBuffer(&input)
        input = larger
    }

    /// Requests are small beside this.
    private enum NBDRequest28 {
        static let small = 4096
    }

    // MARK: TLS

    private func startTLS(_ context: ChannelHandlerContext) throws(NBDError) {
        guard input.readableBytes == 0 else { throw .clearBytesBeforeTLS }
        guard let tls = house.configuration.tls else { preconditionFailure("TLS was agreed without a configuration") }
        do {
            let handler = NIOSSLServerHandler(context: tls.context)
            try context.pipeline.syncOperations.addHandler(handler, position: .before(self))
            session.tlsStarted()
        } catch {
            drop("TLS could not be set up: \(error)")
        }
    }

    // MARK: Replies

    /// Appends at most `capacity` bytes to what goes to the client.
    @inline(__always)
    func put(_ capacity: Int, _ write: (UnsafeMutableRawBufferPointer) -> Int) {
        guard context != nil else { return }
        output.writeWithUnsafeMutableBytes(minimumWritableBytes: capacity, write)
        if output.readableBytes >= 4 * Self.outputHigh { sendOutput() }
    }

    /// A request was answered, on the loop.
    @inline(__always)
    func ended(_ request: ExportRequest) {
        requestsInFlight -= 1
        bytesInFlight -= request.wire.weight
        precondition(requestsInFlight >= 0 && bytesInFlight >= 0, "a device has answered a request twice")
        if !isBusy { answeredLater() }
    }

    /// Takes what other threads have answered.
    func collect() {
        guard let replies else { return }
        let outbox = replies.takeOutbox()
        requestsInFlight -= outbox.endedRequests
        bytesInFlight -= outbox.endedBytes
        precondition(requestsInFlight >= 0 && bytesInFlight >= 0, "a device has answered a request twice")
        if let context {
            for buffer in outbox.buffers where buffer.readableBytes > 0 {
                context.write(wrapOutboundOut(buffer), promise: nil)
            }
            context.flush()
        }
        answeredLater()
    }

    private func answeredLater() {
        sendOutput()
        resume()
        finishIfDone()
        retireIfIdle()
    }

    private func sendOutput() {
        guard let context, output.readableBytes > 0 else { return }
        context.writeAndFlush(wrapOutboundOut(output), promise: nil)
        // Reuses the memory when the socket has taken everything already; what one long read needed is not kept.
        if output.capacity > 4 * Self.outputHigh { output = ByteBuffer() }
        output.clear(minimumCapacity: max(4096, min(output.capacity, Self.outputHigh)))
    }

    /// Answers to options.
    private func sendAnswers(_ context: ChannelHandlerContext) {
        guard !answers.isEmpty else { return }
        var buffer = context.channel.allocator.buffer(capacity: answers.count)
        buffer.writeBytes(answers)
        answers.removeAll(keepingCapacity: true)
        context.writeAndFlush(wrapOutboundOut(buffer), promise: nil)
    }

    /// After the client's goodbye, the connection ends with the last reply.
    private func finishIfDone() {
        guard session.isFinished, requestsInFlight == 0, !isClosing, let context else { return }
        isClosing = true
        // Closing at once would throw away what the socket has not taken yet.
        context.writeAndFlush(wrapOutboundOut(ByteBuffer())).assumeIsolated().whenComplete { _ in
            context.close(promise: nil)
        }
    }
}
