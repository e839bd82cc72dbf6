import CLinux
import Glibc
import NIOCore
import NIOPosix

/// Turns SIGINT and SIGTERM of this process into calls on an event loop. The handlers stay installed for the life of
/// the process: a second Ctrl-C must not kill a guardian that restores a guest.
final class SignalWatch: Sendable {
    private let channel: any Channel

    private init(channel: any Channel) {
        self.channel = channel
    }

    /// - Parameter onSignal: called on `eventLoop` with the signal's number.
    static func start(
        eventLoop: any EventLoop, onSignal: @escaping @Sendable (CInt) -> Void
    ) async throws -> SignalWatch {
        let pipe = clx_signal_pipe()
        guard pipe >= 0 else { throw IOError(errnoCode: -pipe, reason: "pipe for signals") }
        // The channel closes what it is given; the pipe itself belongs to the process.
        let copy = fcntl(pipe, F_DUPFD_CLOEXEC, 0)
        guard copy >= 0 else { throw IOError(errnoCode: errno, reason: "dup of the pipe for signals") }
        let channel = try await NIOPipeBootstrap(group: eventLoop)
            .channelInitializer { channel in
                channel.eventLoop.makeCompletedFuture {
                    try channel.pipeline.syncOperations.addHandler(Handler(onSignal: onSignal))
                }
            }
            .takingOwnershipOfDescriptor(input: copy).get()
        return SignalWatch(channel: channel)
    }

    func stop() {
        channel.close(promise: nil)
    }

    private final class Handler: ChannelInboundHandler {
        typealias InboundIn = ByteBuffer
        private let onSignal: @Sendable (CInt) -> Void

        init(onSignal: @escaping @Sendable (CInt) -> Void) {
            self.onSignal = onSignal
        }

        func channelRead(context: ChannelHandlerContext, data: NIOAny) {
            for signal in unwrapInboundIn(data).readableBytesView { onSignal(CInt(signal)) }
        }
    }
}
