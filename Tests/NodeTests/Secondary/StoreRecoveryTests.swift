import AsyncIO
import Checkpointer
import Foundation
import TestSupport
import Testing
import Units

@testable import Node

@Suite("Recovering the disks of a stopped store")
struct StoreRecoveryTests {
    @Test("the secondary disk alone is the checkpoint, byte for byte", arguments: [1 as UInt64, 2, 3])
    func recovers(seed: UInt64) throws {
        let scene = try RecoverScene(size: 3_000_000 / 512 * 512, writes: 200, seed: seed)
        #expect(try scene.hidden == ["hidden-2.qcow2", "hidden-3.qcow2"])
        #expect(try scene.content() != scene.checkpoint)
        var recovery = try StoreRecovery(path: scene.guest, disksOnly: false)
        let expected = recovery.report
        var last: UInt64 = 0
        try recovery.run { last = $0 }
        #expect(try scene.content() == scene.checkpoint)
        #expect(try scene.hidden.isEmpty)
        #expect(last == expected.totalBytes && last > 0)
        #expect(recovery.report.disks == expected.disks && !recovery.report.dryRun && expected.dryRun)
    }

    @Test("looking changes nothing, and says what would be written")
    func dryRun() throws {
        let scene = try RecoverScene(size: 1 << 20, writes: 60, seed: 5)
        let before = try scene.fingerprint()
        let report = try StoreRecovery(path: scene.guest + "/", disksOnly: false).report
        #expect(try scene.fingerprint() == before)
        let disk = try #require(report.disks.first)
        #expect(disk.id == "d" && disk.bytes == 1 << 20 && disk.hiddenDisks == 2)
        #expect(disk.dataBytes > 0 && disk.zeroBytes > 0 && report.epoch == 1 && report.dryRun)
    }

    @Test("done twice, nothing is left to do")
    func twice() throws {
        let scene = try RecoverScene(size: 1 << 20, writes: 40, seed: 6)
        for _ in 0..<2 {
            var recovery = try StoreRecovery(path: scene.guest, disksOnly: false)
            try recovery.run { _ in }
            #expect(try scene.content() == scene.checkpoint)
        }
        #expect(try StoreRecovery(path: scene.guest, disksOnly: false).report.totalBytes == 0)
    }

    private func expectRefusal(_ scene: RecoverScene, _ words: String..., disksOnly: Bool = false) throws {
        let before = try scene.fingerprint()
        let error = #expect(throws: (any Error).self) {
            _ = try StoreRecovery(path: scene.guest, disksOnly: disksOnly)
        }
        for word in words { #expect("\(String(describing: error))".contains(word), "\(String(describing: error))") }
        #expect(try scene.fingerprint() == before)
    }

    @Test("a store in use is refused")
    func inUse() throws {
        let scene = try RecoverScene(size: 1 << 20, writes: 10, seed: 7)
        let holder = try Store.open(directory: scene.store)
        try expectRefusal(scene, "in use by another colo-blk process")
        withExtendedLifetime(holder) {}
    }

