import AsyncIO
import Checkpointer
import Foundation
import Logging
import TestSupport
import Units

@testable import Node

/// Runs a guest's whole store through a power loss at every moment: disks, RAM log, device state and commit record.
final class StoreCrashLab {
    struct Finding: Error, CustomStringConvertible {
        let description: String
    }

    struct Figures {
        var crashes = 0
        var secondCrashes = 0
        var checkpointsSeen: Set<UInt64> = []
    }

    /// What happens to the guest, told in letters.
    enum Letter: Character {
        /// The guest writes to its disk and its RAM.
        case work = "w"
        /// A checkpoint is taken, committed and applied.
        case commit = "C"
        /// The primary goes away and comes back.
        case attach = "A"
        /// The replica becomes the guest.
        case promote = "P"
    }

    var explorer = CrashExplorer(exhaustiveUpTo: 5, randomSubsets: 12, tornSubsets: 4)
    var secondCrashEvery = 17
    var plant: DiskCrashLab.Plant = { $0 }
    private(set) var figures = Figures()

    private static let blocks = [("pc.ram", 16 << 10)]
    private static let diskSize = 4 * 4096 + 512
    private let seed: UInt64
    private let scratch: DiskScratch
    private let storeID = Identifier(high: 1, low: 2)
    private let log = Logger(label: "test", factory: { _ in SwiftLogNoOpLogHandler() })
    private var run: String { scratch.path + "/run" }
    private var left: String { scratch.path + "/left" }

    init(seed: UInt64) throws {
        self.seed = seed
        scratch = try DiskScratch(below: FileManager.default.isWritableFile(atPath: "/dev/shm") ? "/dev/shm" : "/tmp")
        try Directory.create(run)
        try Directory.create(left)
    }

    // MARK: The run

    func examine(_ text: String) throws {
        let letters = text.compactMap(Letter.init)
        precondition(letters.count == text.count)
        try CrashImage().materialise(in: run)
        let recorder = FileRecorder(below: run)
        let checkpoints: [UInt64: TestMachine]
        do {
            defer { FileObservation.end(below: run) }
            checkpoints = try tell(letters, recorder)
        }
        let events = plant(recorder.end())
        var random = SplitMix64(seed: text.utf8.reduce(seed) { $0 &* 33 &+ UInt64($1) })
        var fates = SplitMix64(seed: random.next())
        try explorer.walk(from: ModelDisk(), events, allowed: 0...0, &fates) { crash in
            do {
                try judge(crash, checkpoints, &random)
            } catch {
                let last = events[..<crash.index].suffix(14).map(\.summary).joined(separator: "\n  ")
                throw Finding(
                    description: "story '\(text)', seed \(seed), crash before change \(crash.index) of "
                        + "\(events.count), allowed \(crash.allowed): \(error)\npending: \(crash.fates)\n  \(last)")
            }
            return true
        }
    }

    private func tell(_ letters: [Letter], _ recorder: FileRecorder) throws -> [UInt64: TestMachine] {
        let directory = run + "/g"
        try GuestStore.create(directory: directory)
        let tmpfs = try freshTmpfs()
        let store = try GuestStore(
            name: "g", directory: directory, ramDirectory: tmpfs, storeID: storeID, log: log)
        var checkpoints: [UInt64: TestMachine] = [:]
        var primary = makePrimary(
            store,
            TestMachine(
                disk: DiskSequence.checkpoint1, ram: Self.blocks.map { [UInt8](repeating: 0, count: $0.1) }, device: []),
            SplitMix64(seed: seed))
        try primary.begin()
        for letter in letters {
            switch letter {
            case .work:
                try primary.touchDisk(primary.epoch)
                primary.touchRam()
            case .commit:
                let epoch = primary.epoch
                try store.boundary(opened: epoch.next)
                primary.touchRam()
                checkpoints[epoch.rawValue] = primary.machine
                let boundary = primary.machine
                try primary.sendState(epoch)
                try primary.touchDisk(epoch.next)
                recorder.allow(epoch.rawValue - 1...epoch.rawValue)
                try store.commit(epoch)
                recorder.allow(epoch.rawValue...epoch.rawValue)
                checkpoints[epoch.rawValue] = boundary
                try store.apply(epoch)
                store.tidy()
                primary.advance()
            case .attach:
                try store.endSession()
                let last = checkpoints[store.committed.rawValue] ?? primary.machine
                primary = makePrimary(store, last, SplitMix64(seed: primary.random.next()))
                try primary.begin()
            case .promote:
                try store.promote()
                try store.rememberCheckpoint()
            }
        }
        return checkpoints
    }

