import AsyncIO
import BlockReplica
import Foundation
import Synchronization
import SystemPackage
import Testing
import Units

@testable import Node

/// Stops a disk between two changes of its files, and knows what would have survived a power loss there.
private final class Crash: FileObserver {
    private struct State {
        var steps = 0
        var hasHappened = false
        var isOver = false
        /// Contents of each file as of its last sync; nil tracks nothing.
        var durable: [String: [UInt8]]?
    }

    private let stopAt: Int
    private let state: Mutex<State>

    init(at step: Int, tracksSyncs: Bool = false) {
        stopAt = step
        state = Mutex(State(durable: tracksSyncs ? [:] : nil))
    }

    var hasHappened: Bool { state.withLock { $0.hasHappened } }

    /// Changes are counted and stopped no more.
    func end() { state.withLock { $0.isOver = true } }

    func track(_ path: String) {
        state.withLock { state in
            if state.durable != nil { state.durable?[path] = Self.contents(path) }
        }
    }

    private static func contents(_ path: String) -> [UInt8] {
        [UInt8](FileManager.default.contents(atPath: path) ?? Data())
    }

    func willPerform(_ call: FileCall) throws(IOError) {
        guard !call.isRead else { return }
        let stops = state.withLock { state in
            guard !state.isOver else { return false }
            state.steps += 1
            guard state.steps < stopAt else {
                state.hasHappened = true
                return true
            }
            guard state.durable != nil else { return false }
            switch call {
            case .sync(let path): state.durable?[path] = Self.contents(path)
            case .rename(let from, let target):
                let whole = state.durable?.removeValue(forKey: from)
                state.durable?[target] = whole
            case .remove(let path): state.durable?[path] = nil
            default: break
            }
            return false
        }
        if stops { throw IOError(operation: "crash", path: call.path, errno: .interrupted) }
    }

    /// The machine loses power: of what was not synced, any sectors survive and any do not.
    func losePower(in directory: String, _ random: inout DiskRandom) throws {
        for name in try FileManager.default.contentsOfDirectory(atPath: directory) {
            let path = directory + "/" + name
            let now = [UInt8](FileManager.default.contents(atPath: path) ?? Data())
            var old = state.withLock { $0.durable?[path] } ?? []
            let length = random.below(2) == 0 ? now.count : max(old.count, min(now.count, 4096))
            old += [UInt8](repeating: 0, count: max(now.count - old.count, 0))
            var mixed = now
            let style = random.below(3)
            for start in stride(from: 0, to: now.count, by: 512) {
                let range = start..<min(start + 512, now.count)
                if style == 0 || (style == 1 && random.below(2) == 0) {
                    mixed.replaceSubrange(range, with: old[range])
                }
            }
            if name != "secondary.raw" { mixed = Array(mixed.prefix(length)) }
            try Data(mixed).write(to: URL(fileURLWithPath: path))
        }
    }
}

/// A short life of a disk: three epochs, two of them interleaved, all kinds of writes. Keeps the model, and which epoch
/// was committed last as far as it got.
private struct Story {
    static let size = 10 * 4096 + 512
    var model = DiskModel(size: size)
    var committed = Epoch.none

    mutating func tell(_ replica: DiskReplica, seed: UInt64) throws {
        var random = DiskRandom(state: seed)
        try replica.beginEpoch(Epoch(1), preserve: false)
        for _ in 0..<4 { try model.change(replica, Epoch(1), &random) }
        try seal(replica, 1)
        try commit(replica, 1)
        try replica.beginEpoch(Epoch(2))
        for _ in 0..<3 { try model.change(replica, Epoch(2), &random, sectors: 20) }
        try replica.drain()
        try replica.beginEpoch(Epoch(3))
        for epoch in [2, 3, 2, 3, 3] { try model.change(replica, Epoch(UInt64(epoch)), &random, sectors: 20) }
        try seal(replica, 2)
        try replica.drain()
        try replica.beginEpoch(Epoch(4))
        try model.change(replica, Epoch(4), &random)
        try model.change(replica, Epoch(3), &random)
        try seal(replica, 3)
        try replica.drain()
        try commit(replica, 2)
        try replica.reclaim()
        try commit(replica, 3)
        try seal(replica, 4)
        try replica.reclaim()
        try commit(replica, 4)
        try replica.reclaim()
    }

