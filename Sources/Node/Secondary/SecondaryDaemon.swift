import AsyncIO
import Checkpointer
import Glibc
import Link
import Logging
import NIOCore
import NIOPosix
import Synchronization
import Units

public struct SecondaryOptions: Sendable {
    /// Directory of the store; made when it is missing.
    public var store: String
    /// Whether a guest is started once, paused, after its first checkpoint.
    public var proof: Bool
    /// The QEMU to start instead of the one that the primary ran.
    public var qemu: String?
    /// Where RAM caches live: a tmpfs.
    public var ramDirectory: String
    /// What new replicas begin with.
    public var seeds: [DiskSeed]
    /// A command that is run when a primary is lost; see ``HookCommand``.
    public var onLoss: String?
    /// A command that makes sure that a primary is off; it says so with exit code 0.
    public var fenceCommand: String?
    /// Start a guest whose primary is lost, once `fenceCommand` has succeeded; needs one.
    public var autoFailover = false
    /// Length of a guest's RAM logs at which a new base is begun; nil: half of its RAM, 64 MiB or more.
    public var ramLogBytes: UInt64?

    public init(
        store: String, proof: Bool, qemu: String?, ramDirectory: String? = nil, seeds: [DiskSeed] = [],
        ramLogBytes: UInt64? = nil
    ) {
        self.ramLogBytes = ramLogBytes
        self.seeds = seeds
        self.store = store
        self.proof = proof
        self.qemu = qemu
        self.ramDirectory = ramDirectory ?? RamTmpfs.defaultBase
    }
}

/// A store that this process holds: every guest in it, recovered to its last commit.
public final class SecondaryDaemon: Sendable {
    let store: Store
    let options: SecondaryOptions
    let log: Logger
    let events: EventLog
    private let group: MultiThreadedEventLoopGroup
    private let replicas = Mutex<[String: GuestReplica]>([:])
    /// Guests whose folder cannot be opened, and why: they are shown, and can be removed.
    private let unopened = Mutex<[String: String]>([:])

    /// Guests that wait for their seeds, and how far they are, in words.
    let seeding = Mutex<[String: String]>([:])

    private init(store: Store, options: SecondaryOptions, log: Logger) {
        self.store = store
        self.options = options
        self.log = log
        events = EventLog(log: log)
        group = MultiThreadedEventLoopGroup(numberOfThreads: 2)
    }

    /// Locks the store and recovers its guests. Throws when another process holds it or a newer release made it; a
    /// single damaged guest is reported by its status and does not keep the others down.
    public static func open(options: SecondaryOptions, log: Logger) throws -> SecondaryDaemon {
        guard !options.autoFailover || options.fenceCommand != nil else {
            throw Store.Failed(
                description: "--auto-failover needs --fence-command: without fencing two copies of a guest may run")
        }
        let store = try Store.open(directory: options.store)
        let daemon = SecondaryDaemon(store: store, options: options, log: log)
        try daemon.makeSeededGuests()
        for name in try store.guestNames() {
            do {
                _ = try daemon.openReplica(name)
            } catch let refused as DiskSeed.Refused {
                throw refused
            } catch {
                log.error("guest cannot be opened", metadata: ["guest": "\(name)", "reason": "\(error)"])
                daemon.unopened.withLock { $0[name] = "\(error)" }
            }
        }
        return daemon
    }

    private func openReplica(_ name: String) throws -> GuestReplica {
        let guestStore = try GuestStore(
            name: name, directory: store.guestDirectory(name),
            ramDirectory: try RamTmpfs.prepare(base: options.ramDirectory, name: ramName(name)),
            storeID: store.description.id, ramLogBytes: options.ramLogBytes, log: log)
        guestStore.seeded = try seedSizes(name, committed: guestStore.record?.epoch)
        let replica = GuestReplica(
            name: name, store: guestStore, settings: options, starter: group.next(), events: events, log: log)
        replicas.withLock { $0[name] = replica }
        return replica
    }

    func replica(_ name: String) -> GuestReplica? { replicas.withLock { $0[name] } }

    func allReplicas() -> [GuestReplica] {
        replicas.withLock { $0.values.sorted { $0.name < $1.name } }
    }

    /// The replica for a hello; made when the name is new.
    private func replica(for hello: Hello) throws -> GuestReplica {
        guard Store.isGuestName(hello.guest) else {
            throw Refuse(code: .name, message: "'\(hello.guest)' cannot be a replica's name: \(Store.guestNameRule)")
        }
        if let words = seeding.withLock({ $0[hello.guest] }) {
            throw Refuse(code: .busy, message: "'\(hello.guest)' waits for its seeds (\(words)); attach again later")
        }
        if let known = replica(hello.guest) { return known }
        if let reason = unopened.withLock({ $0[hello.guest] }) {
            throw Refuse(
                code: .internal,
                message:
                    "the replica '\(hello.guest)' cannot be opened: \(reason); 'colo-blk remove \(hello.guest)' on the "
                    + "secondary makes room for a new one")
        }
        do {
            if try !store.guestNames().contains(hello.guest) {
                try GuestStore.create(directory: store.guestDirectory(hello.guest))
            }
            return try openReplica(hello.guest)
        } catch {
            throw Refuse(
                code: StorageErrors.isNoSpace(error) ? .storeFull : .internal,
                message: "the replica '\(hello.guest)' cannot be made: \(error)")
        }
    }

