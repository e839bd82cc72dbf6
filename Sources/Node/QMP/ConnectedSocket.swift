import NIOCore
import NIOPosix

/// A socket that was connected before NIO got it, with the one handler that serves it.
struct ConnectedSocket<Handler: ChannelHandler & SendableMetatype>: Sendable {
    let channel: any Channel
    let handler: NIOLoopBound<Handler>

    /// Hands the descriptor to a channel on `eventLoop`, which owns it from then on, also when this throws.
    /// - Parameter make: makes the handler, on the event loop. It is reachable even if the peer closes at once.
    static func open(
        _ descriptor: CInt, eventLoop: any EventLoop, make: @escaping @Sendable () -> Handler
    ) async throws -> ConnectedSocket {
        let promise = eventLoop.makePromise(of: NIOLoopBound<Handler>.self)
        do {
            let channel = try await ClientBootstrap(group: eventLoop)
                .channelInitializer { channel in
                    channel.eventLoop.makeCompletedFuture {
                        let handler = make()
                        try channel.pipeline.syncOperations.addHandler(handler)
                        promise.succeed(NIOLoopBound(handler, eventLoop: eventLoop))
                    }
                }
                .withConnectedSocket(descriptor).get()
            return ConnectedSocket(channel: channel, handler: try await promise.futureResult.get())
        } catch {
            promise.fail(error)
            throw error
        }
    }

    /// Runs `body` with the handler on its event loop, at once when called there.
    func onLoop(_ body: @escaping @Sendable (Handler) -> Void) {
        if channel.eventLoop.inEventLoop {
            body(handler.value)
        } else {
            channel.eventLoop.execute { [handler] in body(handler.value) }
        }
    }
}
