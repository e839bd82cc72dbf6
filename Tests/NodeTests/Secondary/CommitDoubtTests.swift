import AsyncIO
import Checkpointer
import Link
import Logging
import Synchronization
import SystemPackage
import TestSupport
import Testing
import Units

@testable import Node

/// Writes down the calls that change something, in order.
private final class CallRecorder: FileObserver {
    private let directory: String
    private let lines = Mutex<[String]>([])

    init(below directory: String) {
        self.directory = directory
        FileObservation.begin(below: directory, self)
    }

    func end() { FileObservation.end(below: directory) }

    var calls: [String] { lines.withLock { $0 } }

    func willPerform(_ call: FileCall) throws(IOError) {
        let line: String? =
            switch call {
            case .sync(let path): "sync \(path)"
            case .syncDirectory(let path): "sync of directory \(path)"
            case .remove(let path): "remove \(path)"
            default: nil
            }
        if let line { lines.withLock { $0.append(line) } }
    }
}

/// Keeps what a disk would keep of the commit file: what was synced, whole. A sync that is made to fail keeps a half of
/// each write and has the kernel forget the rest, as Linux does: the next sync has nothing to write, and succeeds.
private final class CommitMedium: FileObserver {
    private struct State {
        var bytes: [UInt8]
        var waiting: [(offset: Int, bytes: [UInt8])] = []
        var failing = 0
    }

    private let path: String
    private let directory: String
    private let state: Mutex<State>

    /// The commit file in the directory, as it is now.
    init(in directory: String) throws {
        self.directory = directory
        path = "\(directory)/commit"
        state = Mutex(State(bytes: try WholeFile.read(path, limit: CommitSlots.fileLength)))
        FileObservation.begin(below: directory, self)
    }

    func end() { FileObservation.end(below: directory) }

    func failNextSync() { state.withLock { $0.failing = 1 } }

    /// What a power loss now would leave: each write that was not synced torn in the middle.
    var afterPowerLoss: [UInt8] {
        state.withLock { state in
            var bytes = state.bytes
            for write in state.waiting { Self.tear(write, &bytes) }
            return bytes
        }
    }

    private static func tear(_ write: (offset: Int, bytes: [UInt8]), _ bytes: inout [UInt8]) {
        bytes.replaceSubrange(write.offset..<write.offset + 512, with: write.bytes[..<512])
    }

    func willPerform(_ call: FileCall) throws(IOError) {
        guard call.path == path else { return }
        let fails = state.withLock { state -> Bool in
            switch call {
            case .write(_, let offset, let bytes):
                state.waiting.append((Int(offset), Array(bytes)))
            case .sync:
                let fails = state.failing > 0
                for write in state.waiting {
                    if fails {
                        Self.tear(write, &state.bytes)
                    } else {
                        let end = write.offset + write.bytes.count
                        state.bytes.replaceSubrange(write.offset..<end, with: write.bytes)
                    }
                }
                state.waiting = []
                if fails { state.failing -= 1 }
                return fails
            default: break
            }
            return false
        }
        if fails { throw IOError(operation: "injected fault", path: path, errno: .ioError) }
    }
}

/// What the simulator found: records of which it is not known whether they are on the medium.
@Suite("A commit record in doubt")
struct CommitDoubtTests {
    private func open(_ place: Place) throws -> GuestStore {
        try GuestStore(
            name: "g", directory: place.directory, ramDirectory: place.tmpfs,
            storeID: Identifier(high: 1, low: 2), log: Logger(label: "test") { _ in SwiftLogNoOpLogHandler() })
    }

    private func primary(_ store: GuestStore) -> TestPrimary {
        let machine = TestMachine(
            disk: [UInt8](repeating: 1, count: 4096 * 8),
            ram: TestPrimary.blocks.map { [UInt8](repeating: 0, count: $0.1) }, device: [])
        return TestPrimary(store: store, machine: machine, random: SplitMix64(seed: 5), durability: .disk)
    }

