import AsyncIO
import Checkpointer
import Glibc
import Link
import Logging
import QEMU
import RamCache
import Testing
import Units

@testable import Node

/// What the store must hold: a naive copy of the guest.
private struct Machine: Equatable {
    var disk: [UInt8]
    var ram: [[UInt8]]
    var device: [UInt8]
}

/// A small deterministic generator.
private struct SplitMix64: RandomNumberGenerator {
    var state: UInt64

    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var z = state
        z = (z ^ z >> 30) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ z >> 27) &* 0x94D0_49BB_1331_11EB
        return z ^ z >> 31
    }
}

/// A primary without sockets: writes to its machine and says the same to a store.
private final class Primary {
    static let blocks = [("pc.ram", 1 << 20), ("rom", 16 << 10)]

    let store: GuestStore
    var machine: Machine
    var random: SplitMix64
    private let hello: Hello
    private let encoder = PageBatchEncoder(useDelta: true)
    private var shadow: [[UInt8]]
    private(set) var epoch: Epoch = .none

    init(store: GuestStore, machine: Machine, random: SplitMix64, durability: Durability) {
        self.store = store
        self.machine = machine
        self.random = random
        var random = random
        hello = Hello(
            protocolVersion: 1, guest: "g", session: Identifier(using: &random), durability: durability, label: "test",
            disks: [Hello.Disk(id: "d", size: UInt64(machine.disk.count))], generation: Generation(0),
            agentVersion: "test")
        self.random = random
        shadow = machine.ram.map { [UInt8](repeating: 0, count: $0.count) }
    }

    /// The initial copy, up to and without its commit.
    func begin() throws {
        epoch = try store.beginSession(hello)
        store.keepIdentity(try identity())
        try store.layOutRam(
            RamLayoutPayload(
                ramSectionID: 2, configuration: [0, 0, 0, 4] + Array("none".utf8),
                blocks: Self.blocks.map { RamLayoutPayload.Block(name: $0.0, length: UInt64($0.1)) }))
        try machine.disk.withUnsafeBytes { bytes in
            try store.write(epoch: epoch, try DiskWrite.decode(frame(0, bytes)))
        }
    }

    private func identity() throws -> [UInt8] {
        var answers = GuestAnswers()
        answers.answers["query-version"] = ["qemu": ["major": 7, "minor": 2, "micro": 22], "package": ""]
        answers.machineType = "none-machine"
        return try GuestIdentity.capture(answers, arguments: ["qemu-system-x86_64", "-m", "1"]).encoded()
    }

    private func frame(_ offset: UInt64, _ data: UnsafeRawBufferPointer) -> UnsafeRawBufferPointer {
        var writer = ByteWriter()
        DiskWrite.encodePrefix(disk: 0, offset: offset, into: &writer)
        writer.write(buffer: data)
        scratch.copyBytes(from: writer.bytes)
        return UnsafeRawBufferPointer(rebasing: scratch[..<writer.count])
    }

    private let scratch = UnsafeMutableRawBufferPointer.allocate(byteCount: 2 << 20, alignment: 16)

    deinit { scratch.deallocate() }

    /// Random writes, zeroes and discards of the guest in `epoch`.
    func touchDisk(_ epoch: Epoch) throws {
        for _ in 0..<Int.random(in: 0...6, using: &random) {
            let sectors = machine.disk.count / 512
            let first = Int.random(in: 0..<sectors, using: &random)
            let count = Int.random(in: 1...min(64, sectors - first), using: &random)
            let range = first * 512..<(first + count) * 512
            if Int.random(in: 0..<4, using: &random) == 0 {
                for index in range { machine.disk[index] = 0 }
                let extent = ByteRange(offset: UInt64(range.lowerBound), length: UInt64(range.count))
                try store.zero(
                    epoch: epoch,
                    Bool.random(using: &random)
                        ? .zeroes(disk: 0, range: extent) : .discard(disk: 0, range: extent))
            } else {
                let value = UInt8.random(in: 0...255, using: &random)
                for index in range { machine.disk[index] = value &+ UInt8(truncatingIfNeeded: index / 512) }
                let bytes = Array(machine.disk[range])
                try bytes.withUnsafeBytes { data in
                    try store.write(epoch: epoch, try DiskWrite.decode(frame(UInt64(range.lowerBound), data)))
                }
            }
        }
    }

