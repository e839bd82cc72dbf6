import Logging
import Synchronization

/// Something that happened to a replica: a line of the log, and of `colo-blk status --follow`.
public struct GuestEvent: Codable, Sendable, Equatable {
    public enum Kind: String, Codable, Sendable {
        /// The state of `status` has changed.
        case state
        /// A primary has come or gone.
        case session
        /// The guest was started once, or could not be.
        case proof
        /// A comparison with the running guest has ended.
        case comparison
        /// The replica became the guest, or was to.
        case failover
        /// Checkpoints have come to lag far behind, or no longer do.
        case lag
        /// A command for losses or for fencing has run, or could not.
        case command
    }

    /// Grows by one with each event of a daemon.
    public var number: UInt64
    /// Wall clock, milliseconds since 1970.
    public var milliseconds: UInt64
    public var guest: String
    public var kind: Kind
    public var state: GuestStatus.State
    /// For ``Kind/state``: what it was before; absent when nothing was known before.
    public var before: GuestStatus.State?
    /// Absent: nothing has been committed.
    public var committedEpoch: UInt64?
    public var generation: UInt64
    public var message: String?
}

/// The events of all replicas of a daemon. Safe from any thread; emitting never waits.
final class EventLog: Sendable {
    private struct State {
        var next: UInt64 = 1
        var subscribers: [Int: AsyncStream<GuestEvent>.Continuation] = [:]
        var lastSubscriber = 0
    }

    /// Events that wait for a reader who is slow; older ones are lost to it.
    private static let waitingMax = 1024

    private let log: Logger
    private let state = Mutex(State())

    init(log: Logger) {
        self.log = log
    }

    /// Writes the event to the log and tells everybody who listens. `number` is filled in here.
    func emit(_ event: GuestEvent) {
        var event = event
        let listeners = state.withLock { state in
            event.number = state.next
            state.next += 1
            return Array(state.subscribers.values)
        }
        var metadata: Logger.Metadata = [
            "guest": "\(event.guest)", "state": "\(event.state.rawValue)", "generation": "\(event.generation)",
            "epoch": "\(event.committedEpoch.map(String.init) ?? "none")",
        ]
        if let before = event.before { metadata["before"] = "\(before.rawValue)" }
        if let message = event.message { metadata["message"] = "\(message)" }
        log.notice("event \(event.kind.rawValue)", metadata: metadata)
        for listener in listeners { listener.yield(event) }
    }

    /// Events from now on. `end` must be called when nobody reads any more.
    func subscribe() -> (events: AsyncStream<GuestEvent>, end: @Sendable () -> Void) {
        let (stream, continuation) = AsyncStream.makeStream(
            of: GuestEvent.self, bufferingPolicy: .bufferingNewest(Self.waitingMax))
        let number = state.withLock { state in
            state.lastSubscriber += 1
            state.subscribers[state.lastSubscriber] = continuation
            return state.lastSubscriber
        }
        return (
            stream,
            { [self] in
                state.withLock { $0.subscribers[number] = nil }
                continuation.finish()
            }
        )
    }
}
