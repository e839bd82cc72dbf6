import NIOCore
import QEMU
import Units

/// The guardian's end of the socketpair: executes the agent's commands, passes events on, listens to the heartbeat.
/// Confined to its event loop, which must be the monitor's.
final class GuardianRelayHandler: ChannelInboundHandler {
    typealias InboundIn = ByteBuffer
    typealias OutboundOut = ByteBuffer

    /// What the handler tells the guardian; at most one of the last three.
    enum Report: Equatable, Sendable {
        case bye(reason: String, exitCode: Int32, lastCommit: Moment? = nil)
        /// No sign of life for too long.
        case silent
        /// The agent's end is closed.
        case closed
        /// The agent's bytes make no sense.
        case malformed(String)
    }

    /// How often silence is looked for. Silence is counted in ticks and not by the clock, so that a guardian that was
    /// itself stopped for a while reads what has come before it judges.
    static let tick: Duration = .milliseconds(25)

    private let monitor: QMPConnection
    private let report: (Report) -> Void
    private let silentTicks: Int
    private let firstTicks: Int
    private var framer = JSONFramer()
    private var context: ChannelHandlerContext?
    private var ticker: RepeatedTask?
    private var ticksWithoutSign = 0
    private var heard = false
    private var ended = false
    private var observer: Int?
    /// False once the restoration has begun: then the guest is no longer the agent's.
    private var serving = true
    /// Names of NBD nodes that the agent has added.
    private(set) var nbdNodes: Set<String> = []

    init(monitor: QMPConnection, silence: Duration, firstSign: Duration, report: @escaping (Report) -> Void) {
        self.monitor = monitor
        self.report = report
        self.silentTicks = max(1, Int(silence / Self.tick))
        self.firstTicks = max(1, Int(firstSign / Self.tick))
    }

    // MARK: Events of the guardian

    func send(_ message: RelayMessage) {
        guard let context, !ended else { return }
        context.writeAndFlush(
            wrapOutboundOut(context.channel.allocator.buffer(bytes: message.encoded())), promise: nil)
    }

    /// From now on the agent's commands are refused.
    func stopServing() {
        serving = false
        ticker?.cancel()
    }

    // MARK: Channel

    func handlerAdded(context: ChannelHandlerContext) {
        self.context = context
        observer = monitor.observeEvents { [weak self] event in
            // An agent that does not read is silent too; events are not heaped up for it.
            guard let self, self.context?.channel.isWritable == true else { return }
            self.send(.event(event))
        }
        let bound = NIOLoopBound(self, eventLoop: context.eventLoop)
        let period = TimeAmount(Self.tick)
        ticker = context.eventLoop.scheduleRepeatedTask(initialDelay: period, delay: period) { _ in
            bound.value.ticked()
        }
    }

    func handlerRemoved(context: ChannelHandlerContext) {
        ticker?.cancel()
        if let observer { monitor.removeObserver(observer) }
        self.context = nil
    }

    private func ticked() {
        ticksWithoutSign += 1
        guard !ended, ticksWithoutSign > (heard ? silentTicks : firstTicks) else { return }
        end(.silent)
    }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        heard = true
        ticksWithoutSign = 0
        framer.receive(unwrapInboundIn(data).readableBytesView)
        do {
            while !ended, let json = try framer.next() {
                guard let message = RelayMessage(json) else {
                    end(.malformed("unknown message \(String(json.description.prefix(120)))"))
                    return
                }
                handle(message)
            }
        } catch {
            end(.malformed("\(error)"))
        }
    }

    private func handle(_ message: RelayMessage) {
        switch message {
        case .heartbeat: break
        case .bye(let reason, let code, let commit):
            let moment = commit.flatMap { UInt64(exactly: $0) }.map { Moment(nanoseconds: $0) }
            report(.bye(reason: reason, exitCode: code, lastCommit: moment))
        case .command(let command, let timeout): execute(command, timeout)
        case .hello, .answer, .event, .detach: end(.malformed("a message that only a guardian may send"))
        }
    }

    private func execute(_ command: QMPCommand, _ timeout: Int64) {
        guard let id = command.id?.intValue else { return }
        guard serving else {
            send(.answer(id: id, .failure(.closed(command: command.name, reason: "the guest is being restored"))))
            return
        }
        if command.name == "blockdev-add", command.arguments?["driver"]?.stringValue == "nbd",
            let node = command.arguments?["node-name"]?.stringValue
        {
            nbdNodes.insert(node)
        }
        monitor.submit(
            command.name, arguments: command.arguments, oob: command.outOfBand, timeout: .milliseconds(timeout)
        ) { [weak self] result in
            self?.send(.answer(id: id, result))
        }
    }

    func channelInactive(context: ChannelHandlerContext) {
        end(.closed)
    }

    func errorCaught(context: ChannelHandlerContext, error: any Error) {
        end(.closed)
        context.close(promise: nil)
    }

    private func end(_ reason: Report) {
        guard !ended else { return }
        ended = true
        ticker?.cancel()
        report(reason)
    }
}