    func touchRam() {
        for _ in 0..<Int.random(in: 0...40, using: &random) {
            let block = Int.random(in: 0..<machine.ram.count, using: &random)
            let page = Int.random(in: 0..<machine.ram[block].count / 4096, using: &random)
            switch Int.random(in: 0..<3, using: &random) {
            case 0:
                for index in page * 4096..<(page + 1) * 4096 { machine.ram[block][index] = 0 }
            case 1:
                machine.ram[block][page * 4096 + Int.random(in: 0..<4096, using: &random)] &+= 1
            default:
                for index in page * 4096..<(page + 1) * 4096 {
                    machine.ram[block][index] = UInt8.random(in: 0...255, using: &random)
                }
            }
        }
        machine.device =
            [4]
            + (0..<Int.random(in: 4...5000, using: &random)).map { _ in
                UInt8.random(in: 0...255, using: &random)
            } + [0x7E, 0, 0, 0, 1, 0]
    }

    /// RAM that differs from what the store has, device state; up to and without the commit.
    func sendState(_ epoch: Epoch) throws {
        for block in machine.ram.indices {
            for page in 0..<machine.ram[block].count / 4096 {
                let range = page * 4096..<(page + 1) * 4096
                guard machine.ram[block][range] != shadow[block][range] else { continue }
                machine.ram[block].withUnsafeBytes { now in
                    shadow[block].withUnsafeMutableBytes { old in
                        guard let now = now.baseAddress, let old = old.baseAddress else { return }
                        encoder.add(
                            block: UInt16(block), page: UInt64(page), data: now + range.lowerBound,
                            shadow: old + range.lowerBound)
                    }
                }
                if encoder.isFull, let batch = encoder.finish() { try store.stage(epoch: epoch, batch) }
            }
        }
        if let batch = encoder.finish() { try store.stage(epoch: epoch, batch) }
        store.expectDeviceState()
        machine.device.withUnsafeBytes { store.appendDeviceState($0) }
    }

    func advance() { epoch = epoch.next }
}

@Suite("A guest's store: disks, RAM and device state are one checkpoint, whatever happens")
struct GuestStoreTests {
    private let log = Logger(label: "test", factory: { _ in SwiftLogNoOpLogHandler() })
    private let storeID = Identifier(high: 1, low: 2)

    private func open(_ place: Place) throws -> GuestStore {
        try GuestStore(
            name: "g", directory: place.directory, ramDirectory: place.tmpfs, storeID: storeID, log: log)
    }

