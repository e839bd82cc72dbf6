import AsyncIO
import BlockReplica
import Checkpointer
import Glibc
import Link
import Logging
import NIOCore
import NIOPosix
import QEMU
import Synchronization
import Testing
import Units

@testable import Node

/// A protection without QEMU: a daemon behind a unix socket, and the agent's core connected to it. What a mirror and a
/// migration stream would say is said by the test.
final class Protection: Sendable {
    struct Failed: Error, CustomStringConvertible {
        let description: String
    }

    static let device: [UInt8] = [4] + Array("device state of a machine".utf8) + [0x7E, 0, 0, 0, 1, 0]

    let daemon: SecondaryDaemon
    let store: String
    private let address: Address
    private let serving: Task<Void, any Error>
    let group: MultiThreadedEventLoopGroup
    var loop: any EventLoop { group.any() }
    /// Why sessions ended before they were over.
    let endings = Mutex<[AgentEnding]>([])
    /// Why exports ended before their time.
    let told = Mutex<[String]>([])

    init(_ place: Place, seeds: [DiskSeed] = []) async throws {
        store = place.directory
        let log = Logger(label: "test", factory: { _ in SwiftLogNoOpLogHandler() })
        daemon = try SecondaryDaemon.open(
            options: SecondaryOptions(store: store, proof: false, qemu: nil, ramDirectory: place.base, seeds: seeds),
            log: log)
        group = MultiThreadedEventLoopGroup(numberOfThreads: 1)
        address = .unix("\(place.base)/link.sock")
        let (ready, isReady) = AsyncStream.makeStream(of: Void.self)
        serving = Task { [daemon, address] in
            defer { isReady.finish() }
            try await daemon.run(listen: address) { isReady.finish() }
        }
        for await _ in ready {}
        for _ in 0..<500 where daemon.seeding.withLock({ !$0.isEmpty }) { try await Task.sleep(for: .milliseconds(10)) }
    }

    func stop() async throws {
        serving.cancel()
        _ = await serving.result
        try await group.shutdownGracefully()
    }

    var diskPath: String { "\(store)/g/disks/d/secondary.raw" }

    /// What one session sent.
    struct Traffic {
        /// Bytes of all frames of the first epoch.
        var bytes: UInt64 = 0
        var skipped: UInt64 = 0
        var committed = Epoch.none
    }

    func hello(size: UInt64) -> Hello {
        var random = SystemRandomNumberGenerator()
        return Hello(
            guest: "g", session: Identifier(using: &random), durability: .disk, label: "test",
            disks: [Hello.Disk(id: "d", size: size)], generation: Generation(0), agentVersion: "test")
    }

    func connect(size: UInt64) async throws -> (AgentLink.Connected, NIOLoopBound<AgentCore>) {
        let loop = loop
        let connected = try await AgentLink.connect(to: address, hello: hello(size: size), loop: loop)
        let settings = AgentCore.Settings(
            generation: connected.welcome.generation, firstEpoch: connected.welcome.firstEpoch,
            intervalNanoseconds: 1_000_000_000, budgetBytes: 256 << 20, useDelta: false, diskSizes: [size])
        let machine = connected.machine
        let channel = connected.channel
        let log = Logger(label: "test", factory: { _ in SwiftLogNoOpLogHandler() })
        let core = try await loop.submit {
            let core = AgentCore(settings: settings, machine: machine, link: channel, loop: loop, log: log)
            core.onEnd = { [self] ending in endings.withLock { $0.append(ending) } }
            return NIOLoopBound(core, eventLoop: loop)
        }.get()
        return (connected, core)
    }

    /// One session: compares, copies the disk as QEMU's mirror does, and has the first checkpoint committed.
    ///
    /// - Parameters:
    ///   - zeroesFirst: whether the whole target is zeroed before, as QEMU does with targets that can be unmapped.
    ///   - before: what happens to the mirror's target between zeroing and copying; gets the core.
    func protect(
        _ disk: [UInt8], zeroesFirst: Bool = true, before: @escaping @Sendable (AgentCore) -> Void = { _ in }
    ) async throws -> Traffic {
        let size = UInt64(disk.count)
        let (connected, core) = try await connect(size: size)
        let identity = try Self.identity()
        let loop = loop
        try await loop.submit {
            connected.handler.value.deliver(to: core.value, on: connected.channel)
            core.value.startHeartbeat()
            core.value.sendIdentity(identity)
            core.value.flush()
        }.get()
        try await wait(core, "the comparison") { $0.isCompared }
        try await loop.submit {
            if zeroesFirst { core.value.diskExtent(.zeroes(disk: 0, range: ByteRange(offset: 0, length: size))) }
            before(core.value)
            disk.withUnsafeBytes { bytes in
                for start in stride(from: 0, to: bytes.count, by: 1 << 20) {
                    let piece = UnsafeRawBufferPointer(rebasing: bytes[start..<min(start + 1 << 20, bytes.count)])
                    core.value.diskWrite(disk: 0, offset: UInt64(start), bytes: piece)
                }
            }
            while !core.value.settle(ranges: 3) {}
            try ([0, 0, 0, 4] + Array("none".utf8)).withUnsafeBytes { try core.value.configuration($0) }
            core.value.ramLayout([RamBlockDescription(name: "pc.ram", length: 1 << 20)], sectionID: 2)
            core.value.initialStateComplete(deviceState: Self.device)
            core.value.flush()
        }.get()
        try await wait(core, "the first commit") { $0.figures.committed >= $0.settings.firstEpoch }
        let traffic = try await loop.submit {
            Traffic(
                bytes: core.value.figures.lastEpochBytes, skipped: core.value.skippedBytes,
                committed: core.value.figures.committed)
        }.get()
        try await connected.channel.close()
        try await waitForIdle()
        return traffic
    }

    func wait(
        _ core: NIOLoopBound<AgentCore>, _ what: String, _ condition: @escaping @Sendable (AgentCore) -> Bool
    ) async throws {
        for _ in 0..<1500 {
            let (holds, hasEnded) = try await loop.submit { (condition(core.value), core.value.hasEnded) }.get()
            if holds { return }
            if hasEnded { throw Failed(description: "the session ended before \(what): \(endings.withLock { $0 })") }
            try await Task.sleep(for: .milliseconds(10))
        }
        throw Failed(description: "\(what) does not come")
    }

    func waitForIdle() async throws {
        for _ in 0..<1500 {
            if try await daemon.statuses(guest: "g").allSatisfy({ $0.hasNoPrimary }) { return }
            try await Task.sleep(for: .milliseconds(10))
        }
        throw Failed(description: "the session does not end")
    }

    static func identity() throws -> [UInt8] {
        var answers = GuestAnswers()
        answers.answers["query-version"] = ["qemu": ["major": 7, "minor": 2, "micro": 22], "package": ""]
        answers.machineType = "none-machine"
        return try GuestIdentity.capture(answers, arguments: ["qemu-system-x86_64", "-m", "1"]).encoded()
    }

    func diskContents() throws -> [UInt8] { try WholeFile.read(diskPath, limit: 1 << 30) }
}
