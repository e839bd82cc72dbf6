import Checkpointer
import Logging
import NBD
import NIOPosix
import Units

public struct DiskServiceOptions: Sendable {
    /// Directory of the store; made when it is missing.
    public var store: String
    public var disk: String
    /// Bytes, a multiple of 512; needed for a new disk.
    public var size: UInt64?
    /// A checkpoint survives a power loss.
    public var durable: Bool
    /// Bytes of writes that may wait in memory.
    public var bufferBytes: Int
    public var address: Address
    public var tls: ExportTLS?

    public init(
        store: String, disk: String, size: UInt64?, durable: Bool, bufferBytes: Int, address: Address,
        tls: ExportTLS? = nil
    ) {
        self.store = store
        self.disk = disk
        self.size = size
        self.durable = durable
        self.bufferBytes = bufferBytes
        self.address = address
        self.tls = tls
    }
}

extension ExportTLS {
    /// Refuses clear connections; for callers that do not speak NBD themselves.
    public static func required(_ files: TLSFiles) throws(TLSRefused) -> ExportTLS {
        try ExportTLS(files, mode: .required)
    }
}

/// One secondary disk by itself, served over NBD, with checkpoints made by verbs over the store's control socket.
public final class DiskService: Sendable {
    private let store: Store
    private let options: DiskServiceOptions
    private let disk: DiskStore
    private let device: ReplicaDevice
    private let log: Logger

    /// Opens the disk as of its last checkpoint, or makes it.
    public init(options: DiskServiceOptions, log: Logger) throws {
        if let size = options.size, size == 0 || size % UInt64(Sizes.sector) != 0 {
            throw DiskStore.Failed(
                description: "a disk of \(size) bytes cannot be made: the size must be a multiple of \(Sizes.sector)")
        }
        self.options = options
        self.log = log
        store = try Store.open(directory: options.store)
        let disk = try DiskStore(
            store: store, name: options.disk,
            parameters: .init(
                size: options.size, durability: options.durable ? .disk : .memory, bufferBytes: options.bufferBytes),
            log: log)
        self.disk = disk
        device = ReplicaDevice(try disk.openReplica()) { disk.failed($0) }
    }

    /// Serves until the task is cancelled. What came after the last checkpoint is then gone, as after a crash.
    public func run() async throws {
        let server = try await ExportServer.start(
            at: options.address,
            exports: [.init(name: options.disk, description: "colo-blk secondary disk", device: device)],
            configuration: configuration, log: log)
        log.notice("listening", metadata: ["uri": "\(server.uri(of: options.disk))"])
        let control = ControlServer(path: store.controlPath, log: log) { [self] request, _ in
            await answer(request, server)
        }
        do {
            try await control.run(group: MultiThreadedEventLoopGroup.singleton)
        } catch {
            await server.close()
            throw error
        }
        await server.close()
    }

    private var configuration: ExportServer.Configuration {
        var configuration = ExportServer.Configuration()
        configuration.tls = options.tls
        return configuration
    }

    // MARK: Verbs

    private func answer(_ request: ControlRequest, _ server: ExportServer) async -> ControlReply {
        if let name = request.guest, name != options.disk {
            return ControlReply(error: "this process serves the disk '\(options.disk)', not '\(name)'")
        }
        let start = MonotonicClock.now()
        let (name, disk) = (options.disk, disk)
        do {
            switch request.verb {
            case .diskStatus:
                let clients = server.figures.connections
                return ControlReply(disk: try await device.withReplica { try disk.status($0, clients: clients) })
            case .diskCheckpoint:
                let epoch = try await device.withReplica { replica in
                    let epoch = try disk.checkpoint(replica)
                    replica.reclaimLater()
                    return epoch
                }
                return ControlReply(diskChange: change(name, epoch, since: start))
            case .diskRollback:
                let (epoch, bytes) = try await device.withReplica { replica in
                    guard disk.hasCheckpoint else {
                        throw DiskStore.Failed(description: "disk '\(name)' has no checkpoint to go back to yet")
                    }
                    let bytes = try disk.rollBack(replica)
                    return (disk.committed, bytes)
                }
                return ControlReply(diskChange: change(name, epoch, since: start, restored: bytes))
            default:
                return ControlReply(
                    error: "this process serves a disk by itself: use 'colo-blk disk status', 'checkpoint', 'rollback'")
            }
        } catch {
            return ControlReply(error: "\(error)")
        }
    }

    private func change(_ disk: String, _ epoch: Epoch, since start: Moment, restored: UInt64? = nil) -> DiskChange {
        DiskChange(
            disk: disk, epoch: epoch.rawValue,
            milliseconds: Double(MonotonicClock.now().nanoseconds(since: start)) / 1e6, bytesRestored: restored)
    }
}

/// A verb's way to the process that serves a disk.
public struct DiskAccess: Sendable {
    private let store: String
    private let disk: String

    public init(store: String, disk: String) {
        self.store = store
        self.disk = disk
    }

    public func status() async throws -> DiskStatus {
        guard let status = try await ask(.diskStatus).disk else { throw Self.silent }
        return status
    }

    public func checkpoint() async throws -> DiskChange {
        guard let change = try await ask(.diskCheckpoint).diskChange else { throw Self.silent }
        return change
    }

    public func rollBack() async throws -> DiskChange {
        guard let change = try await ask(.diskRollback).diskChange else { throw Self.silent }
        return change
    }

    private static let silent = StoreAccess.Refused(
        description: "the process that serves the disk gave no answer to this")

    private func ask(_ verb: ControlRequest.Verb) async throws -> ControlReply {
        let reply: ControlReply
        do {
            reply = try await ControlChannel.ask(
                path: "\(store)/control.sock", ControlRequest(verb: verb, guest: disk),
                group: MultiThreadedEventLoopGroup.singleton)
        } catch {
            throw StoreAccess.Refused(
                description: "nobody serves \(store)/\(disk) (\(error)); start 'colo-blk disk serve' first")
        }
        if let error = reply.error { throw StoreAccess.Refused(description: error) }
        return reply
    }
}
