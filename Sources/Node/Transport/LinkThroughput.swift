import Link
import NIOCore
import NIOPosix
import Units

/// How fast a link carries frames from one event loop to another, over TCP on this machine: codec, checksums, sockets
/// and TLS as `attach` and `serve` have them, with nothing behind them. For Benchmarks/link.
public enum LinkThroughput {
    public struct Figures: Codable, Sendable {
        public var bytes: UInt64
        public var seconds: Double
        public var megabytesPerSecond: Double
    }

    /// Bytes of each frame's data: what a mirror job's writes mostly have.
    private static let frameBytes = 256 << 10
    /// Bytes that may be under way, as with `attach`'s own budget.
    private static let window: UInt64 = 16 << 20
    private static let creditStep: UInt64 = 1 << 20

    /// - Parameters:
    ///   - bytes: to be carried, headers not counted.
    ///   - files: credentials of the two ends; nil is clear text.
    public static func measure(bytes: UInt64, secondary: TLSFiles?, primary: TLSFiles?) async throws -> Figures {
        let group = MultiThreadedEventLoopGroup(numberOfThreads: 2)
        do {
            let figures = try await run(bytes, secondary, primary, group)
            try await group.shutdownGracefully()
            return figures
        } catch {
            try? await group.shutdownGracefully()
            throw error
        }
    }

    private static func run(
        _ bytes: UInt64, _ secondary: TLSFiles?, _ primary: TLSFiles?, _ group: MultiThreadedEventLoopGroup
    ) async throws -> Figures {
        let serverTLS = try secondary.map { files throws(TLSRefused) in try LinkTLS.secondary(files) }
        let listener = try await ServerBootstrap(group: group.next())
            .childChannelOption(.recvAllocator, value: FixedSizeRecvByteBufferAllocator(capacity: 256 << 10))
            .childChannelOption(.tcpOption(.tcp_nodelay), value: 1)
            .childChannelInitializer { channel in
                channel.eventLoop.makeCompletedFuture {
                    try LinkPipeline.secondary(channel, tls: serverTLS)
                    try channel.pipeline.syncOperations.addHandler(Sink(step: creditStep))
                }
            }
            .bind(host: "127.0.0.1", port: 0).get()
        let port = listener.localAddress?.port ?? 0
        let address = try Address(parsing: "127.0.0.1:\(port)")
        let tls = try primary.map { files throws(TLSRefused) in try LinkTLS.primary(files, to: address, name: nil) }
        let loop = group.next()
        let done = loop.makePromise(of: Figures.self)
        let channel = try await ClientBootstrap(group: loop)
            .channelOption(.recvAllocator, value: FixedSizeRecvByteBufferAllocator(capacity: 64 << 10))
            .channelOption(.writeBufferWaterMark, value: .init(low: 1 << 20, high: 1 << 30))
            .channelOption(.tcpOption(.tcp_nodelay), value: 1)
            .channelInitializer { channel in
                channel.eventLoop.makeCompletedFuture {
                    try LinkPipeline.primary(channel, tls: tls)
                    try channel.pipeline.syncOperations.addHandler(Source(bytes: bytes, done: done))
                }
            }
            .connect(host: "127.0.0.1", port: port).get()
        let figures = try await done.futureResult.get()
        try? await channel.close()
        try? await listener.close()
        return figures
    }

    /// Sends frames while the window allows, and counts the time from the first answer (the handshake is over) on.
    private final class Source: ChannelInboundHandler {
        typealias InboundIn = LinkFrame

        private let bytes: UInt64
        private let done: EventLoopPromise<Figures>
        private var sent: UInt64 = 0
        private var consumed: UInt64 = 0
        private var began: Moment?
        private var data: [UInt8]

        init(bytes: UInt64, done: EventLoopPromise<Figures>) {
            self.bytes = bytes
            self.done = done
            var random = SystemRandomNumberGenerator()
            data = (0..<frameBytes).map { _ in UInt8.random(in: 0...255, using: &random) }
        }

        func channelActive(context: ChannelHandlerContext) {
            send(context)
            context.fireChannelActive()
        }

        func channelRead(context: ChannelHandlerContext, data: NIOAny) {
            let frame = unwrapInboundIn(data)
            do {
                consumed = try frame.withPayload { bytes in try Credit.decode(bytes) }.consumedTotal
            } catch {
                return done.fail(error)
            }
            guard let began else {
                self.began = MonotonicClock.now()
                return push(context)
            }
            if consumed >= bytes, sent == consumed {
                let seconds = Double(MonotonicClock.now().nanoseconds(since: began)) / 1e9
                return done.succeed(
                    Figures(bytes: sent, seconds: seconds, megabytesPerSecond: Double(sent) / seconds / 1e6))
            }
            push(context)
        }

        private func push(_ context: ChannelHandlerContext) {
            while sent < bytes, sent - consumed < window { send(context) }
        }

        private func send(_ context: ChannelHandlerContext) {
            var buffer = context.channel.allocator.buffer(
                capacity: FrameHeader.length + DiskWrite.prefixLength + data.count)
            let prefix = [UInt8](repeating: 0, count: DiskWrite.prefixLength)
            let header = prefix.withUnsafeBytes { prefix in
                data.withUnsafeBytes { data in
                    buffer.writeFrame(
                        .diskWrite, generation: Generation(1), epoch: Epoch(1), prefix: prefix, data: data)
                }
            }
            sent += UInt64(header.frameLength)
            context.writeAndFlush(NIOAny(buffer), promise: nil)
        }

        func errorCaught(context: ChannelHandlerContext, error: any Error) {
            done.fail(error)
            context.close(promise: nil)
        }

        func channelInactive(context: ChannelHandlerContext) {
            done.fail(AgentLink.Failed(reason: "it closed the connection"))
            context.fireChannelInactive()
        }
    }

    /// Takes frames in and says so, as a secondary does; and once for the first one.
    private final class Sink: ChannelInboundHandler {
        typealias InboundIn = LinkFrame

        private let step: UInt64
        private var consumed: UInt64 = 0
        private var told: UInt64 = 0

        init(step: UInt64) { self.step = step }

        func channelRead(context: ChannelHandlerContext, data: NIOAny) {
            consumed += UInt64(unwrapInboundIn(data).header.frameLength)
            if told == 0 || consumed - told >= step { tell(context) }
        }

        func channelReadComplete(context: ChannelHandlerContext) {
            if consumed > told { tell(context) }
            context.fireChannelReadComplete()
        }

        private func tell(_ context: ChannelHandlerContext) {
            told = consumed
            var buffer = context.channel.allocator.buffer(capacity: 64)
            buffer.writeFrame(Credit(consumedTotal: consumed), generation: Generation(1), epoch: .none)
            context.writeAndFlush(NIOAny(buffer), promise: nil)
        }
    }
}
