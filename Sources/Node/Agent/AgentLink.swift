import Checkpointer
import Link
import Logging
import NIOCore
import NIOPosix
import Units

/// The agent's connection to the secondary: greets, then hands every frame to the core.
final class AgentLinkHandler: ChannelInboundHandler {
    typealias InboundIn = LinkFrame

    private let hello: Hello
    private var welcome: EventLoopPromise<Welcome>?
    private var core: AgentCore?
    /// What came behind the welcome while the core is being made. Nothing more is read meanwhile.
    private var early: [LinkFrame] = []

    init(hello: Hello, welcome: EventLoopPromise<Welcome>) {
        self.hello = hello
        self.welcome = welcome
    }

    func channelActive(context: ChannelHandlerContext) {
        var buffer = context.channel.allocator.buffer(capacity: 512)
        buffer.writeFrame(hello, generation: Generation(0), epoch: .none)
        context.writeAndFlush(NIOAny(buffer), promise: nil)
        context.fireChannelActive()
    }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        let frame = unwrapInboundIn(data)
        guard let promise = welcome else {
            if let core { core.received(frame) } else { early.append(frame) }
            return
        }
        welcome = nil
        do {
            switch frame.kind {
            case .welcome:
                _ = context.channel.setOption(.autoRead, value: false)
                promise.succeed(try frame.withPayload { bytes in try Welcome.decode(bytes) })
            case .refuse:
                promise.fail(try frame.withPayload { bytes in try Refuse.decode(bytes) })
            default:
                promise.fail(AgentLink.Failed(reason: "it answered hello with a \(frame.kind) frame"))
            }
        } catch {
            promise.fail(error)
        }
    }

    /// From now on frames go to the core. To be called on the channel's event loop.
    func deliver(to core: AgentCore, on channel: any Channel) {
        self.core = core
        for frame in early { core.received(frame) }
        early = []
        _ = channel.setOption(.autoRead, value: true)
    }

    func channelInactive(context: ChannelHandlerContext) {
        fail(AgentLink.Failed(reason: "it closed the connection"))
        context.fireChannelInactive()
    }

    func errorCaught(context: ChannelHandlerContext, error: any Error) {
        // Before the welcome, what TLS refuses will be refused again; later it is a link that was lost.
        if let refused = error as? TLSRefused, let promise = welcome {
            welcome = nil
            promise.fail(refused)
        } else {
            fail(AgentLink.Failed(reason: "\(error)"))
        }
        context.close(promise: nil)
    }

    private func fail(_ error: AgentLink.Failed) {
        if let promise = welcome {
            welcome = nil
            promise.fail(error)
        }
        core?.end(.linkLost(error.reason))
    }
}

/// Connects to a secondary and introduces the guest.
enum AgentLink {
    struct Failed: Error, CustomStringConvertible {
        let reason: String
        var description: String { "secondary: \(reason)" }
    }

    struct Connected {
        let channel: any Channel
        let welcome: Welcome
        /// The protocol machine, welcomed.
        let machine: PrimaryProtocol
        /// The handler that waits for its core; to be used on the channel's event loop.
        let handler: NIOLoopBound<AgentLinkHandler>
    }

    /// - Parameter tls: nil is clear text.
    static func connect(
        to address: Address, hello: Hello, tls: LinkTLS? = nil, loop: any EventLoop
    ) async throws -> Connected {
        let promise = loop.makePromise(of: Welcome.self)
        let bootstrap = ClientBootstrap(group: loop)
            .connectTimeout(.seconds(3))
            .channelOption(.socketOption(.so_keepalive), value: 1)
            .channelOption(.recvAllocator, value: FixedSizeRecvByteBufferAllocator(capacity: 64 << 10))
            .channelOption(.writeBufferWaterMark, value: LinkOutlet.watermark)
        let initializer: @Sendable (any Channel) -> EventLoopFuture<NIOLoopBound<AgentLinkHandler>> = { channel in
            channel.eventLoop.makeCompletedFuture {
                let handler = AgentLinkHandler(hello: hello, welcome: promise)
                try LinkPipeline.primary(channel, tls: tls)
                try channel.pipeline.syncOperations.addHandler(handler)
                return NIOLoopBound(handler, eventLoop: channel.eventLoop)
            }
        }
        let channelAndHandler: (any Channel, NIOLoopBound<AgentLinkHandler>)
        do {
            channelAndHandler = try await open(bootstrap, address, initializer)
        } catch {
            promise.fail(error)
            throw Failed(reason: "\(address) cannot be reached (\(error)); does 'colo-blk serve' listen there?")
        }
        loop.scheduleTask(in: .seconds(30)) {
            promise.fail(Failed(reason: "\(address) did not answer hello within 30 s; is it a colo-blk secondary?"))
        }
        do {
            let welcome = try await promise.futureResult.get()
            var machine = PrimaryProtocol()
            try machine.connected()
            _ = try machine.received(FrameInfo(.welcome))
            try machine.welcomed(generation: welcome.generation, firstEpoch: welcome.firstEpoch)
            return Connected(
                channel: channelAndHandler.0, welcome: welcome, machine: machine, handler: channelAndHandler.1)
        } catch {
            try? await channelAndHandler.0.close()
            throw error
        }
    }

    private static func open(
        _ bootstrap: ClientBootstrap, _ address: Address,
        _ initializer: @escaping @Sendable (any Channel) -> EventLoopFuture<NIOLoopBound<AgentLinkHandler>>
    ) async throws -> (any Channel, NIOLoopBound<AgentLinkHandler>) {
        let wrapped: @Sendable (any Channel) -> EventLoopFuture<(any Channel, NIOLoopBound<AgentLinkHandler>)> = {
            channel in
            initializer(channel).map { (channel, $0) }
        }
        switch address.place {
        case .unix(let path):
            return try await bootstrap.connect(unixDomainSocketPath: path, channelInitializer: wrapped)
        case .tcp(let host, let port):
            return try await bootstrap.channelOption(.tcpOption(.tcp_nodelay), value: 1)
                .channelOption(LinkOutlet.notSentMax, value: 256 << 10)
                .connect(host: host, port: port, channelInitializer: wrapped)
        }
    }
}
