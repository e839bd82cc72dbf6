import CLinux
import Checkpointer
import Glibc
import Logging
import NIOCore
import NIOPosix
import QEMU
import Synchronization
import Units

/// The small process that holds the guest's monitor while an agent works, and gives the guest back whatever happens.
///
/// A monitor serves one client, and a new one cannot negotiate while QEMU hangs. So the process that cannot hang holds
/// it: the guardian executes the agent's commands, listens to its heartbeat, and restores the guest when the agent
/// dies, falls silent, or is told to go.
public final class Guardian: Sendable {
    public struct Configuration: Sendable {
        /// The guest's monitor (a unix socket).
        public var qmpPath: String
        /// The agent's program and its arguments, without the program's name.
        public var agentExecutable: String
        public var agentArguments: [String]
        /// Added to the inherited environment.
        public var agentEnvironment: [String: String] = [:]
        /// The process that runs the guest, where the monitor's socket was opened by somebody else.
        public var guestPID: Int32?
        /// An agent that says nothing for so long has failed.
        public var silence: Duration = .milliseconds(500)
        /// The same until its first word.
        public var firstSign: Duration = .seconds(5)
        /// What an agent gets to say that it has ended.
        public var grace: Duration = .milliseconds(300)
        /// What it gets to exit from then on. It is told when the guest is restored; one that does not answer the guest's
        /// disks until then is in the way.
        public var patience: Duration = .milliseconds(600)
        /// Memory of its own that an agent may have, in bytes, beside ``agentMemoryPerGuestByte`` times the guest's
        /// RAM: one that has more has run wild, and is ended before the kernel looks for somebody to kill. Nil for no
        /// bound.
        public var agentMemoryMax: UInt64?
        public var agentMemoryPerGuestByte: UInt64 = 1
        /// Whether SIGINT and SIGTERM end the guardianship. The handlers stay in the process.
        public var handlesSignals = true
        /// Whether a guest that another guardian holds, through another monitor, is refused.
        public var claimsGuest = false
        /// Whether the guest's network stays closed when the secondary is lost (``AgentExit``).
        public var closesNetworkOnLoss = false

        public init(qmpPath: String, agentExecutable: String, agentArguments: [String]) {
            self.qmpPath = qmpPath
            self.agentExecutable = agentExecutable
            self.agentArguments = agentArguments
        }
    }

    private enum Incident: Sendable {
        case agent(GuardianRelayHandler.Report)
        case agentEnded(AgentProcess.Ending)
        /// The dead agent's connection has had its time to end.
        case lastWordsOver
        case detachRequested(String)
        case graceOver
        case guestGone(String)
        /// The agent has so many bytes of memory, which is too much.
        case agentTooLarge(UInt64)
    }

    /// Why the restoration begins.
    private struct Cause {
        var reason: String
        var wished: Bool
        var exitCode: Int32?
        /// The agent's last word was a bye: it ends by itself.
        var agentLeaves = false
    }

    private let configuration: Configuration
    private let eventLoop: any EventLoop
    private let log: Logger
    private let incidents: AsyncStream<Incident>
    private let incident: AsyncStream<Incident>.Continuation
    private let commitSaid = Mutex<Moment?>(nil)
    /// Why QEMU ends, if it has said so.
    private let shutdown = Mutex<GuestLife.Cause?>(nil)
    /// Whether a network of the guest was closed when the guardianship began.
    private let foundClosed = Mutex(false)

    /// When the agent's last checkpoint was committed, as it said when it left; nil when it did not, or there was none.
    public var lastCommit: Moment? { commitSaid.withLock { $0 } }

    /// - Parameter eventLoop: carries the monitor and the socketpair; nothing else may block it.
    public init(configuration: Configuration, eventLoop: any EventLoop, log: Logger) {
        self.configuration = configuration
        self.eventLoop = eventLoop
        self.log = log
        (incidents, incident) = AsyncStream.makeStream(of: Incident.self)
    }

    /// Ends the guardianship in order: the agent is told, then the guest is restored. Has an effect once.
    public func requestDetach(reason: String) {
        incident.yield(.detachRequested(reason))
    }

    /// Opens the monitor, starts the agent and returns when the guest is the user's alone again. Call once.
    public func run() async -> GuardianOutcome {
        _ = clx_ignore_sigpipe()
        let signals: SignalWatch?
        let client: QMPClient
        do {
            signals = configuration.handlesSignals ? try await watchSignals() : nil
            client = try await QMPClient.connect(path: configuration.qmpPath, eventLoop: eventLoop)
        } catch {
            return .notStarted(reason: "\(error)")
        }
        defer {
            client.close()
            signals?.stop()
        }
        client.whenClosed { [incident] in incident.yield(.guestGone($0)) }
        client.onLoop { [self] monitor in
            _ = monitor.observeEvents { [self] event in
                guard event.name == "SHUTDOWN" else { return }
                shutdown.withLock { $0 = GuestLife.Cause(event.data["reason"]?.stringValue ?? "") }
            }
        }
        do {
            let claim = try claim(client)
            defer { withExtendedLifetime(claim) {} }
            if configuration.claimsGuest {
                let closes = configuration.closesNetworkOnLoss
                try await GuestRestoration.removeRemains(
                    ofDeadAttachIn: client, keepsNetworkClosed: closes, log: log)
                if closes {
                    let isClosed = try await !NetworkGate.all(in: client).isEmpty
                    foundClosed.withLock { $0 = isClosed }
                }
            }
            let saved = try await SavedGuestState.capture(client)
            return try await attend(client, saved)
        } catch {
            return .notStarted(reason: "\(error)")
        }
    }

