import CLinux
import Glibc
import Logging
import NIOCore
import NIOPosix
import QEMU
import Synchronization
import Testing

@testable import Node

/// The agent's end of the socketpair against the guardian's.
@Suite struct AgentRelayTests {
    private let loop: any EventLoop = MultiThreadedEventLoopGroup.singleton.next()

    /// A guardian's handler and an agent's relay, connected.
    private struct Pair {
        let guest: FakeGuest
        let client: QMPClient
        let guardian: any Channel
        let handler: NIOLoopBound<GuardianRelayHandler>
        let relay: AgentRelay
        let reports: AsyncStream<GuardianRelayHandler.Report>

        func end() async {
            guardian.close(promise: nil)
            client.close()
            await guest.stop()
        }
    }

    /// The guardian's half, and the descriptor for an agent.
    private struct Half {
        let guest: FakeGuest
        let client: QMPClient
        let channel: any Channel
        let handler: NIOLoopBound<GuardianRelayHandler>
        let agentDescriptor: CInt
        let reports: AsyncStream<GuardianRelayHandler.Report>
    }

    private func half() async throws -> Half {
        let guest = try await FakeGuest.start(eventLoop: loop)
        let client = try await QMPClient.connect(path: guest.path, eventLoop: loop)
        let monitor: NIOLoopBound<QMPConnection> = await withCheckedContinuation { continuation in
            client.onLoop { continuation.resume(returning: NIOLoopBound($0, eventLoop: loop)) }
        }
        var ends: [CInt] = [-1, -1]
        #expect(clx_socket_pair(&ends) == 0)
        let (reports, report) = AsyncStream.makeStream(of: GuardianRelayHandler.Report.self)
        let socket = try await ConnectedSocket.open(ends[0], eventLoop: loop) {
            GuardianRelayHandler(monitor: monitor.value, silence: .milliseconds(100), firstSign: .seconds(2)) {
                report.yield($0)
            }
        }
        return Half(
            guest: guest, client: client, channel: socket.channel, handler: socket.handler,
            agentDescriptor: ends[1], reports: reports)
    }

    private func pair(heartbeat: Duration = .milliseconds(20)) async throws -> Pair {
        let half = try await half()
        let hello = GuardianHello(
            qmpPath: half.guest.path, process: GuestProcess(pid: 1, arguments: ["qemu", "-m", "64"]),
            version: half.client.greeting.version, outOfBand: true,
            saved: SavedGuestState(wasRunning: true, capabilities: ["x-colo": false], parameters: ["a": .max]))
        let json = try JSONValue(encoding: hello)
        loop.execute { half.handler.value.send(.hello(json)) }
        let relay = try await AgentRelay.connect(
            fileDescriptor: half.agentDescriptor, eventLoop: loop, heartbeat: heartbeat)
        #expect(relay.hello == hello)
        return Pair(
            guest: half.guest, client: half.client, guardian: half.channel, handler: half.handler, relay: relay,
            reports: half.reports)
    }

    @Test func commandsErrorsAndEventsPassThrough() async throws {
        let pair = try await pair()
        let events = pair.relay.events
        #expect(try await pair.relay.execute("query-status")["running"] == true)
        do {
            try await pair.relay.execute("no-such-command")
            Issue.record("accepted")
        } catch {
            guard case .refused("no-such-command", let reason) = error else {
                Issue.record("\(error)")
                return
            }
            #expect(reason.isUnknownCommand)
        }
        pair.guest.state.withLock { $0.unanswered = ["query-chardev"] }
        await #expect(throws: QMPError.timedOut(command: "query-chardev", after: .milliseconds(30))) {
            try await pair.relay.execute("query-chardev", timeout: .milliseconds(30))
        }
        pair.guest.send(event: "STOP")
        for await event in events {
            #expect(event == QMPEvent(name: "STOP", seconds: 1, microseconds: 2))
            break
        }
        try await pair.relay.execute("blockdev-add", ["driver": "nbd", "node-name": "colo-blk-nbd-3"])
        let nodes = try await loop.submit { pair.handler.value.nbdNodes }.get()
        #expect(nodes == ["colo-blk-nbd-3"])
        await pair.end()
    }

    @Test func aBeatingAgentIsNotSilentAndItsByeArrives() async throws {
        let pair = try await pair()
        try await Task.sleep(for: .milliseconds(250))
        await pair.relay.bye(reason: "done", exitCode: 4)
        for await report in pair.reports {
            #expect(report == .bye(reason: "done", exitCode: 4))
            break
        }
        await pair.end()
    }

    @Test func anAgentThatDoesNotBeatIsSilent() async throws {
        let pair = try await pair(heartbeat: .seconds(60))
        for await report in pair.reports {
            #expect(report == .silent)
            break
        }
        await pair.end()
    }

    @Test func ordersReachTheAgentAndSoDoesTheGuardiansEnd() async throws {
        let pair = try await pair()
        loop.execute { pair.handler.value.send(.detach(reason: "enough")) }
        loop.execute { pair.handler.value.stopServing() }
        var orders: [AgentOrder] = []
        for await order in pair.relay.orders {
            orders.append(order)
            guard order != .guardianGone else { break }
            await #expect(throws: QMPError.self) { try await pair.relay.execute("query-status") }
            pair.guardian.close(promise: nil)
        }
        #expect(orders == [.detach(reason: "enough"), .guardianGone])
        await #expect(throws: QMPError.closed(command: "cont", reason: "the guardian is gone")) {
            try await pair.relay.execute("cont")
        }
        await pair.end()
    }

    @Test func anAgentThatOutlivesItsGuardianRestoresTheGuestItself() async throws {
        let pair = try await pair()
        pair.guest.state.withLock { state in
            (state.running, state.status, state.migration) = (false, "colo", "colo")
            state.nodes = ["colo-blk-nbd-0"]
        }
        pair.client.close()
        pair.guardian.close(promise: nil)
        var log = Logger(label: "test")
        log.logLevel = .critical
        let report = await pair.relay.restoreWithoutGuardian(eventLoop: loop, log: log)
        #expect(report?.guestRunning == true)
        #expect(pair.guest.state.withLock { $0.running && $0.nodes.isEmpty })
        await pair.end()
    }

    @Test(arguments: [
        "hello\n", #"{"hello":1}"#, #"{"what":1}"#, #"{"qmp":{"execute":"stop","id":1,"timeout":-1}}"#,
    ])
    func nonsenseFromTheAgentIsNamed(line: String) async throws {
        let half = try await half()
        #expect(write(half.agentDescriptor, line, line.utf8.count) == line.utf8.count)
        for await report in half.reports {
            guard case .malformed = report else {
                Issue.record("\(report)")
                break
            }
            break
        }
        #expect(!half.guest.log.contains("stop"))
        close(half.agentDescriptor)
        half.channel.close(promise: nil)
        half.client.close()
        await half.guest.stop()
    }

    @Test func aDescriptorThatIsClosedIsNoGuardian() async {
        await #expect(throws: AgentRelay.Failure.self) {
            try await AgentRelay.connect(fileDescriptor: 999, eventLoop: loop)
        }
    }

    @Test func thisProcessIsReadFromProc() throws {
        let process = try GuestProcess.read(pid: getpid())
        #expect(process.arguments == CommandLine.arguments)
        #expect(process.executable?.hasPrefix("/") == true)
        #expect(process.workingDirectory?.hasPrefix("/") == true)
        #expect(throws: GuestProcess.Unreadable.self) { try GuestProcess.read(pid: .max) }
    }
}
