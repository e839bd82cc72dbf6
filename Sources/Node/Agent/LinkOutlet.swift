import Checkpointer
import NIOCore
import Units

/// The way out of the agent: frames leave in their order, no faster than the bound and the link allow, and what keeps
/// the session alive does not wait behind them. Lives on the link's event loop and is touched only there.
///
/// What waits here is bounded by whoever sends (`--budget`). The channel takes little in advance, so that a beat or a
/// farewell is never behind more than that.
final class LinkOutlet: ChannelInboundHandler {
    typealias InboundIn = LinkFrame

    /// Bytes that the channel takes in advance.
    static let watermark = ChannelOptions.Types.WriteBufferWaterMark(low: 64 << 10, high: 256 << 10)
    /// TCP_NOTSENT_LOWAT: bytes that the kernel takes in advance, beside those under way.
    static let notSentMax = ChannelOptions.Types.SocketOption(level: .tcp, name: .init(rawValue: 25))

    private let channel: any Channel
    private var pacer: LinkPacer
    private var waiting = CircularBuffer<ByteBuffer>()
    private var timer: Scheduled<Void>?
    private var isDraining = false
    private var isClosed = false

    /// - Parameter rate: bytes in a second at most; nil for no bound.
    init(channel: any Channel, rate: UInt64?) {
        self.channel = channel
        pacer = LinkPacer(rate: rate, now: MonotonicClock.now())
        // A channel that has ended already takes no handler, and nothing of what is sent.
        try? channel.pipeline.syncOperations.addHandler(self)
    }

    /// Sends a frame behind all others. It leaves with the next ``flush()``, or as soon as it may.
    func send(_ frame: ByteBuffer) {
        guard !isClosed else { return }
        if waiting.isEmpty, mayPass { return pass(frame) }
        waiting.append(frame)
        if !channel.isWritable { channel.flush() }
        drain()
    }

    /// Sends a frame at once, ahead of all that wait.
    func sendAhead(_ frame: ByteBuffer) {
        guard !isClosed else { return }
        pass(frame)
        channel.flush()
    }

    func flush() { channel.flush() }

    /// The last word: what waits is given up for it.
    func farewell(_ frame: ByteBuffer) -> EventLoopFuture<Void> {
        close()
        return channel.writeAndFlush(frame)
    }

    private func close() {
        isClosed = true
        waiting.removeAll()
        timer?.cancel()
    }

    private var mayPass: Bool {
        channel.isWritable && (pacer.rate == nil || pacer.next <= MonotonicClock.now())
    }

    private func pass(_ frame: ByteBuffer) {
        if pacer.rate != nil { pacer.sent(bytes: UInt64(frame.readableBytes), now: MonotonicClock.now()) }
        channel.write(frame, promise: nil)
    }

    /// Sends what may be sent now. A flush may tell at once that there is room again.
    private func drain() {
        guard !isDraining else { return }
        isDraining = true
        defer { isDraining = false }
        while !waiting.isEmpty, mayPass {
            while mayPass, let frame = waiting.popFirst() { pass(frame) }
            channel.flush()
        }
        guard !waiting.isEmpty, channel.isWritable, timer == nil else { return }
        let left = pacer.next.nanoseconds(since: MonotonicClock.now())
        timer = channel.eventLoop.assumeIsolated().scheduleTask(in: .nanoseconds(Int64(clamping: left))) { [self] in
            timer = nil
            drain()
        }
    }

    func channelWritabilityChanged(context: ChannelHandlerContext) {
        drain()
        context.fireChannelWritabilityChanged()
    }

    func channelInactive(context: ChannelHandlerContext) {
        close()
        context.fireChannelInactive()
    }
}
