import NIOCore
import QEMU

/// The monitor's channel handler: commands by id, time-outs, greeting and events. Confined to its event loop.
///
/// QEMU reads at most 8 commands ahead; when that queue is full it does not read the out-of-band commands behind them
/// either. So at most ``wireLimit`` ordinary commands are given to QEMU at a time and the others wait here, and the
/// way of a `yank` is always free.
final class QMPConnection: ChannelInboundHandler {
    typealias InboundIn = ByteBuffer
    typealias OutboundOut = ByteBuffer
    typealias Completion = (Result<JSONValue, QMPError>) -> Void

    /// Ordinary commands that QEMU has and has not answered.
    static let wireLimit = 4
    /// Ordinary commands that wait for a place on the wire.
    static let queueLimit = 256

    private struct Waiting {
        let name: String
        let completion: Completion
        let timeout: Scheduled<Void>
    }

    private var codec = QMPCodec()
    private var context: ChannelHandlerContext?
    private var nextID: Int64 = 1
    /// Commands whose caller still waits.
    private var waiting: [Int64: Waiting] = [:]
    /// Ordinary commands that QEMU has not answered, whether or not somebody still waits.
    private var onWire: Set<Int64> = []
    private var queued: [(id: Int64, command: QMPCommand)] = []
    private var received = false
    private var closedReason: String?

    /// What ends the wait for the greeting: the greeting, or the reason why there is none.
    private var greeting: EventLoopPromise<QMPGreeting>?
    /// Called for each event in the order of arrival.
    private var observers: [Int: (QMPEvent) -> Void] = [:]
    private var nextObserver = 0
    /// Called once when the connection is gone, with the reason.
    private var closeObservers: [(String) -> Void] = []

    init(greeting: EventLoopPromise<QMPGreeting>) {
        self.greeting = greeting
    }

    // MARK: Commands

    /// Sends one command, or queues it; `completion` is called exactly once, perhaps before this returns.
    func submit(
        _ name: String, arguments: JSONValue?, oob: Bool, timeout: TimeAmount, completion: @escaping Completion
    ) {
        guard let context, closedReason == nil else {
            completion(.failure(.closed(command: name, reason: closedReason ?? "not connected")))
            return
        }
        guard oob || queued.count < Self.queueLimit else {
            completion(.failure(.queueFull(command: name)))
            return
        }
        let id = nextID
        nextID += 1
        let loopBound = NIOLoopBound(self, eventLoop: context.eventLoop)
        let timer = context.eventLoop.scheduleTask(in: timeout) {
            loopBound.value.timedOut(id, after: timeout)
        }
        waiting[id] = Waiting(name: name, completion: completion, timeout: timer)
        let command = QMPCommand(name, arguments: arguments, id: .integer(id), outOfBand: oob)
        if oob {
            write(command, context)
        } else {
            queued.append((id, command))
            pump(context)
        }
    }

    private func pump(_ context: ChannelHandlerContext) {
        while onWire.count < Self.wireLimit, let first = queued.first {
            queued.removeFirst()
            onWire.insert(first.id)
            write(first.command, context)
        }
    }

    private func write(_ command: QMPCommand, _ context: ChannelHandlerContext) {
        let bytes = command.encoded()
        context.writeAndFlush(wrapOutboundOut(context.channel.allocator.buffer(bytes: bytes)), promise: nil)
    }

    private func timedOut(_ id: Int64, after time: TimeAmount) {
        queued.removeAll { $0.id == id }
        guard let entry = waiting.removeValue(forKey: id) else { return }
        entry.completion(.failure(.timedOut(command: entry.name, after: .nanoseconds(time.nanoseconds))))
    }

    private func answered(_ id: JSONValue?, _ result: Result<JSONValue, QMPCommandError>) {
        guard let number = id?.intValue else { return }
        onWire.remove(number)
        if let context { pump(context) }
        guard let entry = waiting.removeValue(forKey: number) else { return }
        entry.timeout.cancel()
        entry.completion(result.mapError { .refused(command: entry.name, $0) })
    }

    // MARK: Observers

    func observeEvents(_ body: @escaping (QMPEvent) -> Void) -> Int {
        nextObserver += 1
        observers[nextObserver] = body
        return nextObserver
    }

    func removeObserver(_ token: Int) {
        observers[token] = nil
    }

    /// Calls `body` when the connection ends, or at once when it has ended.
    func observeClose(_ body: @escaping (String) -> Void) {
        if let closedReason {
            body(closedReason)
        } else {
            closeObservers.append(body)
        }
    }

    // MARK: Channel

    func handlerAdded(context: ChannelHandlerContext) {
        self.context = context
    }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        received = true
        codec.receive(unwrapInboundIn(data).readableBytesView)
        do {
            while closedReason == nil, let message = try codec.next() { handle(message) }
        } catch {
            fail("the monitor's bytes make no sense: \(error)", greetingFailure: .notQMP("\(error)"), context)
        }
    }

    private func handle(_ message: QMPMessage) {
        switch message {
        case .greeting(let value):
            greeting?.succeed(value)
            greeting = nil
        case .success(let id, let value): answered(id, .success(value))
        case .failure(let id, let error): answered(id, .failure(error))
        case .event(let event):
            for observer in observers.sorted(by: { $0.key < $1.key }) { observer.value(event) }
        }
    }

    /// No greeting came in time.
    func greetingOverdue() {
        guard let context, greeting != nil else { return }
        fail(
            "no greeting", greetingFailure: received ? .notQMP("part of a line and then nothing") : .busy, context)
    }

    func channelInactive(context: ChannelHandlerContext) {
        fail(
            "QEMU closed the monitor; the guest has ended, or its monitor was removed", greetingFailure: .closed,
            context)
    }

    func errorCaught(context: ChannelHandlerContext, error: any Error) {
        fail("error on the monitor's socket: \(error)", greetingFailure: .system("\(error)"), context)
    }

    func handlerRemoved(context: ChannelHandlerContext) {
        self.context = nil
    }

    /// Ends everything that waits and closes the channel.
    private func fail(_ reason: String, greetingFailure: QMPConnectError.Kind, _ context: ChannelHandlerContext) {
        guard closedReason == nil else { return }
        closedReason = reason
        greeting?.fail(QMPConnectError(path: "", kind: greetingFailure))
        greeting = nil
        let entries = waiting.sorted { $0.key < $1.key }
        waiting = [:]
        queued = []
        for (_, entry) in entries {
            entry.timeout.cancel()
            entry.completion(.failure(.closed(command: entry.name, reason: reason)))
        }
        let ended = closeObservers
        closeObservers = []
        observers = [:]
        for body in ended { body(reason) }
        context.close(promise: nil)
    }
}
