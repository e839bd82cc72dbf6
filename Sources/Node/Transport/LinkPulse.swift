import NIOCore
import Synchronization
import Units

/// Notes that something has come over a link, if only a part of a frame: on a slow one a frame takes longer than the
/// other side may be silent. Safe from any thread.
final class LinkPulse: ChannelInboundHandler, Sendable {
    typealias InboundIn = ByteBuffer
    typealias InboundOut = ByteBuffer

    private let beat = Atomic(false)
    private let heardAt = Atomic(MonotonicClock.now().nanoseconds)

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        beat.store(true, ordering: .relaxed)
        heardAt.store(MonotonicClock.now().nanoseconds, ordering: .relaxed)
        context.fireChannelRead(data)
    }

    /// Whether anything has come since the last call.
    func take() -> Bool { beat.exchange(false, ordering: .relaxed) }

    /// When something came last.
    var lastHeard: Moment { Moment(nanoseconds: heardAt.load(ordering: .relaxed)) }
}
