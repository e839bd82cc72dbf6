import AsyncIO
import Checkpointer
import Glibc
import Logging
import TestSupport
import Testing
import Units

@testable import Node

@Suite("A guest's store: disks, RAM and device state are one checkpoint, whatever happens")
struct GuestStoreTests {
    private let log = Logger(label: "test", factory: { _ in SwiftLogNoOpLogHandler() })
    private let storeID = Identifier(high: 1, low: 2)

    private func open(_ place: Place) throws -> GuestStore {
        try GuestStore(
            name: "g", directory: place.directory, ramDirectory: place.tmpfs, storeID: storeID, log: log)
    }

    /// Compares what a reopened store holds with the machine as it was at a commit.
    private func check(_ store: GuestStore, _ place: Place, holds machine: TestMachine, _ comment: Comment) throws {
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
        var random = SplitMix64(seed: seed)
        var committed: TestMachine?
        var machine = TestMachine(
            disk: [UInt8](repeating: 7, count: 512 * 301),
            ram: TestPrimary.blocks.map { [UInt8](repeating: 0, count: $0.1) },
            device: [])
        for session in 0..<3 {
            let store = try open(place)
            if let committed { try check(store, place, holds: committed, "seed \(seed), session \(session)") }
            let primary = TestPrimary(store: store, machine: machine, random: random, durability: durability)
            try primary.begin()
            let steps = Int.random(in: 0...30, using: &random)
            committed = try run(primary, steps: steps) ?? committed
            // A new primary is another moment of the guest; the store must not care.
            machine = primary.machine
            random = SplitMix64(seed: primary.random.next())
            // The store is dropped without a word: a crash of the daemon. Sometimes the host went down with it.
            if durability == .disk, Bool.random(using: &random) {
                try FileTree.remove(place.tmpfs); try place.makeTmpfs()
            }
        }
        let store = try open(place)
        if let committed { try check(store, place, holds: committed, "seed \(seed), end") }
    }

    /// Runs epochs for a number of steps and stops dead. Returns the machine at the last commit, if there was one.
    private func run(_ primary: TestPrimary, steps: Int) throws -> TestMachine? {
        var left = steps
        var committed: TestMachine?
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
        let machine = TestMachine(
            disk: [UInt8](repeating: 1, count: 4096 * 8),
            ram: TestPrimary.blocks.map { [UInt8](repeating: 0, count: $0.1) },
            device: [])
        let store = try open(place)
        let primary = TestPrimary(store: store, machine: machine, random: SplitMix64(seed: 5), durability: .disk)
        try primary.begin()
        let committed = try #require(try run(primary, steps: 33))
        try store.endSession()
        try check(store, place, holds: committed, "after the session")
        #expect(store.committed > .none)
    }

    @Test("what the open epoch had buffered does not reach the disks behind a promotion")
    func promotionStopsTheDrain() throws {
        let place = try Place()
        defer { place.remove() }
        try GuestStore.create(directory: place.directory)
        let machine = TestMachine(
            disk: [UInt8](repeating: 1, count: 48 << 20),
            ram: TestPrimary.blocks.map { [UInt8](repeating: 0, count: $0.1) },
            device: [])
        let store = try open(place)
        let primary = TestPrimary(store: store, machine: machine, random: SplitMix64(seed: 3), durability: .memory)
        try primary.begin()
        _ = try run(primary, steps: 25)
        for index in primary.machine.disk.indices { primary.machine.disk[index] = 2 }
        try primary.writeDisk()
        try store.promote()
        try store.rememberCheckpoint()
        usleep(500_000)
        try store.checkUnmerged()
    }

    @Test("a promoted replica keeps its hidden disks, has a new generation, and stays promoted after a restart")
    func promotionIsForEver() throws {
        let place = try Place()
        defer { place.remove() }
        try GuestStore.create(directory: place.directory)
        let machine = TestMachine(
            disk: [UInt8](repeating: 1, count: 4096 * 8),
            ram: TestPrimary.blocks.map { [UInt8](repeating: 0, count: $0.1) },
            device: [])
        var store: GuestStore? = try open(place)
        let primary = TestPrimary(
            store: try #require(store), machine: machine, random: SplitMix64(seed: 9), durability: .disk)
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
