import AsyncIO
import Checkpointer
import Glibc
import Link
import Logging
import NBD
import NIOCore
import NIOPosix
import QEMU
import Synchronization
import TestSupport
import Testing
import Units

@testable import Node

/// A secondary on its own store, and primaries that connect to it over real sockets. Only QEMU is missing.
final class ReplicationRig {
    struct Failed: Error, CustomStringConvertible { let description: String }

    let place: Place
    /// Injects into every file of the store.
    let faults: FaultInjector
    let daemon: SecondaryDaemon
    private let server: Task<Void, any Error>
    private var socket: String { place.base + "/link.sock" }

    init(_ place: Place, qemu: String? = nil) async throws {
        self.place = place
        faults = FaultInjector(below: place.directory)
        let log = Logger(label: "test", factory: { _ in SwiftLogNoOpLogHandler() })
        let daemon = try SecondaryDaemon.open(
            options: SecondaryOptions(store: place.directory, proof: false, qemu: qemu, ramDirectory: place.base),
            log: log)
        self.daemon = daemon
        let address = Address.unix(place.base + "/link.sock")
        let (ready, isReady) = AsyncStream.makeStream(of: Void.self)
        server = Task.detached {
            defer { isReady.finish() }
            try await daemon.run(listen: address) { isReady.finish() }
        }
        for await _ in ready {}
    }

    /// The daemon goes down, without a word to its primaries.
    func stop() async {
        server.cancel()
        _ = await server.result
        faults.end()
    }

    func attach(size: Int, durability: Durability = .disk, budget: UInt64 = 64 << 20) async throws -> RigPrimary {
        try await RigPrimary(
            .unix(socket), nbdSocket: place.base + "/nbd-\(UInt32.random(in: 0...UInt32.max)).sock", size: size,
            durability: durability, budget: budget)
    }

    func status() async throws -> GuestStatus {
        let all = try await daemon.statuses(guest: "g")
        return try #require(all.first)
    }

    /// Waits until the status is as wanted; a secondary learns of a lost primary a moment later.
    func status(_ what: String, where isWanted: (GuestStatus) -> Bool) async throws -> GuestStatus {
        for _ in 0..<1000 {
            let status = try await status()
            if isWanted(status) { return status }
            try await Task.sleep(for: .milliseconds(10))
        }
        throw Failed(description: "\(what) never came; the status is \(try await status())")
    }

    var diskDirectory: String { "\(place.directory)/g/disks/d" }

    /// The committed checkpoint of the disk, read through a second, independent object.
    func committedDisk() async throws -> [UInt8] {
        let epoch = Epoch(try await status().committedEpoch ?? 0)
        return try disk(after: epoch)
    }

    func disk(after epoch: Epoch) throws -> [UInt8] {
        var failure: any Error = Failed(description: "unread")
        // Files of committed epochs are being removed meanwhile.
        for _ in 0..<20 {
            do {
                return try DiskReplica(directory: diskDirectory, durable: false).contents(after: epoch)
            } catch {
                failure = error
                usleep(10_000)
            }
        }
        throw failure
    }
}

/// The agent's half: its NBD export, its core and its link, driven as QEMU would drive them.
final class RigPrimary {
    let loop: any EventLoop
    let core: NIOLoopBound<AgentCore>
    let welcome: Welcome
    /// What the guest's disk holds.
    private(set) var disk: [UInt8]
    let nbdSocket: String
    private let channel: any Channel
    private let server: any Channel
    private var client: NBDTestClient?
    private let endings: RigEndings

    fileprivate init(
        _ address: Address, nbdSocket: String, size: Int, durability: Durability, budget: UInt64
    ) async throws {
        let loop = MultiThreadedEventLoopGroup.singleton.next()
        var random = SystemRandomNumberGenerator()
        let hello = Hello(
            protocolVersion: UInt16(FrameHeader.version), guest: "g", session: Identifier(using: &random),
            durability: durability, label: "rig", disks: [Hello.Disk(id: "d", size: UInt64(size))],
            generation: Generation(0), agentVersion: "test")
        let connected = try await AgentLink.connect(to: address, hello: hello, loop: loop)
        let endings = RigEndings()
        let identity = try TestPrimary.identity()
        let settings = AgentCore.Settings(
            generation: connected.welcome.generation, firstEpoch: connected.welcome.firstEpoch,
            intervalNanoseconds: 200_000_000, budgetBytes: budget, useDelta: true, diskSizes: [UInt64(size)])
        let log = Logger(label: "test", factory: { _ in SwiftLogNoOpLogHandler() })
        core = try await loop.submit {
            let core = AgentCore(
                settings: settings, machine: connected.machine, link: connected.channel, loop: loop, log: log)
            core.onEnd = { endings.add($0) }
            connected.handler.value.deliver(to: core, on: connected.channel)
            core.startHeartbeat()
            core.sendIdentity(identity)
            core.flush()
            return NIOLoopBound(core, eventLoop: loop)
        }.get()
        let exports = [
            NBDExport(
                name: "d", size: UInt64(size), flags: [.flush, .fua, .trim, .writeZeroes],
                blockMin: UInt32(Sizes.sector))
        ]
        let core = core
        server = try await ServerBootstrap(group: loop)
            .childChannelInitializer { channel in
                channel.eventLoop.makeCompletedFuture {
                    try channel.pipeline.syncOperations.addHandler(NBDHandler(core: core.value, exports: exports))
                }
            }
            .bind(unixDomainSocketPath: nbdSocket).get()
        self.loop = loop
        self.endings = endings
        self.nbdSocket = nbdSocket
        welcome = connected.welcome
        channel = connected.channel
        disk = [UInt8](repeating: 0, count: size)
        try await wait("the comparison of the disks") { $0.isCompared }
    }