    @Test("what is no store, and who is no guest, is refused")
    func nothingThere() throws {
        let scene = try RecoverScene(size: 1 << 20, writes: 10, seed: 8)
        for (path, word) in [
            (scene.folder.path, "no colo-blk store"), (scene.store + "/nobody", "no replica 'nobody'"),
        ] {
            let error = #expect(throws: StoreRecovery.Refused.self) {
                _ = try StoreRecovery(path: path, disksOnly: false)
            }
            #expect(error?.description.contains(word) == true, "\(String(describing: error))")
        }
    }

    @Test("a replica without a commit is refused")
    func nothingCommitted() throws {
        let scene = try RecoverScene(size: 1 << 20, writes: 10, seed: 9)
        try CommitFile.create(in: scene.guest)
        try expectRefusal(scene, "nothing has been committed for 'g'")
    }

    @Test("a replica that failed over is refused, and the way to merge it is told")
    func promoted() throws {
        let scene = try RecoverScene(size: 1 << 20, writes: 10, seed: 10)
        let id = try Store.open(directory: scene.store).description.id
        let commit = try CommitFile(path: scene.guest + "/commit", store: id)
        let record = try #require(commit.record)
        try commit.append(durable: true) { sequence in
            var new = record
            new.sequence = sequence
            new.role = .promoted
            new.generation = record.generation.next
            return new
        }
        try expectRefusal(scene, "failed over", "block-commit", "qemu-img commit -b secondary.raw active.qcow2")
    }

    @Test("damage of the disks is refused before anything is changed")
    func damaged() throws {
        let cut = try RecoverScene(size: 1 << 20, writes: 10, seed: 11)
        try FileHandle(forUpdating: URL(filePath: cut.disk + "/secondary.raw")).truncate(atOffset: 4096)
        try expectRefusal(cut, "damaged", "secondary.raw", disksOnly: true)
        // The older one is damaged: the newer one must not be written back either.
        let torn = try RecoverScene(size: 1 << 20, writes: 10, seed: 12)
        let file = try FileHandle(forUpdating: URL(filePath: torn.disk + "/hidden-2.qcow2"))
        try file.seek(toOffset: 20)
        try file.write(contentsOf: Data([1, 1, 1, 1]))
        try file.close()
        try expectRefusal(torn, "damaged", "hidden-2.qcow2", disksOnly: true)
        let active = try RecoverScene(size: 1 << 20, writes: 10, seed: 13)
        _ = FileManager.default.createFile(atPath: active.disk + "/active.qcow2", contents: Data())
        try expectRefusal(active, "damaged", "active.qcow2", disksOnly: true)
    }

    @Test("lost RAM is refused, unless the disks alone are wanted")
    func lostRam() throws {
        let scene = try RecoverScene(size: 1 << 20, writes: 20, seed: 14)
        let id = try Store.open(directory: scene.store).description.id
        let commit = try CommitFile(path: scene.guest + "/commit", store: id)
        let record = try #require(commit.record)
        try commit.append(durable: true) { sequence in
            var new = record
            new.sequence = sequence
            new.ramFiles = [.init(kind: .base, name: "base-1.ram", length: 4096, digest: 0)]
            return new
        }
        try expectRefusal(scene, "damaged", "base-1.ram", "--disks-only")
        var recovery = try StoreRecovery(path: scene.guest, disksOnly: true)
        #expect(recovery.report.findings.contains { $0.contains("base-1.ram") })
        try recovery.run { _ in }
        #expect(try scene.content() == scene.checkpoint)
    }
}

/// The real program, killed at random moments.
@Suite(
    "Recovery killed at random moments",
    .enabled(if: ProcessInfo.processInfo.environment["COLO_BLK_BIN"] != nil, "COLO_BLK_BIN is not set"))
struct RecoveryKillTests {
    @Test("killed again and again, the last run finishes the very checkpoint", arguments: [21 as UInt64, 22])
    func killed(seed: UInt64) throws {
        let scene = try RecoverScene(size: 96 << 20, writes: 6000, seed: seed)
        // What the daemon left, kept aside, and a first run to see how long it takes.
        let left = scene.store + ".left"
        try FileManager.default.copyItem(atPath: scene.store, toPath: left)
        let started = ContinuousClock.now
        #expect(try finish(scene.guest, killedAfter: nil))
        let duration = ContinuousClock.now - started
        #expect(try scene.content() == scene.checkpoint)
        var random = TestSupport.SplitMix64(seed: seed)
        var kills = 0
        var midway = 0
        for _ in 0..<4 {
            try FileManager.default.removeItem(atPath: scene.store)
            try FileManager.default.copyItem(atPath: left, toPath: scene.store)
            let before = try scene.content()
            for _ in 0..<5 {
                let delay = duration * Double.random(in: 0.1...0.9, using: &random)
                if try finish(scene.guest, killedAfter: delay) { break }
                kills += 1
                if try !scene.hidden.isEmpty, try scene.content() != before { midway += 1 }
            }
            #expect(try finish(scene.guest, killedAfter: nil), "seed \(seed)")
            #expect(try scene.content() == scene.checkpoint, "seed \(seed), after \(kills) kills")
            #expect(try scene.hidden.isEmpty)
        }
        #expect(midway >= 2, "seed \(seed): \(kills) kills, \(midway) of them in the midst of it: make the disk larger")
    }

    /// Runs the program; returns whether it came to its end.
    private func finish(_ guest: String, killedAfter delay: Duration?) throws -> Bool {
        let process = Process()
        process.executableURL = URL(filePath: ProcessInfo.processInfo.environment["COLO_BLK_BIN"] ?? "")
        process.arguments = ["recover", guest]
        process.standardOutput = FileHandle.nullDevice
        process.standardError = FileHandle.nullDevice
        try process.run()
        if let delay {
            let seconds = Double(delay.components.seconds) + Double(delay.components.attoseconds) / 1e18
            Thread.sleep(forTimeInterval: seconds)
            kill(process.processIdentifier, SIGKILL)
        }
        process.waitUntilExit()
        return process.terminationReason == .exit && process.terminationStatus == 0
    }
}
