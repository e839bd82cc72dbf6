import CLinux
import Glibc
import Logging
import NBD
import NIOCore
import NIOPosix
import Synchronization
import Units

/// An NBD server: named exports of devices on a unix socket or a TCP port, each for several clients at a time.
///
/// Clients harm neither each other nor the server: per connection, requests, data and unread replies are bounded, and a
/// client that does not finish the handshake in time is dropped. Nothing is read from a socket beyond the bounds.
public final class ExportServer: Sendable {
    /// One name and what is behind it.
    public struct Export: Sendable {
        /// At most 4,096 bytes of UTF-8. Clients that ask for the empty name get the first export.
        public let name: String
        /// Words for people who list the exports.
        public let description: String
        public let device: any ExportDevice

        public init(name: String, description: String = "", device: any ExportDevice) {
            self.name = name
            self.description = description
            self.device = device
        }
    }

    public struct Configuration: Sendable {
        /// Nil: clear connections only.
        public var tls: ExportTLS?
        /// Clients at a time; more are turned away.
        public var connections = 64
        /// Requests of one client that are not answered yet.
        public var requestsInFlight = 256
        /// Data of one client's requests that are not answered yet, in bytes; one request may go beyond.
        public var bytesInFlight = 32 << 20
        /// Replies that a client has not taken, in bytes; beyond, nothing more is asked of the device for it.
        public var unreadBytes = 1 << 20
        /// A client that has not chosen an export by then is dropped.
        public var handshakeTimeout: TimeAmount = .seconds(10)

        public init() {}
    }

    /// Cannot serve: the address is in use, the name is too long, there is nothing to serve.
    public struct Refused: Error, CustomStringConvertible {
        public let description: String
    }

    /// Where the server listens; a TCP port of 0 was replaced by the one that was given.
    public let address: Address
    private let house: ExportHouse
    private let channel: any Channel
    private let ownGroup: MultiThreadedEventLoopGroup?
    /// The end, once somebody wants it.
    private let ending = Mutex<Task<Void, Never>?>(nil)

    private init(address: Address, house: ExportHouse, channel: any Channel, ownGroup: MultiThreadedEventLoopGroup?) {
        self.address = address
        self.house = house
        self.channel = channel
        self.ownGroup = ownGroup
    }

    /// Starts to listen. A unix socket that nobody listens to any more is replaced; the new one has permissions 0600.
    ///
    /// - Parameter group: where connections run; nil makes a thread of the server's own.
    public static func start(
        at address: Address, exports: [Export], configuration: Configuration = Configuration(),
        group: (any EventLoopGroup)? = nil, log: Logger
    ) async throws -> ExportServer {
        guard !exports.isEmpty else { throw Refused(description: "an NBD server needs at least one export") }
        for export in exports where max(export.name.utf8.count, export.description.utf8.count) > NBDLimits.nameMax {
            throw Refused(
                description: "an export's name or description is longer than \(NBDLimits.nameMax) bytes; shorten it")
        }
        guard Set(exports.map(\.name)).count == exports.count else {
            throw Refused(description: "two exports have the same name; give each its own")
        }
        let house = ExportHouse(exports: exports, configuration: configuration, log: log)
        let ownGroup = group == nil ? MultiThreadedEventLoopGroup(numberOfThreads: 1) : nil
        do {
            let channel = try await listen(at: address, house, on: group ?? ownGroup ?? .singleton)
            return ExportServer(
                address: try address.bound(to: channel), house: house, channel: channel, ownGroup: ownGroup)
        } catch {
            try? await ownGroup?.shutdownGracefully()
            throw error
        }
    }

    private static func listen(
        at address: Address, _ house: ExportHouse, on group: any EventLoopGroup
    ) async throws -> any Channel {
        let bootstrap = ServerBootstrap(group: group)
            .serverChannelOption(.socketOption(.so_reuseaddr), value: 1)
            .childChannelOption(.recvAllocator, value: FixedSizeRecvByteBufferAllocator(capacity: 256 << 10))
            .childChannelOption(.maxMessagesPerRead, value: 1)
            .childChannelOption(
                .writeBufferWaterMark,
                value: .init(low: house.configuration.unreadBytes / 2, high: house.configuration.unreadBytes)
            )
            .childChannelInitializer { house.welcome($0) }
        do {
            switch address.place {
            case .unix(let path):
                try UnixSocketPath.clear(path)
                let channel = try await bootstrap.bind(unixDomainSocketPath: path).get()
                chmod(path, 0o600)
                return channel
            case .tcp(let host, let port):
                return try await bootstrap.childChannelOption(.tcpOption(.tcp_nodelay), value: 1)
                    .bind(host: host, port: port).get()
            }
        } catch {
            throw Refused(description: "\(address) cannot be listened on: \(error); choose another address")
        }
    }