    private func claim(_ client: QMPClient) throws(GuestClaim.Taken) -> GuestClaim? {
        guard configuration.claimsGuest, let pid = configuration.guestPID ?? client.peerPID else { return nil }
        return try GuestClaim(pid: pid)
    }

    private func watchSignals() async throws -> SignalWatch {
        try await SignalWatch.start(eventLoop: eventLoop) { [incident] signal in
            incident.yield(.detachRequested(signal == SIGINT ? "interrupted" : "terminated by a signal"))
        }
    }

    private func attend(_ client: QMPClient, _ saved: SavedGuestState) async throws -> GuardianOutcome {
        var ends: [CInt] = [-1, -1]
        let code = clx_socket_pair(&ends)
        guard code == 0 else { throw IOError(errnoCode: -code, reason: "socketpair") }
        let relay: Relay
        do {
            relay = try await openRelay(client, descriptor: ends[0])
        } catch {
            _ = Glibc.close(ends[1])
            throw error
        }
        defer { relay.channel.close(promise: nil) }
        let hello = try JSONValue(encoding: hello(client, saved))
        send(.hello(hello), relay)
        let agent = AgentProcess()
        agent.start(
            executable: configuration.agentExecutable, arguments: configuration.agentArguments,
            environment: configuration.agentEnvironment, standardInput: ends[1]
        ) { [incident] in incident.yield(.agentEnded($0)) }
        let memoryWatch = await watchMemory(of: agent, client)
        let cause = await watch(relay, agent)
        memoryWatch?.cancel()
        return await finish(cause, client, saved, relay, agent)
    }

    // MARK: Watching

    private static let memoryInterval = TimeAmount.milliseconds(250)

    private func watchMemory(of agent: AgentProcess, _ client: QMPClient) async -> RepeatedTask? {
        guard let beside = configuration.agentMemoryMax,
            let answer = try? await client.execute("query-memory-size-summary")
        else { return nil }
        let guest = (answer["base-memory"]?.uintValue ?? 0) + (answer["plugged-memory"]?.uintValue ?? 0)
        let most = guest * configuration.agentMemoryPerGuestByte + beside
        return eventLoop.scheduleRepeatedTask(initialDelay: Self.memoryInterval, delay: Self.memoryInterval) {
            [incident] _ in
            if let bytes = agent.ownBytes, bytes > most { incident.yield(.agentTooLarge(bytes)) }
        }
    }

    /// Waits for the end of the guardianship. Nil: the guest has ended.
    private func watch(_ relay: Relay, _ agent: AgentProcess) async -> Cause? {
        var wish: String?
        var ended: AgentProcess.Ending?
        for await next in incidents {
            switch next {
            case .guestGone(let reason):
                log.notice("the guest has ended", metadata: ["reason": "\(reason)"])
                return nil
            case .detachRequested(let reason):
                guard wish == nil else { continue }
                wish = reason
                log.notice("detaching", metadata: ["reason": "\(reason)"])
                send(.detach(reason: reason), relay)
                eventLoop.scheduleTask(in: TimeAmount(configuration.grace)) { [incident] in
                    incident.yield(.graceOver)
                }
            case .agentTooLarge(let bytes):
                return Cause(
                    reason: "it uses \(ByteText.text(bytes)) of memory, more than it may; please report this",
                    wished: wish != nil)
            case .graceOver:
                return Cause(reason: wish ?? "", wished: true)
            case .agent(.bye(let reason, let code, let commit)):
                commitSaid.withLock { $0 = commit }
                return Cause(
                    reason: wish ?? reason, wished: wish != nil || code == 0, exitCode: code, agentLeaves: true)
            case .agent(.silent):
                return Cause(reason: "no sign of life for \(configuration.silence)", wished: wish != nil)
            case .agent(.malformed(let words)):
                return Cause(reason: "it talks nonsense: \(words)", wished: wish != nil)
            case .agent(.closed):
                if let ended { return death(ended, wish) }
                // How it died is better than that it died; the child's end is known within a millisecond or two.
                agent.kill()
                return Cause(reason: wish ?? "its connection closed", wished: wish != nil)
            case .agentEnded(let ending):
                // Its last words may still be in the socket, and come before the socket's end.
                ended = ending
                eventLoop.scheduleTask(in: .milliseconds(50)) { [incident] in incident.yield(.lastWordsOver) }
            case .lastWordsOver:
                if let ended { return death(ended, wish) }
            }
        }
        return Cause(reason: "the guardian was cancelled", wished: true)
    }

