import Checkpointer
import Glibc
import Link
import Logging
import NBD
import NIOCore
import NIOPosix
import QEMU
import Synchronization
import Units

/// One attachment from doctor to detach: sets everything up over QMP and waits for a reason to stop.
final class AgentSession: Sendable {
    struct Refused: Error, CustomStringConvertible {
        let description: String
    }

    let options: AttachOptions
    let relay: AgentRelay
    let loop: any EventLoop
    let log: Logger
    let progress: Progress
    private let endings: AsyncStream<AgentEnding>
    /// Where QEMU's sockets are, to be removed at the end.
    private let sockets = Mutex<SocketDirectory?>(nil)
    /// The link, for the farewell.
    private let link = Mutex<(channel: any Channel, generation: Generation)?>(nil)
    /// Made with the link; for the end.
    let core = Mutex<NIOLoopBound<AgentCore>?>(nil)
    let end: AsyncStream<AgentEnding>.Continuation
    private let newestCommit = Mutex<Moment?>(nil)

    /// QEMU has said that it ends, or its guest, and why.
    let shutdownSeen = Mutex<GuestLife.Cause?>(nil)
    /// How often the machine was to be compared with the replica's.
    let comparisons = Mutex(0)

    /// When a checkpoint of this session was committed last; nil when none was.
    var lastCommit: Moment? { newestCommit.withLock { $0 } }

    init(options: AttachOptions, relay: AgentRelay, loop: any EventLoop, log: Logger) {
        self.options = options
        self.relay = relay
        self.loop = loop
        self.log = log
        progress = Progress(outageSince: options.lastCommit.map { Moment(nanoseconds: $0) })
        (endings, end) = AsyncStream.makeStream(of: AgentEnding.self)
    }

    /// Runs until the first reason to end, whoever has it.
    func run() async -> AgentEnding {
        let orders = Task { [relay, end] in
            for await order in relay.orders {
                switch order {
                case .detach(let reason): end.yield(.detach(reason))
                case .guardianGone: end.yield(.guardianGone)
                }
            }
        }
        let setup = Task { [self] in
            do {
                try await protect()
            } catch let refused as Refused {
                end.yield(.refused(refused.description))
            } catch let refuse as Refuse {
                let words = "the secondary refuses: \(refuse.message)"
                end.yield(refuse.code.mayPass ? .secondaryAway(words) : .secondaryRefused(refuse.message))
            } catch let refused as TLSRefused {
                end.yield(.linkRefused(refused.description))
            } catch let failed as AgentLink.Failed {
                end.yield(.secondaryAway(failed.description))
            } catch {
                end.yield(.failed("\(error)"))
            }
        }
        var ending = AgentEnding.guardianGone
        for await first in endings {
            ending = first
            break
        }
        orders.cancel()
        setup.cancel()
        progress.finish()
        await stop(ending)
        await settleNetwork()
        await farewell(ending)
        sockets.withLock { $0 }?.remove()
        return ending
    }

    // MARK: Setting up

    private func protect() async throws {
        let guest = try await ProtectedGuest.take(relay: relay, options: options, log: log)
        let directory = try SocketDirectory(forProcess: relay.hello.process?.pid)
        sockets.withLock { $0 = directory }
        let address = try await secondaryAddress(directory, guest)
        let core = try await connect(to: address, guest: guest)
        self.core.withLock { $0 = core }
        try await loop.submit { [self] in
            core.value.openDiskReaders = { [self] done in openDiskReaders(guest, directory, done) }
            core.value.closeDiskReaders = { [self] in Task { await stopDiskReaders(guest) } }
        }.get()
        try await watchEvents(core, guest)
        try await compareDisks(guest, core)
        try await mirrorDisks(guest, core, directory)
        try await holdNetwork(guest, core, directory)
        try await waitUntilItRuns(core)
        try await startMigration(guest, core, directory)
        await showProgress(core, guest)
    }

    /// The secondary's address; with `--store`, that of one which runs inside this process.
    private func secondaryAddress(_ directory: SocketDirectory, _ guest: ProtectedGuest) async throws -> Address {
        if let text = options.secondary { return try Address(parsing: text) }
        guard let store = options.store else { throw Refused(description: "neither a secondary nor a store was named") }
        let daemon: SecondaryDaemon
        do {
            let seeds = try options.seeds.map { text in try DiskSeed(parsing: text, guest: guest.name) }
            var sizes: [String: UInt64] = [:]
            for seed in seeds { sizes[seed.disk] = try seed.open().size }
            let disks = guest.disks.map { ($0.id, $0.size) }
            if let problem = DiskSeed.mismatch(seeds: sizes, disks: disks) { throw Refused(description: problem) }
            daemon = try SecondaryDaemon.open(
                options: .init(store: store, proof: true, qemu: nil, seeds: seeds), log: log)
            try await daemon.plantSeeds { [progress] in progress.show($0) }
        } catch {
            throw Refused(description: "\(error)")
        }
        let address = Address.unix(directory.path("link.sock"))
        let (ready, isReady) = AsyncStream.makeStream(of: Void.self)
        Task.detached { [end] in
            do {
                try await daemon.run(listen: address) { isReady.finish() }
            } catch {
                isReady.finish()
                end.yield(.failed("the store's own secondary ended: \(error)"))
            }
        }
        for await _ in ready {}
        return address
    }