    /// Compares what a reopened store holds with the machine as it was at a commit.
    private func check(_ store: GuestStore, _ place: Place, holds machine: Machine, _ comment: Comment) throws {
        #expect(store.damage == nil, comment)
        let disk = try WholeFile.read("\(place.directory)/disks/d/secondary.raw", limit: 1 << 24)
        #expect(disk == machine.disk, comment)
        let ram = try #require(store.ram, comment)
        for block in machine.ram.indices { #expect(Array(ram.contents(block: block)) == machine.ram[block], comment) }
        let tail = machine.device + [6, 0, 0, 0, 2] + Array("{}".utf8)
        #expect(Array(store.restoreStream.suffix(tail.count)) == tail, comment)
    }

    @Test(
        "a crash at any step of random epochs leaves exactly the committed checkpoint",
        arguments: [Durability.disk, .memory], [UInt64](1...12))
    func crashesLeaveOneCheckpoint(durability: Durability, seed: UInt64) throws {
        let place = try Place()
        defer { place.remove() }
        try GuestStore.create(directory: place.directory)
        var random = SplitMix64(state: seed)
        var committed: Machine?
        var machine = Machine(
            disk: [UInt8](repeating: 7, count: 512 * 301),
            ram: Primary.blocks.map { [UInt8](repeating: 0, count: $0.1) },
            device: [])
        for session in 0..<3 {
            let store = try open(place)
            if let committed { try check(store, place, holds: committed, "seed \(seed), session \(session)") }
            let primary = Primary(store: store, machine: machine, random: random, durability: durability)
            try primary.begin()
            let steps = Int.random(in: 0...30, using: &random)
            committed = try run(primary, steps: steps) ?? committed
            // A new primary is another moment of the guest; the store must not care.
            machine = primary.machine
            random.state = primary.random.next()
            // The store is dropped without a word: a crash of the daemon. Sometimes the host went down with it.
            if durability == .disk, Bool.random(using: &random) {
                try FileTree.remove(place.tmpfs); try place.makeTmpfs()
            }
        }
        let store = try open(place)
        if let committed { try check(store, place, holds: committed, "seed \(seed), end") }
    }

    /// Runs epochs for a number of steps and stops dead. Returns the machine at the last commit, if there was one.
    private func run(_ primary: Primary, steps: Int) throws -> Machine? {
        var left = steps
        var committed: Machine?
        func step() -> Bool {
            left -= 1
            return left >= 0
        }
        while true {
            let epoch = primary.epoch
            guard step() else { return committed }
            try primary.touchDisk(epoch)
            primary.touchRam()
            guard step() else { return committed }
            try primary.store.boundary(opened: epoch.next)
            let boundary = primary.machine
            guard step() else { return committed }
            try primary.sendState(epoch)
            // The guest runs on: its writes belong to the next epoch and must not show in this one.
            try primary.touchDisk(epoch.next)
            guard step() else { return committed }
            try primary.store.commit(epoch)
            committed = boundary
            guard step() else { return committed }
            try primary.store.apply(epoch)
            primary.store.tidy()
            primary.advance()
        }
    }

    @Test("an ended session rolls the disks back and keeps RAM and device state of the last commit")
    func endedSessionKeepsTheCommit() throws {
        let place = try Place()
        defer { place.remove() }
        try GuestStore.create(directory: place.directory)
        let machine = Machine(
            disk: [UInt8](repeating: 1, count: 4096 * 8),
            ram: Primary.blocks.map { [UInt8](repeating: 0, count: $0.1) },
            device: [])
        let store = try open(place)
        let primary = Primary(store: store, machine: machine, random: SplitMix64(state: 5), durability: .disk)
        try primary.begin()
        let committed = try #require(try run(primary, steps: 33))
        try store.endSession()
        try check(store, place, holds: committed, "after the session")
        #expect(store.committed > .none)
    }

    @Test("a promoted replica keeps its hidden disks, has a new generation, and stays promoted after a restart")
    func promotionIsForEver() throws {
        let place = try Place()
        defer { place.remove() }
        try GuestStore.create(directory: place.directory)
        let machine = Machine(
            disk: [UInt8](repeating: 1, count: 4096 * 8),
            ram: Primary.blocks.map { [UInt8](repeating: 0, count: $0.1) },
            device: [])
        var store: GuestStore? = try open(place)
        let primary = Primary(
            store: try #require(store), machine: machine, random: SplitMix64(state: 9), durability: .disk)
        try primary.begin()
        _ = try run(primary, steps: 28)
        try store?.promote()
        try store?.rememberCheckpoint()
        #expect(store?.generation == Generation(2))
        let active = try #require(try store?.makeActiveDisks(.active)["d"])
        #expect(Directory.exists(active))
        store = nil
        let reopened = try open(place)
        #expect(reopened.isPromoted)
        #expect(reopened.generation == Generation(2))
        #expect(Directory.exists(active), "the guest's own disk must survive a restart of the daemon")
        try reopened.checkUnmerged()
        let raw = try DirectFile(path: "\(place.directory)/disks/d/secondary.raw", mode: .readWrite, direct: false)
        try raw.write(at: 0, from: [UInt8](repeating: 3, count: 512))
        #expect(throws: GuestStore.Failed.self, "a merged disk must not be started again with the checkpoint's RAM") {
            try reopened.checkUnmerged()
        }
    }

    @Test("nothing committed: promotion is refused and says so")
    func nothingToPromote() throws {
        let place = try Place()
        defer { place.remove() }
        try GuestStore.create(directory: place.directory)
        let store = try open(place)
        #expect(throws: GuestStore.Failed.self) { try store.promote() }
    }
}