    private func death(_ ending: AgentProcess.Ending, _ wish: String?) -> Cause {
        var cause = Cause(reason: wish ?? "\(ending)", wished: wish != nil, agentLeaves: true)
        if case .exited(let status) = ending { cause.exitCode = status }
        return cause
    }

    /// Restores the guest, sees the agent off, and says how it went.
    private func finish(
        _ cause: Cause?, _ client: QMPClient, _ saved: SavedGuestState, _ relay: Relay, _ agent: AgentProcess
    ) async -> GuardianOutcome {
        if cause?.agentLeaves != true, cause != nil { agent.kill() }
        let nodes = await stopServing(relay)
        let grace = eventLoop.scheduleTask(in: TimeAmount(configuration.patience)) { agent.kill() }
        guard let cause else {
            send(.detach(reason: "the guest has ended"), relay)
            _ = await agent.wait()
            grace.cancel()
            return gone("QEMU closed the monitor")
        }
        log.notice("restoring the guest", metadata: ["reason": "\(cause.reason)"])
        let answers = cause.agentLeaves && agent.isRunning
        var restoration = GuestRestoration(qmp: client, outOfBand: client.outOfBand, saved: saved, log: log)
        restoration.keepsNetworkClosed = keepsNetworkClosed(cause)
        let report = await restoration.run(nbdNodes: nodes, mirrorsAreAnswered: answers)
        // It has answered the mirrors until now.
        send(.detach(reason: "the guest is restored"), relay)
        let ending = await agent.wait()
        grace.cancel()
        log.notice("the guest was restored", metadata: ["report": "\(report)"])
        if report.guestGone { return gone("QEMU closed the monitor while the guest was restored") }
        if cause.wished { return .detached(reason: cause.reason, report) }
        return .agentFailed(reason: explain(cause, ending), exitCode: cause.exitCode ?? status(ending), report)
    }

    private func gone(_ reason: String) -> GuardianOutcome {
        guard let cause = shutdown.withLock({ $0 }), cause.isOrderly else { return .guestGone(reason: reason) }
        return .guestShutOff(reason: cause.words)
    }

    /// Only the loss of a secondary closes a network, or keeps closed what was found so. A wish opens it, and so does a
    /// failure of our own: that we die must not take the guest off the network for good.
    private func keepsNetworkClosed(_ cause: Cause) -> Bool {
        guard configuration.closesNetworkOnLoss, !cause.wished, let code = cause.exitCode else { return false }
        return AgentExit.lossCodes.contains(code) && (lastCommit != nil || foundClosed.withLock { $0 })
    }

    private func explain(_ cause: Cause, _ ending: AgentProcess.Ending?) -> String {
        guard cause.exitCode == nil, let ending else { return cause.reason }
        return cause.reason == "\(ending)" ? cause.reason : "\(cause.reason); \(ending)"
    }

    private func status(_ ending: AgentProcess.Ending?) -> Int32? {
        if case .exited(let code) = ending { return code }
        return nil
    }

    // MARK: Relay

    private typealias Relay = ConnectedSocket<GuardianRelayHandler>

    private func openRelay(_ client: QMPClient, descriptor: CInt) async throws -> Relay {
        let monitor: NIOLoopBound<QMPConnection> = await withCheckedContinuation { continuation in
            client.onLoop { [eventLoop] in
                continuation.resume(returning: NIOLoopBound($0, eventLoop: eventLoop))
            }
        }
        return try await Relay.open(descriptor, eventLoop: eventLoop) { [configuration, incident] in
            GuardianRelayHandler(
                monitor: monitor.value, silence: configuration.silence, firstSign: configuration.firstSign
            ) { incident.yield(.agent($0)) }
        }
    }

    private func send(_ message: RelayMessage, _ relay: Relay) {
        relay.onLoop { $0.send(message) }
    }

    /// Refuses the agent's commands from now on; returns the NBD nodes that it added.
    private func stopServing(_ relay: Relay) async -> Set<String> {
        await withCheckedContinuation { continuation in
            relay.onLoop { handler in
                handler.stopServing()
                continuation.resume(returning: handler.nbdNodes)
            }
        }
    }

    private func hello(_ client: QMPClient, _ saved: SavedGuestState) -> GuardianHello {
        var hello = GuardianHello(
            qmpPath: configuration.qmpPath, version: client.greeting.version, outOfBand: client.outOfBand,
            saved: saved)
        guard let pid = configuration.guestPID ?? client.peerPID else {
            hello.processProblem = "the kernel does not say which process holds the monitor; give its pid"
            return hello
        }
        do {
            hello.process = try GuestProcess.read(pid: pid)
        } catch {
            hello.processProblem = "\(error)"
        }
        return hello
    }
}