    private func makePrimary(_ store: GuestStore, _ machine: TestMachine, _ random: SplitMix64) -> TestPrimary {
        TestPrimary(store: store, machine: machine, random: random, durability: .disk, blocks: Self.blocks)
    }

    /// A power loss takes what was in memory.
    private func freshTmpfs() throws -> String {
        let base = scratch.path + "-ram"
        if Directory.exists(base) { try FileTree.remove(base) }
        return try RamTmpfs.prepare(base: base, name: "g")
    }

    deinit { try? FileTree.remove(scratch.path + "-ram") }

    // MARK: The judgement

    private func judge(
        _ crash: CrashExplorer.Crash, _ checkpoints: [UInt64: TestMachine], _ random: inout SplitMix64
    ) throws {
        figures.crashes += 1
        try crash.image.materialise(in: left)
        guard figures.crashes % secondCrashEvery == 0 else {
            return try recover(crash.allowed, checkpoints)
        }
        let recorder = FileRecorder(below: left)
        do {
            defer { FileObservation.end(below: left) }
            try recover(crash.allowed, checkpoints)
        }
        try explorer.walk(from: ModelDisk(crash.image), recorder.end(), allowed: crash.allowed, &random) { second in
            figures.secondCrashes += 1
            try second.image.materialise(in: left)
            do { try recover(crash.allowed, checkpoints) } catch {
                throw Finding(description: "a second crash, before change \(second.index) of the recovery: \(error)")
            }
            return true
        }
    }

    private func recover(_ allowed: ClosedRange<UInt64>, _ checkpoints: [UInt64: TestMachine]) throws {
        guard Directory.exists("\(left)/g/commit") else {
            guard allowed.lowerBound == 0 else { throw Finding(description: "the guest is gone") }
            // A primary that comes now finds a folder without a record, or none.
            try GuestStore.create(directory: "\(left)/g")
            return
        }
        let store = try GuestStore(
            name: "g", directory: "\(left)/g", ramDirectory: try freshTmpfs(), storeID: storeID, log: log)
        if let damage = store.damage { throw Finding(description: "damaged: \(damage)") }
        let epoch = store.committed.rawValue
        figures.checkpointsSeen.insert(epoch)
        guard allowed.contains(epoch) else { throw Finding(description: "checkpoint \(epoch) was recovered") }
        guard epoch > 0, let expected = checkpoints[epoch] else { return }
        if !store.isPromoted {
            let disk = try ModelFile(contentsOf: "\(left)/g/disks/d/secondary.raw").bytes
            guard disk == expected.disk else {
                throw Finding(description: "the disk is not that of checkpoint \(epoch)")
            }
        } else {
            let replica = try DiskReplica(directory: "\(left)/g/disks/d", durable: true)
            guard try replica.contents(after: Epoch(epoch)) == expected.disk else {
                throw Finding(description: "the promoted disk is not that of checkpoint \(epoch)")
            }
        }
        for block in expected.ram.indices {
            guard let ram = store.ram, Array(ram.contents(block: block)) == expected.ram[block] else {
                throw Finding(description: "RAM is not that of checkpoint \(epoch)")
            }
        }
        let tail = expected.device + [6, 0, 0, 0, 2] + Array("{}".utf8)
        guard Array(store.restoreStream.suffix(tail.count)) == tail else {
            throw Finding(description: "the device state is not that of checkpoint \(epoch)")
        }
    }
}