    private mutating func seal(_ replica: DiskReplica, _ epoch: UInt64) throws {
        // The model first: whether a seal that crashes took effect does not matter, the commit record does.
        model.seal(Epoch(epoch))
        _ = try replica.seal(epoch: Epoch(epoch))
    }

    private mutating func commit(_ replica: DiskReplica, _ epoch: UInt64) throws {
        // The commit record is written between the two.
        committed = Epoch(epoch)
        try replica.committed(Epoch(epoch))
    }
}

@Suite("A replica's disk and crashes")
struct DiskCrashTests {
    private static let place = FileManager.default.isWritableFile(atPath: "/dev/shm") ? "/dev/shm" : "/tmp"

    private func limits() -> DiskReplica.Limits {
        var limits = DiskReplica.Limits()
        limits.batchBlocks = 4
        return limits
    }

    /// Tells the story until the crash; returns it with the crash.
    private func run(
        _ directory: String, stopAt: Int, seed: UInt64, durable: Bool, tracksSyncs: Bool = false
    ) throws -> (story: Story, crash: Crash) {
        let crash = Crash(at: stopAt, tracksSyncs: tracksSyncs)
        var story = Story()
        _ = try DiskReplica.create(
            directory: directory, size: UInt64(Story.size), durable: durable, limits: limits())
        crash.track(directory + "/secondary.raw")
        FileObservation.begin(below: directory, crash)
        defer { FileObservation.end(below: directory) }
        let replica = try DiskReplica(directory: directory, durable: durable, limits: limits())
        do { try story.tell(replica, seed: seed) } catch {
            guard crash.hasHappened else { throw error }
        }
        crash.end()
        return (story, crash)
    }

    private func expectRecovered(_ directory: String, _ story: Story, _ comment: Comment) throws {
        let replica = try DiskReplica(directory: directory, durable: false, limits: limits())
        _ = try replica.recover(committed: story.committed)
        guard story.committed != .none else { return }
        #expect(try replica.contents(after: story.committed) == story.model.checkpoints[story.committed], comment)
        #expect(try FileManager.default.contentsOfDirectory(atPath: directory) == ["secondary.raw"], comment)
    }

    @Test(
        "a process crash between any two changes of files leaves exactly the committed checkpoint",
        arguments: [UInt64(1), 2], [true, false])
    func everyCrashPoint(seed: UInt64, durable: Bool) throws {
        let scratch = try DiskScratch(below: Self.place)
        var step = 1
        while true {
            let (story, crash) = try run(scratch.path, stopAt: step, seed: seed, durable: durable)
            if DiskTool.isInstalled, step % 15 == 0 {
                for name in try FileManager.default.contentsOfDirectory(atPath: scratch.path)
                where name.hasSuffix(".qcow2") {
                    let check = try DiskTool.run("qemu-img", ["check", "-f", "qcow2", scratch.path + "/" + name])
                    #expect([0, 3].contains(check.status), "seed \(seed), step \(step): \(check.output)")
                }
            }
            try expectRecovered(scratch.path, story, "seed \(seed), step \(step)")
            try scratch.clear()
            if !crash.hasHappened { break }
            step += 1
        }
        #expect(step > 50, "only \(step) crash points")
    }

    @Test("a crash during the recovery is recovered from", arguments: [UInt64(4)])
    func crashDuringRecovery(seed: UInt64) throws {
        let scratch = try DiskScratch(below: Self.place)
        var recoveries = 0
        for step in stride(from: 20, to: 100, by: 5) {
            var inner = 1
            while true {
                let (story, crash) = try run(scratch.path, stopAt: step, seed: seed, durable: true)
                guard crash.hasHappened else { break }
                let second = Crash(at: inner)
                FileObservation.begin(below: scratch.path, second)
                let replica = try DiskReplica(directory: scratch.path, durable: true, limits: limits())
                do { _ = try replica.recover(committed: story.committed) } catch {
                    guard second.hasHappened else { throw error }
                }
                FileObservation.end(below: scratch.path)
                try expectRecovered(scratch.path, story, "seed \(seed), step \(step), recovery step \(inner)")
                try scratch.clear()
                recoveries += 1
                if !second.hasHappened { break }
                inner += 1
            }
            try scratch.clear()
        }
        #expect(recoveries > 40, "only \(recoveries) recoveries were interrupted")
    }

