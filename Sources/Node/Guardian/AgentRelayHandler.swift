import NIOCore
import QEMU

/// The agent's channel handler towards its guardian. Confined to its event loop.
final class AgentRelayHandler: ChannelInboundHandler {
    typealias InboundIn = ByteBuffer
    typealias OutboundOut = ByteBuffer
    typealias Completion = (Result<JSONValue, QMPError>) -> Void

    private struct Waiting {
        let name: String
        let completion: Completion
        let timeout: Scheduled<Void>
    }

    /// Commands under way; more are refused. The guardian has the same limit.
    private static let waitingLimit = QMPConnection.queueLimit
    /// How much longer than the guardian we wait for an answer.
    private static let slack: Duration = .milliseconds(250)

    private var framer = JSONFramer()
    private var context: ChannelHandlerContext?
    private var hello: EventLoopPromise<JSONValue>?
    private let heartbeat: TimeAmount
    private let order: (AgentOrder) -> Void
    private var beating: RepeatedTask?
    private var beats: Int64 = 0
    private var nextID: Int64 = 1
    private var waiting: [Int64: Waiting] = [:]
    private var observers: [Int: AsyncStream<QMPEvent>.Continuation] = [:]
    private var nextObserver = 0
    /// The guardian's end is gone.
    private(set) var closed = false
    private var hasSaidBye = false
    /// The guest is restored: the agent is of no more use.
    private(set) var mayLeave = false

    init(hello: EventLoopPromise<JSONValue>, heartbeat: TimeAmount, order: @escaping (AgentOrder) -> Void) {
        self.hello = hello
        self.heartbeat = heartbeat
        self.order = order
    }

    /// Sends one message; the promise is kept when it is in the socket, or cannot get there any more.
    func send(_ message: RelayMessage, promise: EventLoopPromise<Void>? = nil) {
        guard let context, !closed else {
            promise?.succeed(())
            return
        }
        let buffer = context.channel.allocator.buffer(bytes: message.encoded())
        context.writeAndFlush(wrapOutboundOut(buffer), promise: promise)
    }

    func sendBye(_ message: RelayMessage, promise: EventLoopPromise<Void>) {
        hasSaidBye = true
        send(message, promise: promise)
    }

    func submit(_ command: QMPCommand, timeout: Duration, completion: @escaping Completion) {
        guard let context, !closed else {
            completion(.failure(.closed(command: command.name, reason: "the guardian is gone")))
            return
        }
        guard waiting.count < Self.waitingLimit else {
            completion(.failure(.queueFull(command: command.name)))
            return
        }
        let id = nextID
        nextID += 1
        let bound = NIOLoopBound(self, eventLoop: context.eventLoop)
        let timer = context.eventLoop.scheduleTask(in: TimeAmount(timeout + Self.slack)) {
            bound.value.finish(id, .failure(.timedOut(command: command.name, after: timeout)))
        }
        waiting[id] = Waiting(name: command.name, completion: completion, timeout: timer)
        let numbered = QMPCommand(
            command.name, arguments: command.arguments, id: .integer(id), outOfBand: command.outOfBand)
        let milliseconds = min(max(timeout.milliseconds, 1), 600_000)
        send(.command(numbered, timeoutMilliseconds: milliseconds))
    }

    private func finish(_ id: Int64, _ result: Result<JSONValue, QMPError>) {
        guard let entry = waiting.removeValue(forKey: id) else { return }
        entry.timeout.cancel()
        entry.completion(result)
    }

    func observeEvents(_ continuation: AsyncStream<QMPEvent>.Continuation) -> Int {
        nextObserver += 1
        if closed {
            continuation.finish()
        } else {
            observers[nextObserver] = continuation
        }
        return nextObserver
    }

    func removeObserver(_ token: Int) {
        observers[token] = nil
    }

    // MARK: Channel

    func handlerAdded(context: ChannelHandlerContext) {
        self.context = context
        if context.channel.isActive { startBeating(context) }
    }

    func channelActive(context: ChannelHandlerContext) {
        startBeating(context)
    }

    private func startBeating(_ context: ChannelHandlerContext) {
        guard beating == nil else { return }
        let bound = NIOLoopBound(self, eventLoop: context.eventLoop)
        beating = context.eventLoop.scheduleRepeatedTask(initialDelay: .zero, delay: heartbeat) { _ in
            bound.value.beat()
        }
    }

    private func beat() {
        beats += 1
        send(.heartbeat(beats))
    }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        framer.receive(unwrapInboundIn(data).readableBytesView)
        do {
            while !closed, let json = try framer.next() {
                guard let message = RelayMessage(json) else { continue }
                handle(message)
            }
        } catch {
            close(context)
        }
    }

    private func handle(_ message: RelayMessage) {
        switch message {
        case .hello(let value):
            hello?.succeed(value)
            hello = nil
        case .answer(let id, let result): finish(id, result)
        case .event(let event):
            for observer in observers.values { observer.yield(event) }
        case .detach where hasSaidBye: mayLeave = true
        case .detach(let reason): order(.detach(reason: reason))
        case .command, .heartbeat, .bye: break
        }
    }

    func channelInactive(context: ChannelHandlerContext) {
        close(context)
    }

    func errorCaught(context: ChannelHandlerContext, error: any Error) {
        close(context)
    }

    func handlerRemoved(context: ChannelHandlerContext) {
        self.context = nil
    }

    private func close(_ context: ChannelHandlerContext) {
        guard !closed else { return }
        closed = true
        beating?.cancel()
        hello?.fail(AgentRelay.Failure(detail: "it closed the connection"))
        hello = nil
        let entries = waiting.sorted { $0.key < $1.key }
        waiting = [:]
        for (_, entry) in entries {
            entry.timeout.cancel()
            entry.completion(.failure(.closed(command: entry.name, reason: "the guardian is gone")))
        }
        for observer in observers.values { observer.finish() }
        observers = [:]
        order(.guardianGone)
        context.close(promise: nil)
    }
}