    /// Listens for primaries and for verbs until the task is cancelled.
    ///
    /// - Parameter tls: of the link; nil is clear text.
    public func run(
        listen address: Address?, tls: LinkTLS? = nil, ready: @escaping @Sendable () -> Void = {}
    ) async throws {
        if let warning = tls?.warning { log.warning("\(warning)") }
        // Guests without seeds need not wait for those with.
        let planting = Task { [log] in
            do { try await plantSeeds() } catch { log.error("\(error)") }
        }
        defer { planting.cancel() }
        try await withThrowingTaskGroup(of: Void.self) { tasks in
            let control = ControlServer(path: store.controlPath, log: log) { [self] request, connection in
                await answer(request, connection)
            }
            tasks.addTask { [group] in try await control.run(group: group) }
            tasks.addTask { [self] in await watchStates() }
            if let address {
                let server = LinkServer(group: group, tls: tls, log: log) { [self] hello in try replica(for: hello) }
                tasks.addTask { [log] in
                    try await server.run(address: address) { channel in
                        log.notice(
                            "listening",
                            metadata: [
                                "address": "\(channel.localAddress.map { "\($0)" } ?? "\(address)")",
                                "tls": tls == nil ? "no" : "required",
                            ])
                        ready()
                    }
                }
            }
            try await tasks.next()
            tasks.cancelAll()
        }
    }

    // MARK: Verbs

    func answer(_ request: ControlRequest, _ connection: ControlConnection? = nil) async -> ControlReply {
        do {
            switch request.verb {
            case .status:
                return ControlReply(statuses: try await statuses(guest: request.guest))
            case .failover:
                return ControlReply(
                    failover: try await known(request.guest).failover(request.failover ?? FailoverOptions()))
            case .detach:
                let replica = try known(request.guest)
                guard try await replica.detach() else {
                    return ControlReply(error: "no primary is connected to '\(replica.name)'")
                }
                return ControlReply()
            case .ramInfo:
                var reply = ControlReply()
                reply.ramInfo = try await known(request.guest).ramInfo()
                return reply
            case .ramVerify:
                var reply = ControlReply()
                reply.ramVerify = try await known(request.guest).verifyRam(
                    request.ramVerify ?? RamVerifyOptions(guestMemory: false))
                return reply
            case .follow:
                return try await follow(request, connection)
            case .verify:
                return try await verify(request, connection)
            case .export:
                guard let connection else { return ControlReply(error: "an export needs a verb that stays") }
                return try await export(request, connection)
            case .remove:
                if let name = request.guest, unopened.withLock({ $0[name] }) != nil {
                    try removeFolders(name)
                } else {
                    try await remove(try known(request.guest))
                }
                return ControlReply()
            case .diskStatus, .diskCheckpoint, .diskRollback:
                return ControlReply(
                    error: "\(store.directory) serves guests; 'colo-blk disk' is for a store that "
                        + "'colo-blk disk serve' holds")
            }
        } catch {
            return ControlReply(error: "\(error)")
        }
    }

    public func statuses(guest: String?) async throws -> [GuestStatus] {
        if let guest { return [tellSeeding(await (try known(guest)).status())] }
        var statuses: [GuestStatus] = []
        for replica in allReplicas() { statuses.append(tellSeeding(await replica.status())) }
        for (name, reason) in unopened.withLock({ $0 }).sorted(by: { $0.key < $1.key }) {
            statuses.append(.unopened(name, reason: reason))
        }
        return statuses
    }

    func known(_ name: String?) throws -> GuestReplica {
        if let name, let reason = unopened.withLock({ $0[name] }) {
            throw GuestStore.Failed(
                description: "'\(name)' cannot be opened: \(reason); 'colo-blk remove \(name)' deletes it")
        }
        guard let name, let replica = replica(name) else {
            let names = allReplicas().map(\.name).joined(separator: ", ")
            throw GuestStore.Failed(
                description:
                    "no replica '\(name ?? "")' in \(store.directory); there is: \(names.isEmpty ? "none" : names)")
        }
        return replica
    }

    private func remove(_ replica: GuestReplica) async throws {
        if let refusal = await replica.refusalToRemove() {
            throw GuestStore.Failed(description: "'\(replica.name)' stays: \(refusal)")
        }
        try removeFolders(replica.name)
    }

    private func removeFolders(_ name: String) throws {
        replicas.withLock { $0[name] = nil }
        try FileTree.remove(store.guestDirectory(name))
        let ram = "\(options.ramDirectory)/\(ramName(name))"
        if Directory.exists(ram) { try FileTree.remove(ram) }
        unopened.withLock { $0[name] = nil }
    }

    private func ramName(_ guest: String) -> String { Store.ramFolderName(store.description.id, guest) }
}