    /// What was served so far.
    public var figures: ExportFigures { house.figures }

    /// How a client names an export.
    public func uri(of name: String) -> NBDURI {
        NBDURI(address.nbdPlace, export: name, isEncrypted: house.configuration.tls != nil)
    }

    /// Waits until the server is closed.
    public func closed() async { try? await channel.closeFuture.get() }

    /// Stops listening, cuts all connections, and returns when the devices have answered every request. Removes the unix
    /// socket. May be called more than once.
    public func close() async {
        let end = ending.withLock { ending in
            if let ending { return ending }
            let task = Task {
                try? await channel.close().get()
                if case .unix(let path) = address.place { unlink(path) }
                await house.cutAll()
                try? await ownGroup?.shutdownGracefully()
            }
            ending = task
            return task
        }
        await end.value
    }
}

/// What a server has served.
public struct ExportFigures: Sendable, Equatable {
    /// Clients that are connected.
    public internal(set) var connections = 0
    /// Clients that were turned away because there were too many.
    public internal(set) var turnedAway: UInt64 = 0
    /// Requests that were handed to devices.
    public internal(set) var requests: UInt64 = 0
    /// Requests that were refused before.
    public internal(set) var refused: UInt64 = 0
    /// Bytes that reads asked for.
    public internal(set) var bytesRead: UInt64 = 0
    /// Bytes that writes brought.
    public internal(set) var bytesWritten: UInt64 = 0
}

/// What the connections of a server share.
final class ExportHouse: Sendable {
    private struct State {
        var channels: [ObjectIdentifier: any Channel] = [:]
        var figures = ExportFigures()
        var isClosed = false
        var whenEmpty: [CheckedContinuation<Void, Never>] = []
    }

    let exports: [ExportServer.Export]
    let offers: [NBDExport]
    let configuration: ExportServer.Configuration
    let log: Logger
    private let state = Mutex(State())

    init(exports: [ExportServer.Export], configuration: ExportServer.Configuration, log: Logger) {
        self.exports = exports
        self.offers = exports.map { NBDExport($0.name, $0.device, description: $0.description) }
        self.configuration = configuration
        self.log = log
    }

    var figures: ExportFigures { state.withLock { $0.figures } }

    func add(_ more: ExportFigures) {
        state.withLock { state in
            state.figures.requests += more.requests
            state.figures.refused += more.refused
            state.figures.bytesRead += more.bytesRead
            state.figures.bytesWritten += more.bytesWritten
        }
    }

    /// Sets up a new client's channel, or refuses it.
    func welcome(_ channel: any Channel) -> EventLoopFuture<Void> {
        let peer = channel.remoteAddress?.ipAddress.map { "\($0):\(channel.remoteAddress?.port ?? 0)" } ?? "local"
        return channel.eventLoop.makeCompletedFuture {
            let connection = ExportConnection(house: self, peer: peer)
            let isWelcome = state.withLock { state in
                guard !state.isClosed, state.channels.count < configuration.connections else {
                    state.figures.turnedAway += 1
                    return false
                }
                state.channels[ObjectIdentifier(connection)] = channel
                state.figures.connections = state.channels.count
                return true
            }
            guard isWelcome else {
                log.warning(
                    "nbd client turned away: \(configuration.connections) are served already",
                    metadata: ["peer": "\(peer)"])
                throw ExportServer.Refused(description: "too many clients")
            }
            try channel.pipeline.syncOperations.addHandler(connection)
        }
    }

    /// A client has gone, and its last request was answered.
    func retired(_ connection: ExportConnection) {
        let waiting = state.withLock { state -> [CheckedContinuation<Void, Never>] in
            state.channels[ObjectIdentifier(connection)] = nil
            state.figures.connections = state.channels.count
            guard state.channels.isEmpty else { return [] }
            defer { state.whenEmpty = [] }
            return state.whenEmpty
        }
        for continuation in waiting { continuation.resume() }
    }

    func cutAll() async {
        let channels = state.withLock { state in
            state.isClosed = true
            return Array(state.channels.values)
        }
        for channel in channels { channel.close(promise: nil) }
        await withCheckedContinuation { continuation in
            let isEmpty = state.withLock { state in
                if !state.channels.isEmpty { state.whenEmpty.append(continuation) }
                return state.channels.isEmpty
            }
            if isEmpty { continuation.resume() }
        }
    }
}