    func onLoop<Value: Sendable>(_ body: @escaping @Sendable (AgentCore) throws -> Value) async throws -> Value {
        let core = core
        return try await loop.submit { try body(core.value) }.get()
    }

    func wait(_ what: String, until isTrue: @escaping @Sendable (AgentCore) -> Bool) async throws {
        for _ in 0..<2000 {
            if try await onLoop(isTrue) { return }
            if let ending = endings.first { throw ReplicationRig.Failed(description: "\(what): \(ending)") }
            try await Task.sleep(for: .milliseconds(5))
        }
        throw ReplicationRig.Failed(description: "\(what) never came")
    }

    // MARK: The guest's disk

    private func nbd() throws -> NBDTestClient {
        if let client { return client }
        let made = try NBDTestClient(socket: nbdSocket, export: "d")
        client = made
        return made
    }

    /// Writes as the mirror does. Returns what the guest is answered.
    @discardableResult
    func write(_ offset: Int, _ value: UInt8, count: Int) throws -> UInt32 {
        disk.replaceSubrange(offset..<offset + count, with: repeatElement(value, count: count))
        return try nbd().write(offset, [UInt8](repeating: value, count: count))
    }

    func write(all bytes: [UInt8]) throws {
        disk = bytes
        #expect(try nbd().write(0, bytes) == 0)
    }

    func zero(_ range: Range<Int>) throws {
        disk.replaceSubrange(range, with: repeatElement(0, count: range.count))
        #expect(try nbd().zero(range) == 0)
    }

    func discard(_ range: Range<Int>) throws {
        disk.replaceSubrange(range, with: repeatElement(0, count: range.count))
        #expect(try nbd().trim(range) == 0)
    }

    func flush() throws -> UInt32 { try nbd().flush() }
    func read(_ range: Range<Int>) throws -> UInt32 { try nbd().read(range) }
    /// The guest's disk is what another program has written through the export.
    func adopt(_ bytes: [UInt8]) { disk = bytes }

    // MARK: Checkpoints

    /// RAM and device state of the initial copy, up to its commit.
    func finishInitialCopy() async throws {
        try await onLoop { core in
            while !core.settle(ranges: 4096) {}
            let configuration: [UInt8] = [0, 0, 0, 4] + Array("none".utf8)
            try configuration.withUnsafeBytes { try core.configuration($0) }
            core.ramLayout([RamBlockDescription(name: "pc.ram", length: 64 << 10)], sectionID: 2)
            core.initialStateComplete(deviceState: Self.deviceState)
            core.flush()
        }
        let first = welcome.firstEpoch
        try await wait("checkpoint \(first)") { $0.figures.committed >= first }
    }

    /// QEMU asks, stops the guest, and sends everything; the epoch waits for its commit. Returns the epoch.
    @discardableResult
    func beginCheckpoint() async throws -> Epoch {
        try await onLoop { core in
            core.owed = .nothing
            core.checkpointRequested()
        }
        // The reply waits for the link, as it does for QEMU.
        try await wait("the reply") { $0.owed == .reply }
        let epoch = try await onLoop { core in
            let epoch = core.streamEpoch
            core.epochBoundary()
            return epoch
        }
        try await onLoop { core in
            core.checkpointComplete(deviceState: Self.deviceState)
            core.flush()
        }
        return epoch
    }

    /// A whole checkpoint; returns its epoch when the secondary has committed it.
    @discardableResult
    func checkpoint() async throws -> Epoch {
        let epoch = try await beginCheckpoint()
        try await wait("checkpoint \(epoch)") { $0.figures.committed >= epoch }
        return epoch
    }

    private static let deviceState: [UInt8] = [4, 1, 2, 3, 4, 5, 0x7E, 0, 0, 0, 1, 0]

    // MARK: Ends

    /// Why the session is over; nil while it is not.
    var ending: AgentEnding? { endings.first }

    func waitForEnding() async throws -> AgentEnding {
        for _ in 0..<2000 {
            if let ending = endings.first { return ending }
            try await Task.sleep(for: .milliseconds(5))
        }
        throw ReplicationRig.Failed(description: "the session never ended")
    }

    /// The connection breaks.
    func cutLink() async throws { try await channel.close() }

    /// The primary leaves in order.
    func leave() async throws {
        let channel = channel
        let generation = welcome.generation
        var buffer = channel.allocator.buffer(capacity: 256)
        buffer.writeFrame(Bye(code: ByeCode.ended, reason: "detached"), generation: generation, epoch: .none)
        try await channel.writeAndFlush(buffer).get()
        try await channel.closeFuture.get()
        await close()
    }

    func close() async {
        client = nil
        try? await server.close()
        try? await channel.close()
    }
}

/// Why sessions ended, told by their event loops.
private final class RigEndings: Sendable {
    private let all = Mutex<[AgentEnding]>([])
    func add(_ ending: AgentEnding) { all.withLock { $0.append(ending) } }
    var first: AgentEnding? { all.withLock { $0.first } }
}

/// A rig for one test, taken down afterwards.
func withRig(qemu: String? = nil, _ body: (ReplicationRig) async throws -> Void) async throws {
    let place = try Place()
    defer { place.remove() }
    let rig = try await ReplicationRig(place, qemu: qemu)
    do {
        try await body(rig)
    } catch {
        await rig.stop()
        throw error
    }
    await rig.stop()
}

/// A disk of 64 blocks and half a KiB, each sector of which says where it is.
enum RigDisk {
    static let size = 64 * 4096 + 512

    static func pattern(_ seed: Int) -> [UInt8] {
        (0..<size).map { UInt8(($0 / 512 * 7 + seed * 31) % 251 + 1) }
    }
}
