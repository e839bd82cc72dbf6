import Checkpointer
import CLinux
import Glibc
import Link
import Logging
import NIOCore
import NIOPosix
import Units

/// Listens for primaries and leads each through hello to its replica.
struct LinkServer {
    typealias Inbound = NIOAsyncChannel<LinkFrame, ByteBuffer>

    /// Bytes taken in before the primary is told so.
    private static let creditStep: UInt64 = 1 << 20
    /// Nanoseconds after which the primary is told all the same, so that it knows how far behind we are.
    private static let creditInterval: UInt64 = 100_000_000

    let group: any EventLoopGroup
    /// Nil: clear text.
    let tls: LinkTLS?
    let log: Logger
    let lobby = LinkLobby()
    /// A peer that has not come as far as hello after so long is dropped, whatever it is at.
    var helloTimeout = TimeAmount.seconds(10)
    /// Finds or makes the replica of a name.
    let replica: @Sendable (Hello) async throws -> GuestReplica

    func run(address: Address, ready: @Sendable (any Channel) -> Void) async throws {
        let bootstrap = ServerBootstrap(group: group)
            .serverChannelOption(.socketOption(.so_reuseaddr), value: 1)
            .childChannelOption(.recvAllocator, value: FixedSizeRecvByteBufferAllocator(capacity: 256 << 10))
        let server: NIOAsyncChannel<Inbound, Never>
        do {
            switch address.place {
            case .unix(let path):
                try UnixSocketPath.clear(path)
                server = try await bootstrap.bind(unixDomainSocketPath: path, childChannelInitializer: prepare)
                chmod(path, 0o600)
            case .tcp(let host, let port):
                server =
                    try await bootstrap
                    .childChannelOption(.tcpOption(.tcp_nodelay), value: 1)
                    .bind(host: host, port: port, childChannelInitializer: prepare)
            }
        } catch {
            throw CannotListen(description: "\(address) cannot be listened on: \(error); say another --listen address")
        }
        ready(server.channel)
        try await withThrowingDiscardingTaskGroup { tasks in
            try await server.executeThenClose { links in
                for try await link in links {
                    tasks.addTask { await serve(link) }
                }
            }
        }
    }

    private struct CannotListen: Error, CustomStringConvertible {
        let description: String
    }

    @Sendable
    private func prepare(_ channel: any Channel) -> EventLoopFuture<Inbound> {
        channel.eventLoop.makeCompletedFuture {
            try LinkPipeline.secondary(channel, tls: tls)
            return try NIOAsyncChannel(
                wrappingChannelSynchronously: channel,
                configuration: .init(
                    backPressureStrategy: .init(lowWatermark: 16, highWatermark: 64),
                    isOutboundHalfClosureEnabled: false))
        }
    }

    private func serve(_ link: Inbound) async {
        let peer = link.channel.remoteAddress.map { "\($0)" } ?? "unix socket"
        do {
            try await link.executeThenClose { inbound, _ in
                var frames = inbound.makeAsyncIterator()
                do {
                    guard let hello = try await greeted(&frames, link.channel, peer) else { return }
                    let pulse = try? await link.channel.pipeline.handler(type: LinkPulse.self).get()
                    let session = LinkSession(label: hello.label, channel: link.channel, pulse: pulse)
                    let replica = try await self.replica(hello)
                    let welcome = try await replica.open(hello, session: session)
                    session.send(welcome, generation: welcome.generation)
                    await follow(&frames, session, replica, welcome, link.channel)
                } catch let refuse as Refuse {
                    log.warning("primary refused", metadata: ["peer": "\(peer)", "reason": "\(refuse.message)"])
                    LinkSession(label: peer, channel: link.channel).send(refuse, generation: Generation(0))
                    try await Task.sleep(for: .milliseconds(100))
                }
            }
        } catch let refused as TLSRefused {
            log.warning("primary refused", metadata: ["peer": "\(peer)", "reason": "\(refused)"])
        } catch {
            log.warning("link dropped", metadata: ["peer": "\(peer)", "reason": "\(error)"])
        }
    }

    /// Waits for hello, for a time and in bounded company. Nil when the peer leaves without one or was dropped.
    private func greeted(
        _ frames: inout NIOAsyncChannelInboundStream<LinkFrame>.AsyncIterator, _ channel: any Channel, _ peer: String
    ) async throws -> Hello? {
        let visitor = lobby.enter(channel)
        let deadline = channel.eventLoop.scheduleTask(in: helloTimeout) { [helloTimeout] in
            visitor.drop("no hello has come within \(helloTimeout.nanoseconds / 1_000_000_000) s")
        }
        defer {
            deadline.cancel()
            lobby.leave(visitor)
        }
        let hello: Hello?
        do {
            hello = try await Self.hello(&frames)
        } catch let error where !(error is Refuse) && visitor.dropped != nil {
            hello = nil
        }
        if let hello {
            // Not awaited: a door that is closing stays.
            channel.pipeline.removeHandler(name: LinkDoor.name, promise: nil)
            return hello
        }
        if let reason = visitor.dropped {
            log.warning("link dropped", metadata: ["peer": "\(peer)", "reason": "\(reason)"])
        }
        return nil
    }