    @Test(
        "in disk durability a power loss at any point, with any unsynced sectors lost, keeps the committed checkpoint",
        arguments: [UInt64(6), 7])
    func powerLoss(seed: UInt64) throws {
        let scratch = try DiskScratch(below: Self.place)
        var random = DiskRandom(state: seed &* 977)
        var step = 1
        while true {
            let (story, crash) = try run(scratch.path, stopAt: step, seed: seed, durable: true, tracksSyncs: true)
            guard crash.hasHappened else { break }
            try crash.losePower(in: scratch.path, &random)
            try expectRecovered(scratch.path, story, "seed \(seed), step \(step)")
            try scratch.clear()
            step += 1
        }
        #expect(step > 50, "only \(step) crash points")
    }

    @Test("when the store is full nothing is overwritten, the error says so, and the recovery brings the disk back")
    func noSpace() throws {
        let scratch = try DiskScratch(below: Self.place)
        let faults = FaultInjector(below: scratch.path)
        defer { faults.end() }
        let replica = try DiskReplica.create(directory: scratch.path, size: 1 << 20, durable: false)
        try replica.beginEpoch(Epoch(1), preserve: false)
        let old = [UInt8](repeating: 1, count: 1 << 20)
        try old.withUnsafeBytes { try replica.write(epoch: Epoch(1), offset: 0, bytes: $0) }
        _ = try replica.seal(epoch: Epoch(1))
        try replica.committed(Epoch(1))
        try replica.beginEpoch(Epoch(2))
        let new = [UInt8](repeating: 2, count: 64 << 10)
        try new.withUnsafeBytes { try replica.write(epoch: Epoch(2), offset: 4096, bytes: $0) }
        faults.fail(.noSpace) { $0.path.contains("hidden-") && !$0.isRead }
        let error = #expect(throws: DiskReplicaError.self) { _ = try replica.seal(epoch: Epoch(2)) }
        #expect(error?.isNoSpace == true)
        #expect(try replica.contents(after: Epoch(2)) == old, "the secondary disk is untouched")
        #expect(throws: DiskReplicaError.pipeline(.failed)) { _ = try replica.seal(epoch: Epoch(2)) }
        faults.heal()
        _ = try replica.recover(committed: Epoch(1))
        try replica.beginEpoch(Epoch(3))
        try new.withUnsafeBytes { try replica.write(epoch: Epoch(3), offset: 4096, bytes: $0) }
        _ = try replica.seal(epoch: Epoch(3))
        #expect(try replica.contents(after: Epoch(1)) == old)
        #expect(try replica.contents(after: Epoch(3))[4096] == 2)
    }

    @Test("a rollback that fails half way can be repeated, and until then every checkpoint reads right")
    func failedRollback() throws {
        let scratch = try DiskScratch(below: Self.place)
        let faults = FaultInjector(below: scratch.path)
        defer { faults.end() }
        let size = 4 << 20
        let replica = try DiskReplica.create(directory: scratch.path, size: UInt64(size), durable: false)
        try replica.beginEpoch(Epoch(1), preserve: false)
        for number in UInt64(1)...3 {
            if number > 1 { try replica.beginEpoch(Epoch(number)) }
            let bytes = [UInt8](repeating: UInt8(number), count: size)
            try bytes.withUnsafeBytes { try replica.write(epoch: Epoch(number), offset: 0, bytes: $0) }
            _ = try replica.seal(epoch: Epoch(number))
        }
        try replica.committed(Epoch(1))
        let old = [UInt8](repeating: 1, count: size)
        // Of each hidden disk in turn, some of it has been put back when the disk refuses a write.
        for passed in [1, 5] {
            let calls = Mutex(0)
            faults.fail(.ioError) { call in
                guard call.path.hasSuffix("secondary.raw"), !call.isRead else { return false }
                return calls.withLock { calls in
                    calls += 1
                    return calls > passed
                }
            }
            #expect(throws: DiskReplicaError.self) { _ = try replica.recover(committed: Epoch(1)) }
            faults.heal()
            #expect(try replica.contents(after: Epoch(1)) == old, "after \(passed) writes")
        }
        _ = try replica.recover(committed: Epoch(1))
        #expect(try replica.contents(after: Epoch(1)) == old)
        #expect(replica.overlayChain(after: Epoch(1)).count == 1)
    }
}
