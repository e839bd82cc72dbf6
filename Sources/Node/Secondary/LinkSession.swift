import Checkpointer
import Link
import NIOCore
import Synchronization
import Units

/// The secondary's end of one link: what the replica says to its primary. Safe from any thread.
final class LinkSession: Sendable {
    /// Who the primary says it is.
    let label: String
    private let channel: any Channel
    /// Hears parts of frames, too; nil on a channel without one.
    private let pulse: LinkPulse?
    private let lastHeard: Atomic<UInt64>
    /// Set while the replica is at work and the link is not read: then silence says nothing about the primary.
    private let isBusy = Atomic(false)
    /// Something has come since the last beat.
    private let hasHeard = Atomic(true)
    private let silence = Mutex(Silence())

    init(label: String, channel: any Channel, pulse: LinkPulse? = nil) {
        self.label = label
        self.channel = channel
        self.pulse = pulse
        lastHeard = Atomic(MonotonicClock.now().nanoseconds)
    }

    func heard() {
        lastHeard.store(MonotonicClock.now().nanoseconds, ordering: .relaxed)
        hasHeard.store(true, ordering: .relaxed)
    }

    /// To be called with each heartbeat that is sent, from one thread.
    func beat() -> Silence.Change? {
        let hasFrame = hasHeard.exchange(false, ordering: .relaxed)
        let hasBytes = pulse?.take() ?? false
        let isHeard = hasFrame || hasBytes || isBusy.load(ordering: .relaxed)
        return silence.withLock { $0.beat(hasHeard: isHeard) }
    }

    /// Whether the primary counts as lost, as far as the link shows.
    var isSilent: Bool { !channel.isActive || silence.withLock(\.isLong) }

    func setBusy(_ busy: Bool) {
        isBusy.store(busy, ordering: .relaxed)
        if !busy { heard() }
    }

    /// Whether the connection stands, as far as this host knows.
    var isConnected: Bool { channel.isActive }

    /// How long nothing has come from the primary.
    var silentNanoseconds: UInt64 {
        guard channel.isActive else { return .max }
        if isBusy.load(ordering: .relaxed) { return 0 }
        let lastFrame = Moment(nanoseconds: lastHeard.load(ordering: .relaxed))
        return MonotonicClock.now().nanoseconds(since: max(lastFrame, pulse?.lastHeard ?? lastFrame))
    }

    func command(_ kind: FrameKind, generation: Generation, epoch: Epoch) {
        var buffer = channel.allocator.buffer(capacity: FrameHeader.length)
        buffer.writeCommand(kind, generation: generation, epoch: epoch)
        channel.writeAndFlush(buffer, promise: nil)
    }

    func send(_ payload: some LinkPayload, generation: Generation) {
        var buffer = channel.allocator.buffer(capacity: 256)
        buffer.writeFrame(payload, generation: generation, epoch: .none)
        channel.writeAndFlush(buffer, promise: nil)
    }

    /// Sends, and returns when the frame has left this process. Throws when the link is gone.
    func deliver(_ payload: some LinkPayload, generation: Generation) async throws {
        var buffer = channel.allocator.buffer(capacity: 256)
        buffer.writeFrame(payload, generation: generation, epoch: .none)
        try await channel.writeAndFlush(buffer).get()
    }

    func hangUp() { channel.close(promise: nil) }

    /// Says why, and closes.
    func bye(code: UInt16, reason: String, generation: Generation) {
        var buffer = channel.allocator.buffer(capacity: 256)
        buffer.writeFrame(Bye(code: code, reason: reason), generation: generation, epoch: .none)
        let channel = channel
        channel.writeAndFlush(buffer).whenComplete { _ in channel.close(promise: nil) }
    }
}
