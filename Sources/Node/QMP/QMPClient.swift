import CLinux
import Glibc
import Logging
import NIOCore
import NIOPosix
import QEMU

/// A client of one QEMU monitor over its unix socket (QMP, out-of-band commands negotiated where QEMU offers them).
///
/// May be used from any thread; its work happens on the event loop given to ``connect(path:eventLoop:greetingTimeout:)``.
/// Call ``close()`` when done: a monitor serves one client, and nobody else gets in before that.
public final class QMPClient: QMPExecutor {
    public let path: String
    public let greeting: QMPGreeting
    /// The process that listens at the socket: QEMU, unless a manager opened the socket and passed it on. Nil when the
    /// kernel does not say.
    public let peerPID: Int32?
    public let peerUID: UInt32?
    /// Whether out-of-band commands may be used.
    public let outOfBand: Bool

    private let socket: ConnectedSocket<QMPConnection>

    private init(
        path: String, greeting: QMPGreeting, peerPID: Int32?, peerUID: UInt32?,
        socket: ConnectedSocket<QMPConnection>
    ) {
        self.path = path
        self.greeting = greeting
        self.peerPID = peerPID
        self.peerUID = peerUID
        self.outOfBand = greeting.offersOutOfBand
        self.socket = socket
    }

    /// Connects, waits for the greeting and negotiates.
    /// - Parameters:
    ///   - path: the monitor's unix socket.
    ///   - eventLoop: where the connection lives; must outlive the client.
    ///   - greetingTimeout: a monitor that is silent for so long belongs to somebody else.
    public static func connect(
        path: String, eventLoop: any EventLoop, greetingTimeout: Duration = .seconds(2)
    ) async throws(QMPConnectError) -> QMPClient {
        let descriptor = try openSocket(path)
        let pid = clx_peer_pid(descriptor)
        let uid = clx_peer_uid(descriptor)
        let promise = eventLoop.makePromise(of: QMPGreeting.self)
        do {
            let socket = try await ConnectedSocket.open(descriptor, eventLoop: eventLoop) {
                QMPConnection(greeting: promise)
            }
            eventLoop.scheduleTask(in: TimeAmount(greetingTimeout)) { socket.handler.value.greetingOverdue() }
            let greeting = try await promise.futureResult.get()
            let client = QMPClient(
                path: path, greeting: greeting, peerPID: pid > 0 ? Int32(exactly: pid) : nil,
                peerUID: uid >= 0 ? UInt32(exactly: uid) : nil, socket: socket)
            try await client.negotiate(greetingTimeout)
            return client
        } catch let error as QMPConnectError {
            throw QMPConnectError(path: path, kind: error.kind)
        } catch {
            promise.fail(error)
            throw QMPConnectError(path: path, kind: .system("\(error)"))
        }
    }

    private static func openSocket(_ path: String) throws(QMPConnectError) -> CInt {
        let kind = clx_file_kind(path)
        guard kind > 0 else { throw QMPConnectError(path: path, kind: reason(-kind)) }
        guard kind == 1 else { throw QMPConnectError(path: path, kind: .notSocket) }
        let descriptor = clx_connect_unix(path)
        guard descriptor >= 0 else { throw QMPConnectError(path: path, kind: reason(-descriptor)) }
        return descriptor
    }

    private static func reason(_ code: CInt) -> QMPConnectError.Kind {
        switch code {
        case ENOENT, ENOTDIR: return .missing
        case EACCES, EPERM: return .permission
        case ECONNREFUSED: return .refused
        case ENAMETOOLONG: return .pathTooLong
        // The backlog is full: others wait for the monitor already.
        case EAGAIN: return .busy
        default: return .system(String(cString: strerror(code)))
        }
    }

    private func negotiate(_ timeout: Duration) async throws(QMPConnectError) {
        let enable: JSONValue? = outOfBand ? ["enable": ["oob"]] : nil
        do {
            try await execute("qmp_capabilities", enable, timeout: timeout)
        } catch {
            close()
            throw QMPConnectError(path: path, kind: .negotiation("\(error)"))
        }
    }

    public func execute(
        _ name: String, arguments: JSONValue?, oob: Bool, timeout: Duration
    ) async throws(QMPError) -> JSONValue {
        let result: Result<JSONValue, QMPError> = await withCheckedContinuation { continuation in
            onLoop { connection in
                connection.submit(name, arguments: arguments, oob: oob, timeout: TimeAmount(timeout)) {
                    continuation.resume(returning: $0)
                }
            }
        }
        return try result.get()
    }

    public var events: AsyncStream<QMPEvent> {
        let (stream, continuation) = AsyncStream.makeStream(
            of: QMPEvent.self, bufferingPolicy: .bufferingNewest(1024))
        onLoop { [socket] handler in
            let token = handler.observeEvents { continuation.yield($0) }
            handler.observeClose { _ in continuation.finish() }
            continuation.onTermination = { _ in
                socket.channel.eventLoop.execute { socket.handler.value.removeObserver(token) }
            }
        }
        return stream
    }

    /// Calls `body` on the event loop once the connection has ended.
    func whenClosed(_ body: @escaping @Sendable (String) -> Void) {
        onLoop { $0.observeClose(body) }
    }

    /// Runs `body` with the handler on its event loop, at once when called there.
    func onLoop(_ body: @escaping @Sendable (QMPConnection) -> Void) {
        socket.onLoop(body)
    }

    /// Gives the monitor back. Commands that wait fail as closed.
    public func close() {
        socket.channel.close(promise: nil)
    }
}