    /// The first word of a primary; nil when it leaves without one.
    private static func hello(
        _ frames: inout NIOAsyncChannelInboundStream<LinkFrame>.AsyncIterator
    ) async throws -> Hello? {
        let first: LinkFrame
        do {
            guard let next = try await frames.next() else { return nil }
            first = next
        } catch LinkError.unsupportedVersion(let version) {
            throw otherVersion(UInt16(version))
        }
        guard first.kind == .hello else {
            throw Refuse(code: .protocol, message: "the first frame is hello, not \(first.kind)")
        }
        let hello = try first.withPayload { bytes in try Hello.decode(bytes) }
        guard hello.protocolVersion == UInt16(FrameHeader.version) else { throw otherVersion(hello.protocolVersion) }
        return hello
    }

    private static func otherVersion(_ version: UInt16) -> Refuse {
        Refuse(
            code: .version,
            message: "the primary speaks link version \(version), this is \(FrameHeader.version); use the same "
                + "release on both hosts")
    }

    /// Takes in frames until the link or the replica ends it.
    private func follow(
        _ frames: inout NIOAsyncChannelInboundStream<LinkFrame>.AsyncIterator, _ session: LinkSession,
        _ replica: GuestReplica, _ welcome: Welcome, _ channel: any Channel
    ) async {
        let heartbeat = channel.eventLoop.scheduleRepeatedTask(
            initialDelay: .zero, delay: .nanoseconds(Int64(Heartbeats.interval))
        ) { _ in
            session.send(
                Heartbeat(counter: 0, sentAt: MonotonicClock.now()), generation: welcome.generation)
            switch session.beat() {
            case .fell: Task { await replica.primaryFellSilent(session) }
            case .broken: Task { await replica.primaryHeard(session) }
            case nil: break
            }
        }
        let lateness = channel.eventLoop.scheduleRepeatedTask(initialDelay: .seconds(1), delay: .seconds(1)) { _ in
            Task { await replica.noteLateness() }
        }
        let telling = Task { await tellDigests(session, replica, welcome) }
        var tellingRam: Task<Void, Never>?
        defer {
            heartbeat.cancel()
            lateness.cancel()
            telling.cancel()
            tellingRam?.cancel()
        }
        var consumed: UInt64 = 0
        var told: UInt64 = 0
        var toldAt = MonotonicClock.now()
        var reason = "the link was closed"
        var ending = PrimaryWatch.Ending.lost(.disconnected)
        do {
            while let frame = try await Self.next(&frames) {
                session.setBusy(true)
                let goesOn = try await replica.handle(frame, from: session)
                session.setBusy(false)
                guard goesOn else { break }
                if frame.kind == .ramLayout { tellingRam = Task { await tellKnown(session, replica, welcome) } }
                consumed += UInt64(frame.header.frameLength)
                let now = MonotonicClock.now()
                if consumed - told >= Self.creditStep || frame.kind == .seal
                    || now.nanoseconds(since: toldAt) >= Self.creditInterval
                {
                    told = consumed
                    toldAt = now
                    session.send(Credit(consumedTotal: consumed), generation: welcome.generation)
                }
            }
        } catch is CancellationError {
            // Nobody is refused: the primary waits until somebody is here again.
            reason = "the secondary was stopped"
            ending = .orderly
        } catch let lost as LinkLost {
            reason = lost.description
            log.warning("session ended", metadata: ["guest": "\(replica.name)", "reason": "\(reason)"])
        } catch {
            // It is this side that does not go on.
            ending = .orderly
            reason = "\(error)"
            log.warning("session ended", metadata: ["guest": "\(replica.name)", "reason": "\(reason)"])
            session.send(
                Refuse(code: Self.code(of: error), message: String(reason.prefix(1024))), generation: welcome.generation
            )
            try? await Task.sleep(for: .milliseconds(50))
        }
        await replica.close(session, reason: reason, ending: ending)
    }

    /// The connection failed, with nothing wrong in what came over it.
    private struct LinkLost: Error, CustomStringConvertible {
        let description: String
    }

    private static func next(
        _ frames: inout NIOAsyncChannelInboundStream<LinkFrame>.AsyncIterator
    ) async throws -> LinkFrame? {
        do {
            return try await frames.next()
        } catch let error where error is IOError || error is ChannelError || error is TLSFailure.Interrupted {
            throw LinkLost(description: "the link was lost: \(error)")
        }
    }

    /// Tells the primary what the disks hold, no faster than the link takes it. Between two frames the replica hears
    /// what the primary says.
    private func tellDigests(_ session: LinkSession, _ replica: GuestReplica, _ welcome: Welcome) async {
        do {
            while !Task.isCancelled, let digests = try await replica.digests(for: session) {
                try await session.deliver(digests, generation: welcome.generation)
            }
        } catch {
            guard session.isConnected else { return }
            let reason = "the disks could not be read: \(error)"
            log.warning("session ended", metadata: ["guest": "\(replica.name)", "reason": "\(reason)"])
            let refuse = Refuse(code: Self.code(of: error), message: String(reason.prefix(1024)))
            try? await session.deliver(refuse, generation: welcome.generation)
            await replica.close(session, reason: reason)
            session.hangUp()
        }
    }

    /// The same of the RAM cache.
    private func tellKnown(_ session: LinkSession, _ replica: GuestReplica, _ welcome: Welcome) async {
        do {
            while !Task.isCancelled, let known = try await replica.known(for: session) {
                try await session.deliver(known, generation: welcome.generation)
            }
        } catch {
            guard session.isConnected else { return }
            log.warning("session ended", metadata: ["guest": "\(replica.name)", "reason": "\(error)"])
            session.hangUp()
        }
    }

    private static func code(of error: any Error) -> Refuse.Code {
        if error is LinkError || error is LinkFault { return .protocol }
        if StorageErrors.isNoSpace(error) { return .storeFull }
        return .internal
    }
}