    private func connect(to address: Address, guest: ProtectedGuest) async throws -> NIOLoopBound<AgentCore> {
        var random = SystemRandomNumberGenerator()
        let hello = Hello(
            protocolVersion: UInt16(FrameHeader.version), guest: guest.name, session: Identifier(using: &random),
            durability: options.durable ? .disk : .memory, label: guest.label,
            disks: guest.disks.map { Hello.Disk(id: $0.id, size: $0.size) }, generation: Generation(0),
            agentVersion: ColoBlkVersion.text)
        let tls = try options.tls.map { files throws(TLSRefused) in
            try LinkTLS.primary(files, to: address, name: options.tlsName)
        }
        let connected = try await AgentLink.connect(to: address, hello: hello, tls: tls, loop: loop)
        let settings = AgentCore.Settings(
            generation: connected.welcome.generation, firstEpoch: connected.welcome.firstEpoch,
            intervalNanoseconds: options.intervalNanoseconds, budgetBytes: UInt64(options.budgetBytes),
            useDelta: options.useDelta, holdTargetNanoseconds: options.holdTargetNanoseconds,
            pauseShareMax: options.pauseShareMax, bandwidth: options.bandwidth, diskSizes: guest.disks.map(\.size))
        progress.say(
            "secondary \(address): replica '\(guest.name)', generation \(settings.generation), "
                + (connected.welcome.lastCommitted == .none
                    ? "new" : "last checkpoint \(connected.welcome.lastCommitted)"))
        link.withLock { $0 = (connected.channel, settings.generation) }
        let machine = connected.machine
        let identity = guest.identityJSON
        return try await loop.submit { [self] in
            let core = AgentCore(
                settings: settings, machine: machine, link: connected.channel, loop: loop, log: log)
            core.onEnd = { [end] reason in end.yield(reason) }
            core.onCommit = { [self] moment in newestCommit.withLock { $0 = moment } }
            let taken = NIOLoopBound(core, eventLoop: loop)
            core.triggerCheckpoint = { [self] in triggerCheckpoint(taken) }
            core.locateGuestMemory = { [self] done in locateGuestMemory(done) }
            connected.handler.value.deliver(to: core, on: connected.channel)
            core.startHeartbeat()
            core.sendIdentity(identity)
            core.flush()
            return NIOLoopBound(core, eventLoop: loop)
        }.get()
    }

    /// QEMU takes a checkpoint when its interval is set anew. The interval itself is an hour: we keep the time.
    static let quietCheckpointDelayMilliseconds: Int64 = 3_600_000

    private func triggerCheckpoint(_ core: NIOLoopBound<AgentCore>) {
        Task { [relay, loop, end] in
            do {
                try await relay.execute(
                    "migrate-set-parameters",
                    ["x-checkpoint-delay": .integer(Self.quietCheckpointDelayMilliseconds)])
                loop.execute { core.value.triggerTaken() }
            } catch {
                end.yield(.failed("QEMU took no checkpoint: \(error)"))
            }
        }
    }

    /// Calls `done` on the event loop.
    private func locateGuestMemory(_ done: @escaping (Result<GuestMemory, GuestMemory.Unavailable>) -> Void) {
        let bound = NIOLoopBound(done, eventLoop: loop)
        Task { [relay, loop] in
            let result: Result<GuestMemory, GuestMemory.Unavailable>
            do throws(GuestMemory.Unavailable) {
                result = .success(try await GuestMemory.locate(relay: relay))
            } catch {
                result = .failure(error)
            }
            loop.execute { bound.value(result) }
        }
    }

    // MARK: The end

    /// QEMU gets no more of us than answers to its mirrors, and those until the guardian has ended them.
    private func stop(_ ending: AgentEnding) async {
        guard let core = core.withLock({ $0 }) else { return }
        try? await loop.submit {
            core.value.end(ending)
            core.value.closeMigration()
        }.get()
    }

    /// Tells the secondary why, if it still listens. Bounded: the guardian waits 300 ms at most, and a secondary that does
    /// not read must not keep us. What is not out by then ``linger()`` waits for.
    private func farewell(_ ending: AgentEnding) async {
        guard let (channel, generation) = link.withLock({ $0 }) else { return }
        switch ending {
        case .linkLost, .linkRefused, .secondaryRefused, .secondaryAway, .guardianGone: break
        default:
            let bye = await bye(ending)
            var buffer = channel.allocator.buffer(capacity: 128)
            buffer.writeFrame(bye, generation: generation, epoch: .none)
            let words = buffer
            let core = core.withLock { $0 }
            try? await loop.flatSubmit { [loop] in
                let isOut = core?.value.outlet.farewell(words) ?? channel.writeAndFlush(words)
                let over = loop.makePromise(of: Void.self)
                isOut.whenComplete { _ in over.succeed(()) }
                loop.scheduleTask(in: .milliseconds(150)) { over.succeed(()) }
                return over.futureResult
            }.get()
            return
        }
        channel.close(promise: nil)
    }

    /// Waits for a farewell that is on its way over a slow link: the secondary closes the link when it has read it. If we
    /// ended before, the kernel could forget it. To be called when the guest is restored, and nobody waits any longer.
    func linger() async {
        guard let (channel, _) = link.withLock({ $0 }) else { return }
        channel.eventLoop.scheduleTask(in: .milliseconds(400)) { channel.close(promise: nil) }
        try? await channel.closeFuture.get()
    }
}

extension Refuse.Code {
    /// Whether the same guest may be welcome later, without anybody's doing.
    fileprivate var mayPass: Bool {
        switch self {
        case .alreadyProtected, .storeFull, .busy, .internal: true
        case .version, .name, .generation, .diskTooLarge, .identityMismatch, .failedOver, .protocol: false
        }
    }
}