    private func commit(_ primary: TestPrimary) throws -> TestMachine {
        let epoch = primary.epoch
        try primary.touchDisk(epoch)
        primary.touchRam()
        try primary.store.boundary(opened: epoch.next)
        let machine = primary.machine
        try primary.sendState(epoch)
        try primary.store.commit(epoch)
        try primary.store.apply(epoch)
        primary.advance()
        return machine
    }

    @Test(
        "a checkpoint whose record could not be synced is not found by the next daemon, and the one before is whole",
        arguments: [0, 2])
    func failedSync(commitsBefore: Int) throws {
        let place = try Place()
        defer { place.remove() }
        try GuestStore.create(directory: place.directory)
        let faults = FaultInjector(below: place.directory)
        defer { faults.end() }
        var acknowledged: TestMachine?
        do {
            let store = try open(place)
            let primary = primary(store)
            try primary.begin()
            for _ in 0..<commitsBefore { acknowledged = try commit(primary) }
            faults.fail(.ioError, count: 1) { call in
                if case .sync(let path) = call { return path.hasSuffix("/commit") }
                return false
            }
            #expect(throws: IOError.self) { _ = try commit(primary) }
            try store.endSession()
        }
        let reopened = try open(place)
        #expect(reopened.damage == nil)
        #expect(reopened.committed == Epoch(UInt64(commitsBefore)))
        guard let acknowledged else {
            #expect(reopened.record == nil)
            return
        }
        let disk = try WholeFile.read("\(place.directory)/disks/d/secondary.raw", limit: 1 << 24)
        #expect(disk == acknowledged.disk)
        let ram = try #require(reopened.ram)
        for block in acknowledged.ram.indices { #expect(Array(ram.contents(block: block)) == acknowledged.ram[block]) }
    }

    @Test("what a daemon finds is made durable before anything is deleted on the strength of it")
    func syncedAtStart() throws {
        let place = try Place()
        defer { place.remove() }
        try GuestStore.create(directory: place.directory)
        do {
            let store = try open(place)
            let primary = primary(store)
            try primary.begin()
            for _ in 0..<2 { _ = try commit(primary) }
            // A leftover, so that recovery has something to delete.
            try WholeFile.write("\(place.directory)/device/state-1", [1], durable: false)
        }
        let recorder = CallRecorder(below: place.directory)
        defer { recorder.end() }
        _ = try open(place)
        let calls = recorder.calls
        let synced = try #require(calls.firstIndex { $0.hasPrefix("sync ") && $0.hasSuffix("/commit") })
        let named = try #require(calls.firstIndex(of: "sync of directory \(place.directory)"))
        let removed = try #require(calls.firstIndex { $0.hasSuffix("/device/state-1") && $0.hasPrefix("remove ") })
        #expect(synced < removed)
        #expect(named < removed)
    }

    @Test("what a removed replica left of a disk is durably gone before the first record of the next one")
    func removedStaysAway() throws {
        let place = try Place()
        defer { place.remove() }
        try GuestStore.create(directory: place.directory)
        do {
            let store = try open(place)
            let primary = primary(store)
            try primary.begin()
            _ = try commit(primary)
            try store.endSession()
        }
        // The removal was cut short: the record went, the disk stayed, with what a session and a failover had made.
        let folder = "\(place.directory)/disks/d"
        try CommitFile.create(in: place.directory)
        for name in ["hidden-7.qcow2", "active.qcow2"] { try WholeFile.write("\(folder)/\(name)", [1], durable: true) }
        let recorder = CallRecorder(below: place.directory)
        defer { recorder.end() }
        let store = try open(place)
        let primary = primary(store)
        try primary.begin()
        let removed = try ["hidden-7.qcow2", "active.qcow2"].map { name in
            try #require(recorder.calls.lastIndex(of: "remove \(folder)/\(name)"), "\(name)")
        }
        let synced = try #require(recorder.calls.lastIndex(of: "sync of directory \(folder)"))
        for index in removed { #expect(index < synced) }
    }

    @Test("a first copy behind a failed sync is not kept: it can be read and yet be lost")
    func doubtfulCopy() throws {
        let place = try Place()
        defer { place.remove() }
        try GuestStore.create(directory: place.directory)
        let faults = FaultInjector(below: place.directory)
        defer { faults.end() }
        let store = try open(place)
        let primary = primary(store)
        try primary.begin()
        faults.fail(.ioError, count: 1) { call in
            if case .sync(let path) = call { return path.hasSuffix("/secondary.raw") }
            return false
        }
        #expect(throws: DiskReplicaError.self) { _ = try commit(primary) }
        try store.endSession()
        #expect(!Directory.exists("\(place.directory)/disks/d/secondary.raw"))
    }

    @Test("a guest is not started on a disk whose rollback failed half-way, until the rollback is done")
    func halfRolledBack() throws {
        let place = try Place()
        defer { place.remove() }
        try GuestStore.create(directory: place.directory)
        let faults = FaultInjector(below: place.directory)
        defer { faults.end() }
        let store = try open(place)
        let primary = primary(store)
        try primary.begin()
        let acknowledged = try commit(primary)
        var writer = ByteWriter()
        DiskWrite.encodePrefix(disk: 0, offset: 0, into: &writer)
        writer.write(bytes: [UInt8](repeating: 7, count: 4096 * 8))
        try writer.bytes.withUnsafeBytes { try store.write(epoch: primary.epoch, try DiskWrite.decode($0)) }
        try store.boundary(opened: primary.epoch.next)
        try primary.sendState(primary.epoch)
        faults.fail(.ioError, count: 1) { call in
            if case .sync(let path) = call { return path.hasSuffix("/commit") }
            return false
        }
        #expect(throws: IOError.self) { try store.commit(primary.epoch) }
        // The epoch is on the secondary disk now; taking it back fails.
        faults.fail(.ioError) { call in
            if case .write(let path, _, _) = call { return path.hasSuffix("/secondary.raw") }
            return false
        }
        #expect(throws: (any Error).self) { try store.endSession() }
        #expect(throws: (any Error).self) { try store.promote() }
        #expect(!store.isPromoted, "nothing may be on record of a failover that was refused")
        faults.heal()
        try store.promote()
        _ = try store.makeActiveDisks(.active)
        let disk = try WholeFile.read("\(place.directory)/disks/d/secondary.raw", limit: 1 << 24)
        #expect(disk == acknowledged.disk)
    }

    @Test("after a failed sync and a restart, at no moment both slots can be lost")
    func failedSyncThenRestart() throws {
        let place = try Place()
        defer { place.remove() }
        try GuestStore.create(directory: place.directory)
        let store = Identifier(high: 1, low: 2)
        do {
            let first = try open(place)
            let primary = primary(first)
            try primary.begin()
            for _ in 0..<2 { _ = try commit(primary) }
            try first.endSession()
        }
        let medium = try CommitMedium(in: place.directory)
        defer { medium.end() }
        func recordAfterPowerLoss() throws -> CommitRecord? {
            let bytes = medium.afterPowerLoss
            return try CommitSlots.choose(
                Array(bytes[..<CommitSlot.length]), Array(bytes[CommitSlot.length...]), store: store
            ).record
        }
        do {
            let failing = try open(place)
            medium.failNextSync()
            #expect(throws: IOError.self) { try failing.promote() }
        }
        // The page cache has the promotion whole, the medium a torn one.
        #expect(try recordAfterPowerLoss()?.role == .replica)
        let again = try open(place)
        #expect(again.isPromoted)
        #expect(try recordAfterPowerLoss()?.role == .promoted, "what a daemon goes by must be on the medium")
        try again.promote()
        #expect(try recordAfterPowerLoss()?.generation == Generation(3))
        // The next record is torn by a power loss while it is written: the one before it must be there.
        medium.failNextSync()
        #expect(throws: IOError.self) { try again.promote() }
        #expect(try recordAfterPowerLoss()?.generation == Generation(3))
    }
}
