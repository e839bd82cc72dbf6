import CLinux
import Logging
import NIOCore
import NIOPosix
import QEMU
import Units

/// What the guardian wants of its agent.
public enum AgentOrder: Sendable, Equatable {
    /// Stop and say ``AgentRelay/bye(reason:exitCode:lastCommit:)``; there are 300 ms.
    case detach(reason: String)
    /// The guardian died. The monitor is free: restore the guest with
    /// ``AgentRelay/restoreWithoutGuardian(eventLoop:log:)`` and exit.
    case guardianGone
}

/// The agent's end of the socketpair to its guardian: executes QMP commands there, and beats.
///
/// The heartbeat is sent from the event loop given, so that a loop that hangs is a heart that stops.
public final class AgentRelay: QMPExecutor {
    /// Why there is no guardian to talk to.
    public struct Failure: Error, Equatable, CustomStringConvertible {
        public let detail: String
        public var description: String {
            "no guardian: \(detail); the agent is started by `colo-blk attach`, not by hand"
        }
    }

    /// What the guardian said first.
    public let hello: GuardianHello
    /// Orders of the guardian, one consumer; ends after ``AgentOrder/guardianGone``.
    public let orders: AsyncStream<AgentOrder>
    private let socket: ConnectedSocket<AgentRelayHandler>

    private init(
        hello: GuardianHello, orders: AsyncStream<AgentOrder>, socket: ConnectedSocket<AgentRelayHandler>
    ) {
        self.hello = hello
        self.orders = orders
        self.socket = socket
    }

    /// Takes over the socket and waits for the guardian's hello.
    /// - Parameters:
    ///   - fileDescriptor: a connected unix socket, 0 in an agent started by ``Guardian``; owned from now on.
    ///   - heartbeat: the time between two signs of life.
    public static func connect(
        fileDescriptor: Int32 = 0, eventLoop: any EventLoop, heartbeat: Duration = .milliseconds(100),
        timeout: Duration = .seconds(5)
    ) async throws(Failure) -> AgentRelay {
        _ = clx_ignore_sigpipe()
        let code = clx_set_nonblocking(fileDescriptor)
        guard code == 0 else { throw Failure(detail: "descriptor \(fileDescriptor) is not open") }
        let promise = eventLoop.makePromise(of: JSONValue.self)
        let (orders, order) = AsyncStream.makeStream(of: AgentOrder.self)
        do {
            let socket = try await ConnectedSocket.open(fileDescriptor, eventLoop: eventLoop) {
                AgentRelayHandler(hello: promise, heartbeat: TimeAmount(heartbeat)) { wish in
                    order.yield(wish)
                    if wish == .guardianGone { order.finish() }
                }
            }
            eventLoop.scheduleTask(in: TimeAmount(timeout)) { promise.fail(Failure(detail: "it says no hello")) }
            let hello = try await promise.futureResult.get().decoded(as: GuardianHello.self)
            return AgentRelay(hello: hello, orders: orders, socket: socket)
        } catch let failure as Failure {
            throw failure
        } catch {
            promise.fail(error)
            throw Failure(detail: "\(error)")
        }
    }

    public func execute(
        _ name: String, arguments: JSONValue?, oob: Bool, timeout: Duration
    ) async throws(QMPError) -> JSONValue {
        let command = QMPCommand(name, arguments: arguments, outOfBand: oob)
        let result: Result<JSONValue, QMPError> = await withCheckedContinuation { continuation in
            socket.onLoop { handler in
                handler.submit(command, timeout: timeout) { continuation.resume(returning: $0) }
            }
        }
        return try result.get()
    }

    public var events: AsyncStream<QMPEvent> {
        let (stream, continuation) = AsyncStream.makeStream(
            of: QMPEvent.self, bufferingPolicy: .bufferingNewest(1024))
        socket.onLoop { [socket] relay in
            let token = relay.observeEvents(continuation)
            continuation.onTermination = { _ in
                socket.channel.eventLoop.execute { socket.handler.value.removeObserver(token) }
            }
        }
        return stream
    }

    /// Says that the agent is done and has stopped using the guest; returns when that was sent. Then wait with
    /// ``waitForLeave(limit:)`` and exit.
    /// - Parameters:
    ///   - exitCode: 0 when all went as wished.
    ///   - lastCommit: when the last checkpoint was committed; nil when none was.
    public func bye(reason: String, exitCode: Int32, lastCommit: Moment? = nil) async {
        let message = RelayMessage.bye(
            reason: reason, exitCode: exitCode, lastCommit: lastCommit.map { Int64(clamping: $0.nanoseconds) })
        let promise = socket.channel.eventLoop.makePromise(of: Void.self)
        socket.onLoop { $0.sendBye(message, promise: promise) }
        try? await promise.futureResult.get()
    }

    /// Waits, behind ``bye(reason:exitCode:lastCommit:)``, until the guardian has restored the guest: until then QEMU's
    /// requests are answered. Returns, too, when the guardian is gone, or after `limit`.
    public func waitForLeave(limit: Duration = .seconds(1)) async {
        let clock = ContinuousClock()
        let deadline = clock.now + limit
        while clock.now < deadline {
            let isOver: Bool = await withCheckedContinuation { continuation in
                socket.onLoop { continuation.resume(returning: $0.mayLeave || $0.closed) }
            }
            if isOver { return }
            try? await clock.sleep(for: .milliseconds(3))
        }
    }

    /// Whether the connection to the guardian has ended.
    public var guardianIsGone: Bool {
        get async {
            await withCheckedContinuation { continuation in
                socket.onLoop { continuation.resume(returning: $0.closed) }
            }
        }
    }

    /// For an agent whose guardian died: opens the monitor and restores the guest as the guardian would have done.
    /// - Parameter keepsStopped: whether somebody else than we has stopped the guest.
    /// - Returns: nil when the monitor cannot be opened; the reason was logged.
    public func restoreWithoutGuardian(
        keepsStopped: Bool = false, eventLoop: any EventLoop, log: Logger
    ) async -> GuestRestoration.Report? {
        do {
            let client = try await QMPClient.connect(path: hello.qmpPath, eventLoop: eventLoop)
            defer { client.close() }
            var restoration = GuestRestoration(
                qmp: client, outOfBand: client.outOfBand, saved: hello.saved, log: log)
            restoration.keepsStopped = keepsStopped
            return await restoration.run(nbdNodes: [], mirrorsAreAnswered: true)
        } catch {
            log.error("the guest cannot be restored", metadata: ["error": "\(error)"])
            return nil
        }
    }
}
