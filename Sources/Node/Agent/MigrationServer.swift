import Checkpointer
import Logging
import NIOCore
import QEMU

/// The agent's end of QEMU's migration socket. Feeds the COLO stream and answers it at once.
final class MigrationHandler: ChannelInboundHandler {
    typealias InboundIn = ByteBuffer
    typealias OutboundOut = ByteBuffer

    private let core: AgentCore
    private var stream = ColoPrimaryStream(limits: MigrationLimits())
    private var cut = CutStream()
    private var reading = true
    /// The stream was given up: QEMU gets no more answers.
    private var hasFailed = false
    /// QEMU connects once. Whoever comes later is not QEMU and is shown out.
    private var isWelcome = false

    init(core: AgentCore) {
        self.core = core
    }

    func channelActive(context: ChannelHandlerContext) {
        isWelcome = core.takeMigration()
        guard isWelcome else {
            core.log.warning("a second connection to the migration socket was closed")
            context.close(promise: nil)
            return
        }
        let bound = NIOLoopBound((self, context), eventLoop: context.eventLoop)
        core.onPressureChange = { bound.value.0.adjustReading(bound.value.1) }
        core.onOwed = { bound.value.0.answer(bound.value.1) }
        core.closeMigration = { bound.value.1.close(promise: nil) }
        context.fireChannelActive()
    }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        guard isWelcome else { return }
        do {
            try feed(unwrapInboundIn(data), context: context)
        } catch {
            hasFailed = true
            core.end(.migrationEnded("\(error)"))
            context.close(promise: nil)
            return
        }
        adjustReading(context)
    }

    private func feed(_ input: ByteBuffer, context: ChannelHandlerContext) throws(MigrationStreamError) {
        try cut.take(input) { bytes throws(MigrationStreamError) in
            var sink = core
            let consumed = try stream.consume(bytes, into: &sink)
            answer(context)
            return consumed
        }
    }

    private func answer(_ context: ChannelHandlerContext) {
        guard !hasFailed else { return }
        let owed = core.owed
        core.owed = .nothing
        switch owed {
        case .nothing:
            return
        case .ready:
            write(stream.ready(), context)
            core.beginRunning()
        case .reply:
            core.pauseBegan = MonotonicClock.now()
            core.life.replied(at: MonotonicClock.wallNanoseconds())
            write(stream.reply(), context)
        case .acknowledgeAhead:
            guard stream.mayAcknowledgeAhead else { return }
            core.isAcknowledgedAhead = true
            write(stream.acknowledgeAhead(), context)
        case .acknowledge:
            write(stream.received() + stream.loaded(), context)
            core.pauseEnded()
        }
        core.flush()
    }

    private func write(_ bytes: [UInt8], _ context: ChannelHandlerContext) {
        context.writeAndFlush(wrapOutboundOut(ByteBuffer(bytes: bytes)), promise: nil)
    }

    /// Leaves the socket alone, or reads it again.
    private func adjustReading(_ context: ChannelHandlerContext) {
        let wanted = core.takesInput
        guard wanted != reading else { return }
        reading = wanted
        context.channel.setOption(.autoRead, value: wanted).assumeIsolated().whenFailure { [core] error in
            core.end(.migrationEnded("\(error)"))
        }
    }

    func channelInactive(context: ChannelHandlerContext) {
        if isWelcome { core.end(.migrationEnded(Self.words(stream.connectionClosed()))) }
        context.fireChannelInactive()
    }

    func errorCaught(context: ChannelHandlerContext, error: any Error) {
        // A QEMU that closes with a word of ours unread resets the connection: the same end in another dress.
        core.log.debug("migration socket: \(error)")
        if isWelcome { core.end(.migrationEnded(Self.words(stream.connectionClosed()))) }
        context.close(promise: nil)
    }

    /// A stream that ends before the first checkpoint has a usual suspect.
    private static func words(_ error: MigrationStreamError) -> String {
        let isEarly = error.reason == .connectionClosed && error.state == .running && error.checkpoint == 0
        guard isEarly else { return "\(error)" }
        return "QEMU ended the migration after the initial copy instead of entering COLO, as 10.0.0 to 10.1.x are "
            + "known to do; docs/qemu-versions.md names versions that work (\(error))"
    }
}
