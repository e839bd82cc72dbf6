import AsyncIO
import Checkpointer
import Link
import Logging
import RamCache
import SystemPackage
import TestSupport
import Testing
import Units

@testable import Node

@Suite("Sixteen disks are one checkpoint")
struct ManyDisksTests {
    private static let count = LinkLimits.disksMax
    private static let storeID = Identifier(high: 7, low: 8)

    /// Sizes of their own, some of them no multiple of a block.
    private static func size(_ disk: Int) -> Int { 512 * (97 + 31 * disk) }

    private func open(_ place: Place) throws -> GuestStore {
        try GuestStore(
            name: "g", directory: place.directory, ramDirectory: place.tmpfs, storeID: Self.storeID,
            log: Logger(label: "test") { _ in SwiftLogNoOpLogHandler() })
    }

    /// Writes to some disks, zeroes on some.
    private func touch(
        _ store: GuestStore, _ epoch: Epoch, _ disks: inout [[UInt8]], _ random: inout SplitMix64
    ) throws {
        for _ in 0..<Int.random(in: 4...60, using: &random) {
            let disk = Int.random(in: 0..<Self.count, using: &random)
            let sectors = disks[disk].count / 512
            let first = Int.random(in: 0..<sectors, using: &random)
            let range = first * 512..<min(first + Int.random(in: 1...24, using: &random), sectors) * 512
            if Int.random(in: 0..<5, using: &random) == 0 {
                disks[disk].replaceSubrange(range, with: repeatElement(0, count: range.count))
                let extent = ByteRange(offset: UInt64(range.lowerBound), length: UInt64(range.count))
                try store.zero(epoch: epoch, .zeroes(disk: disk, range: extent))
            } else {
                let value = UInt8.random(in: 1...255, using: &random)
                disks[disk].replaceSubrange(range, with: repeatElement(value, count: range.count))
                var writer = ByteWriter()
                DiskWrite.encodePrefix(disk: disk, offset: UInt64(range.lowerBound), into: &writer)
                writer.write(bytes: Array(disks[disk][range]))
                try writer.bytes.withUnsafeBytes { try store.write(epoch: epoch, try DiskWrite.decode($0)) }
            }
        }
    }

    private func begin(_ store: GuestStore, _ durability: Durability, _ random: inout SplitMix64) throws -> Epoch {
        let hello = Hello(
            protocolVersion: 1, guest: "g", session: Identifier(using: &random), durability: durability, label: "test",
            disks: (0..<Self.count).map { Hello.Disk(id: "disk\($0)", size: UInt64(Self.size($0))) },
            generation: Generation(0), agentVersion: "test")
        let epoch = try store.beginSession(hello)
        store.keepIdentity(try TestPrimary.identity())
        try store.layOutRam(
            RamLayoutPayload(
                ramSectionID: 2, configuration: [0, 0, 0, 4] + Array("none".utf8),
                blocks: [RamLayoutPayload.Block(name: "pc.ram", length: 1 << 16)]))
        return epoch
    }

    private func sealAndCommit(_ store: GuestStore, _ epoch: Epoch) throws {
        try store.boundary(opened: epoch.next)
        store.expectDeviceState()
        // An empty device section and its end.
        ([4, 1, 2, 3, 4, 0x7E, 0, 0, 0, 1, 0] as [UInt8]).withUnsafeBytes { store.appendDeviceState($0) }
        try store.commit(epoch)
        try store.apply(epoch)
    }

    private func expect(_ store: GuestStore, _ place: Place, _ disks: [[UInt8]], _ words: Comment) throws {
        #expect(store.damage == nil, words)
        #expect(store.record?.disks.count == Self.count, words)
        for disk in 0..<Self.count {
            let found = try WholeFile.read("\(place.directory)/disks/disk\(disk)/secondary.raw", limit: 1 << 24)
            #expect(found == disks[disk], "\(words), disk \(disk)")
        }
    }

    @Test(
        "after commits, and a death at any moment, all of them are at the committed checkpoint",
        arguments: [Durability.disk, .memory], 1...6 as ClosedRange<UInt64>)
    func crashes(durability: Durability, seed: UInt64) throws {
        let place = try Place()
        defer { place.remove() }
        try GuestStore.create(directory: place.directory)
        var random = SplitMix64(seed: seed)
        var disks = (0..<Self.count).map { [UInt8](repeating: 0, count: Self.size($0)) }
        var committed = disks
        var commits = 0
        for session in 0..<3 {
            let store = try open(place)
            if commits > 0 { try expect(store, place, committed, "seed \(seed), session \(session)") }
            disks = committed
            var epoch = try begin(store, durability, &random)
            for _ in 0..<Int.random(in: 1...4, using: &random) {
                try touch(store, epoch, &disks, &random)
                try sealAndCommit(store, epoch)
                committed = disks
                commits += 1
                epoch = epoch.next
            }
            // The open epoch is on its way, drained or not, when the daemon dies.
            try touch(store, epoch, &disks, &random)
            if Bool.random(using: &random) {
                try store.boundary(opened: epoch.next)
                try touch(store, epoch.next, &disks, &random)
            }
        }
        try expect(try open(place), place, committed, "seed \(seed), end")
        #expect(commits >= 3)
    }

    @Test("a disk whose file cannot be written keeps the checkpoint of all others", arguments: [0, 15])
    func oneFails(broken: Int) throws {
        let place = try Place()
        defer { place.remove() }
        try GuestStore.create(directory: place.directory)
        let faults = FaultInjector(below: place.directory)
        defer { faults.end() }
        var random = SplitMix64(seed: 99)
        var disks = (0..<Self.count).map { [UInt8](repeating: 0, count: Self.size($0)) }
        let committed: [[UInt8]]
        do {
            let store = try open(place)
            let epoch = try begin(store, .disk, &random)
            try touch(store, epoch, &disks, &random)
            try sealAndCommit(store, epoch)
            committed = disks
            for _ in 0..<8 { try touch(store, epoch.next, &disks, &random) }
            let file = "/disk\(broken)/"
            faults.fail(.ioError) { call in
                if case .sync(let path) = call { return path.contains(file) }
                return false
            }
            #expect(throws: (any Error).self) { try sealAndCommit(store, epoch.next) }
            faults.heal()
        }
        let reopened = try open(place)
        #expect(reopened.committed == Epoch(1))
        try expect(reopened, place, committed, "disk \(broken) failed")
    }
}
