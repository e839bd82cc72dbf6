import AsyncIO
import Checkpointer
import Foundation
import Logging
import SystemPackage
import TestSupport
import Testing
import Units

@testable import Node

/// A stopped store with one guest, some checkpoints old.
private struct CheckScene {
    let place: Place
    let store: String
    let guest: String
    let tmpfs: String
    let id: Identifier

    init(seed: UInt64, durability: Durability, commits: Int, openEpoch: Bool = false) throws {
        place = try Place()
        store = String(place.directory.dropLast(2)) + "/store"
        guest = "\(store)/g"
        id = try Store.open(directory: store).description.id
        tmpfs = try RamTmpfs.prepare(base: place.base, name: Store.ramFolderName(id, "g"))
        try GuestStore.create(directory: guest)
        let faults = FaultInjector(below: guest)
        defer { faults.end() }
        let opened = try GuestStore(
            name: "g", directory: guest, ramDirectory: tmpfs, storeID: id,
            log: Logger(label: "test") { _ in SwiftLogNoOpLogHandler() })
        let machine = TestMachine(
            disk: [UInt8](repeating: 3, count: 512 * 301),
            ram: TestPrimary.blocks.map { [UInt8](repeating: 0, count: $0.1) }, device: [])
        let primary = TestPrimary(
            store: opened, machine: machine, random: SplitMix64(seed: seed), durability: durability)
        guard commits > 0 else { return }
        try primary.begin()
        for _ in 0..<commits {
            let epoch = primary.epoch
            try primary.touchDisk(epoch)
            primary.touchRam()
            try opened.boundary(opened: epoch.next)
            try primary.sendState(epoch)
            try opened.commit(epoch)
            try opened.apply(epoch)
            primary.advance()
        }
        guard openEpoch else { return }
        // Sealed by the disks, and then the daemon is gone: its hidden disk stays.
        for _ in 0..<4 { try primary.touchDisk(primary.epoch) }
        try opened.boundary(opened: primary.epoch.next)
        try primary.sendState(primary.epoch)
        faults.fail(.ioError) { if case .write(let path, _, _) = $0 { path.hasSuffix("/commit") } else { false } }
        #expect(throws: IOError.self) { try opened.commit(primary.epoch) }
    }

    func remove() { place.remove() }

    func run(_ path: String? = nil, quick: Bool = false) throws -> StoreCheckReport {
        try StoreCheck(path: path ?? store, options: .init(ramDirectory: place.base, quick: quick)).run()
    }

    /// Turns one bit of a file around.
    func spoil(_ path: String, at offset: UInt64) throws {
        let file = try FileHandle(forUpdating: URL(filePath: path))
        try file.seek(toOffset: offset)
        let byte = try #require(try file.read(upToCount: 1)?.first)
        try file.seek(toOffset: offset)
        try file.write(contentsOf: Data([byte ^ 0x10]))
        try file.close()
    }

    func file(_ folder: String, _ matches: (String) -> Bool) throws -> String {
        let names = try Directory.names(in: "\(guest)/\(folder)")
        let name = names.first(where: matches)
        return "\(guest)/\(folder)/\(try #require(name, "\(names)"))"
    }

    /// Every file of the store and of the RAM cache with its bytes' checksum.
    func fingerprint() throws -> [String: UInt32] {
        var found: [String: UInt32] = [:]
        for root in [store, tmpfs] {
            let files = FileManager.default.enumerator(atPath: root)
            while let name = files?.nextObject() as? String {
                guard let data = try? Data(contentsOf: URL(filePath: "\(root)/\(name)")) else { continue }
                found["\(root)/\(name)"] = CRC32C.checksum([UInt8](data))
            }
        }
        return found
    }
}

