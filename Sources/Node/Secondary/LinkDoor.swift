import Link
import NIOCore
import Units

/// What a connection meets first on the secondary, before TLS and before the link's codec.
///
/// Looks at the first byte: TLS records and the link's own frames cannot be confused by it, so that a peer with the
/// other setting gets an answer that it understands, and nothing else of what it sent is looked at. Until the peer is
/// let in, closing takes its time: what was said last (an alert, a refusal) would be lost with bytes that nobody has
/// read. To be removed when the peer is let in.
final class LinkDoor: ChannelDuplexHandler, RemovableChannelHandler {
    typealias InboundIn = ByteBuffer
    typealias InboundOut = ByteBuffer
    typealias OutboundIn = ByteBuffer
    typealias OutboundOut = ByteBuffer

    /// Its name in the pipeline.
    static let name = "link-door"
    /// The first byte of a TLS record that begins a handshake.
    private static let tlsHandshake: UInt8 = 22
    /// A TLS record: a fatal alert, access denied. No server that speaks TLS to this client would send it.
    private static let denied: [UInt8] = [21, 3, 3, 0, 2, 2, 49]
    private static let linger = TimeAmount.milliseconds(500)

    private enum State {
        /// Next: open, leaving.
        case waiting
        /// Next: leaving.
        case open
        /// Next: none. What comes is thrown away.
        case leaving
    }

    private let takesTLS: Bool
    private var state = State.waiting
    private var closing: EventLoopPromise<Void>?
    private var isClosing = false

    init(takesTLS: Bool) {
        self.takesTLS = takesTLS
    }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        switch state {
        case .leaving: return
        case .open: context.fireChannelRead(data)
        case .waiting:
            let bytes = unwrapInboundIn(data)
            guard let first = bytes.getInteger(at: bytes.readerIndex, as: UInt8.self) else { return }
            if (first == Self.tlsHandshake) == takesTLS {
                state = .open
                context.fireChannelRead(data)
            } else {
                refuse(context, isLink: first == FrameHeader.firstByte)
            }
        }
    }

    private func refuse(_ context: ChannelHandlerContext, isLink: Bool) {
        state = .leaving
        var answer = context.channel.allocator.buffer(capacity: 512)
        let reason: String
        if !takesTLS {
            answer.writeBytes(Self.denied)
            reason =
                "the primary speaks TLS, and this secondary takes clear text only: start serve with "
                + "--tls-certificates or --tls-psk"
        } else if isLink {
            let message = "this secondary takes TLS only: give attach --tls-certificates or --tls-psk"
            answer.writeFrame(Refuse(code: .protocol, message: message), generation: Generation(0), epoch: .none)
            reason = "the primary speaks clear text, and this secondary takes TLS only"
        } else {
            reason = "the peer speaks neither TLS nor the link's language"
        }
        if answer.readableBytes > 0 { context.writeAndFlush(wrapOutboundOut(answer), promise: nil) }
        context.fireErrorCaught(TLSRefused(description: reason))
    }

    func channelReadComplete(context: ChannelHandlerContext) {
        if state == .leaving {
            context.read()
        } else {
            context.fireChannelReadComplete()
        }
    }

    func close(context: ChannelHandlerContext, mode: CloseMode, promise: EventLoopPromise<Void>?) {
        guard mode == .all, context.channel.isActive else { return context.close(mode: mode, promise: promise) }
        state = .leaving
        guard !isClosing else {
            if let closing { closing.futureResult.cascade(to: promise) } else { closing = promise }
            return
        }
        isClosing = true
        closing = promise
        context.close(mode: .output, promise: nil)
        context.read()
        let bound = NIOLoopBound((context, self), eventLoop: context.eventLoop)
        context.eventLoop.scheduleTask(in: Self.linger) {
            let (context, door) = bound.value
            context.close(mode: .all, promise: door.takeClosing())
        }
    }

    private func takeClosing() -> EventLoopPromise<Void>? {
        defer { closing = nil }
        return closing
    }

    func channelInactive(context: ChannelHandlerContext) {
        takeClosing()?.succeed(())
        context.fireChannelInactive()
    }

    func removeHandler(context: ChannelHandlerContext, removalToken: ChannelHandlerContext.RemovalToken) {
        // Whoever waits for the end needs it.
        guard !isClosing else { return }
        context.leavePipeline(removalToken: removalToken)
    }

    func handlerRemoved(context: ChannelHandlerContext) {
        takeClosing()?.succeed(())
    }
}