@Suite("Checking a stopped store")
struct StoreCheckTests {
    @Test(
        "a store at rest is consistent, all of it is named, and looking changes nothing",
        arguments: [Durability.disk, .memory], [false, true])
    func consistent(durability: Durability, openEpoch: Bool) throws {
        let scene = try CheckScene(seed: 1, durability: durability, commits: 4, openEpoch: openEpoch)
        defer { scene.remove() }
        let before = try scene.fingerprint()
        let report = try scene.run()
        #expect(try scene.fingerprint() == before)
        #expect(report.verdict == .consistent, "\(report)")
        let guest = try #require(report.guests.first)
        #expect(guest.guest == "g" && guest.epoch == 4 && guest.generation == 1 && guest.role == "replica")
        for what in ["commit slot 0", "commit slot 1", "machine", "secondary disk", "RAM cache", "device state"] {
            #expect(guest.items.contains { $0.what == what && $0.state == .good }, "\(what): \(report)")
        }
        #expect(guest.items.contains { $0.what == "RAM on disk" } == (durability == .disk))
        #expect(
            guest.items.contains { $0.what == "RAM cache against disk" && $0.state == .good } == (durability == .disk))
        let open = guest.items.filter { $0.text.contains("which is not committed") && $0.state == .leftover }
        #expect(open.isEmpty != openEpoch)
        let one = try scene.run(scene.guest + "/", quick: true)
        #expect(one.guests.map(\.guest) == ["g"] && one.verdict == .consistent)
    }

    /// Where damage is done, and what the check must call it.
    enum Spoilt: String, CaseIterable {
        case oneSlot, bothSlots, layout, identity, shortDisk, noDisk, hiddenTable, log, device, cache, staleRecord
    }

    @Test("each kind of damage is found and named", arguments: Spoilt.allCases)
    func damaged(what: Spoilt) throws {
        let scene = try CheckScene(seed: 2, durability: .disk, commits: 4, openEpoch: what == .hiddenTable)
        defer { scene.remove() }
        let words: String
        switch what {
        case .oneSlot:
            // As a crash leaves it: the record before counts, whose device state is gone.
            try scene.spoil("\(scene.guest)/commit", at: 100)
            words = "device"
        case .bothSlots:
            try scene.spoil("\(scene.guest)/commit", at: 100)
            try scene.spoil("\(scene.guest)/commit", at: 4196)
            words = "commit record"
        case .layout, .identity:
            let session = try #require(try Directory.names(in: "\(scene.guest)/sessions").first)
            try scene.spoil(
                "\(scene.guest)/sessions/\(session)/\(what == .layout ? "layout" : "guest.json")", at: 20)
            words = "machine and RAM layout"
        case .shortDisk:
            try FileHandle(forUpdating: URL(filePath: "\(scene.guest)/disks/d/secondary.raw")).truncate(atOffset: 4096)
            words = "secondary disk"
        case .noDisk:
            try Directory.removeFile("\(scene.guest)/disks/d/secondary.raw")
            words = "secondary disk"
        case .hiddenTable:
            // The place of the L1 table in the header.
            try scene.spoil(try scene.file("disks/d") { $0 == "hidden-5.qcow2" }, at: 44)
            words = "hidden disk"
        case .log:
            try scene.spoil(try scene.file("ram") { $0.hasSuffix(".log") }, at: 300)
            words = "RAM on disk"
        case .device:
            try scene.spoil(try scene.file("device") { $0.hasPrefix("state-") }, at: 2)
            words = "device state"
        case .cache:
            let cache = try #require(try Directory.names(in: scene.tmpfs).first { $0.hasPrefix("cache-") })
            try scene.spoil("\(scene.tmpfs)/\(cache)/0-pc.ram.ram", at: 8192 + 5)
            words = "RAM cache against disk"
        case .staleRecord:
            let newest = try #require(try scene.run(quick: true).guests.first?.epoch)
            try Directory.removeFile("\(scene.guest)/device/state-\(newest)")
            words = "device state"
        }
        let before = try scene.fingerprint()
        let report = try scene.run()
        #expect(try scene.fingerprint() == before)
        #expect(report.verdict == .damaged, "\(report)")
        let items = report.guests.first?.items ?? []
        #expect(items.contains { $0.state == .damaged && ($0.what + $0.text).contains(words) }, "\(report)")
    }

    @Test("nothing committed, a store in use, no store and an unknown guest have answers of their own")
    func others() throws {
        let scene = try CheckScene(seed: 3, durability: .disk, commits: 0)
        defer { scene.remove() }
        #expect(try scene.run().verdict == .nothingCommitted)
        do {
            let holder = try Store.open(directory: scene.store)
            let error = #expect(throws: StoreCheck.Refused.self) { try scene.run() }
            if case .inUse = error {} else { Issue.record("\(String(describing: error))") }
            withExtendedLifetime(holder) {}
        }
        for path in [scene.place.base, "\(scene.store)/nobody"] {
            let error = #expect(throws: StoreCheck.Refused.self) { try scene.run(path) }
            if case .notThere = error {} else { Issue.record("\(String(describing: error))") }
        }
    }

    @Test("what the medium cannot read is called unreadable, not damaged")
    func unreadable() throws {
        let scene = try CheckScene(seed: 4, durability: .disk, commits: 2)
        defer { scene.remove() }
        let faults = FaultInjector(below: scene.guest)
        defer { faults.end() }
        faults.fail(.ioError) { if case .read(let path, _, _) = $0 { path.hasSuffix("/secondary.raw") } else { false } }
        let report = try scene.run()
        #expect(report.verdict == .unreadable, "\(report)")
        #expect(report.guests.first?.items.first { $0.state == .unreadable }?.file == "disks/d/secondary.raw")
        #expect(try scene.run(quick: true).verdict == .consistent)
    }
}
