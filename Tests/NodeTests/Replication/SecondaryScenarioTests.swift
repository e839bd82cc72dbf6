import AsyncIO
import Checkpointer
import Link
import Logging
import SystemPackage
import TestSupport
import Testing
import Units

@testable import Node

/// What QEMU's own replication test asks of a secondary, and more.
@Suite("Replication, seen from the secondary")
struct SecondaryScenarioTests {
    private func started(_ rig: ReplicationRig, _ seed: Int) async throws -> RigPrimary {
        let primary = try await rig.attach(size: RigDisk.size)
        try primary.write(all: RigDisk.pattern(seed))
        try await primary.finishInitialCopy()
        return primary
    }

    @Test("read: the view of the checkpoint stays the same while the primary's later writes reach the disk below it")
    func read() async throws {
        let scratch = try DiskScratch()
        let replica = try DiskReplica.create(directory: scratch.path, size: UInt64(RigDisk.size), durable: true)
        try replica.beginEpoch(Epoch(1), preserve: false)
        let first = RigDisk.pattern(1)
        try first.withUnsafeBytes { try replica.write(epoch: Epoch(1), offset: 0, bytes: $0) }
        _ = try replica.seal(epoch: Epoch(1))
        try replica.committed(Epoch(1))
        try replica.beginEpoch(Epoch(2))
        let second = RigDisk.pattern(2)
        for start in stride(from: 0, to: RigDisk.size, by: 32768) {
            let piece = Array(second[start..<min(start + 32768, RigDisk.size)])
            try piece.withUnsafeBytes { try replica.write(epoch: Epoch(2), offset: UInt64(start), bytes: $0) }
            try replica.drain()
            #expect(try replica.contents(after: Epoch(1)) == first, "after \(start + piece.count) bytes")
        }
        _ = try replica.seal(epoch: Epoch(2))
        #expect(try replica.contents(after: Epoch(1)) == first)
        #expect(try replica.contents(after: Epoch(2)) == second)
        if DiskTool.isInstalled {
            #expect(try DiskTool.contents(replica.overlayChain(after: Epoch(1))[0]) == first, "through QEMU")
        }
    }

    @Test(
        "write: a guest that runs on the secondary writes to its active disk only; checkpoint and files below stay exact",
        .enabled(if: DiskTool.isInstalled, "qemu-io is not installed"))
    func write() async throws {
        try await withRig { rig in
            let primary = try await started(rig, 2)
            let checkpoint = primary.disk
            try primary.write(0, 0xD0, count: 65536)
            try await primary.cutLink()
            _ = try await rig.status("no primary") { $0.hasNoPrimary }
            let replica = try DiskReplica(directory: rig.diskDirectory, durable: true)
            let active = try replica.createActive(name: "active.qcow2", after: Epoch(1))
            let outcome = try DiskTool.run(
                "qemu-io", ["-f", "qcow2", "-c", "write -P 0xA1 4096 20480", "-c", "write -z 40k 8k", active])
            #expect(outcome.status == 0, "\(outcome.output)")
            var expected = checkpoint
            expected.replaceSubrange(4096..<4096 + 20480, with: repeatElement(0xA1, count: 20480))
            expected.replaceSubrange(40 << 10..<48 << 10, with: repeatElement(0, count: 8192))
            #expect(try DiskTool.contents(active) == expected)
            #expect(try rig.disk(after: Epoch(1)) == checkpoint)
            try Directory.removeFile(active)
            await primary.close()
        }
    }

    @Test("start: a session on a replica that is there begins at the last checkpoint, rolled back in place")
    func start() async throws {
        try await withRig { rig in
            let primary = try await started(rig, 3)
            try primary.write(4096, 0x31, count: 8192)
            try await primary.checkpoint()
            let last = primary.disk
            try primary.write(4096, 0x32, count: 50 * 4096)
            try await primary.cutLink()
            await primary.close()
            let again = try await rig.attach(size: RigDisk.size)
            #expect(again.welcome.firstEpoch == Epoch(3))
            let raw = try WholeFile.read(rig.diskDirectory + "/secondary.raw", limit: 1 << 20)
            #expect(raw == last, "the raw file alone is the checkpoint")
            await again.close()
        }
    }

    @Test("stop: when the link is cut within an epoch the disk goes back to the last checkpoint")
    func stop() async throws {
        try await withRig { rig in
            let primary = try await started(rig, 4)
            let last = primary.disk
            try primary.zero(0..<100 * 512)
            try primary.write(30 * 4096 + 512, 0x41, count: 70 * 512)
            try await primary.cutLink()
            _ = try await rig.status("no primary") { $0.hasNoPrimary }
            #expect(try await rig.committedDisk() == last)
            #expect(try Directory.names(in: rig.diskDirectory) == ["secondary.raw"])
            await primary.close()
        }
    }

    @Test("do_checkpoint: each one makes its writes the view and drops the hidden disk, also when two are on their way")
    func checkpoints() async throws {
        try await withRig { rig in
            let primary = try await started(rig, 5)
            var random = SplitMix64(seed: 5)
            for round in 0..<12 {
                for _ in 0..<Int.random(in: 0...4, using: &random) {
                    let first = Int.random(in: 0..<RigDisk.size / 512, using: &random)
                    let count = Int.random(in: 1...min(40, RigDisk.size / 512 - first), using: &random)
                    try primary.write(first * 512, UInt8.random(in: 1...255, using: &random), count: count * 512)
                }
                if round % 3 == 2 {
                    // The next boundary does not wait for the commit before it.
                    try await primary.beginCheckpoint()
                } else {
                    try await primary.checkpoint()
                    #expect(try await rig.committedDisk() == primary.disk, "round \(round)")
                }
            }
            let last = try await primary.checkpoint()
            #expect(try await rig.committedDisk() == primary.disk)
            let status = try await rig.status()
            #expect(status.committedEpoch == last.rawValue)
            #expect(status.commits == last.rawValue, "none was skipped")
            try await primary.leave()
            _ = try await rig.status("no primary") { $0.hasNoPrimary }
            #expect(try Directory.names(in: rig.diskDirectory) == ["secondary.raw"])
        }
    }

    @Test(
        "get_error_all: no message while all is well; after an error its words; none again when it is protected again")
    func errors() async throws {
        try await withRig { rig in
            let primary = try await started(rig, 6)
            #expect(try await rig.status().message == nil)
            rig.faults.fail(.ioError, count: 1) { $0.path.hasSuffix("secondary.raw") && !$0.isRead }
            try primary.write(0, 0x61, count: 4096)
            try await primary.beginCheckpoint()
            _ = try await primary.waitForEnding()
            let failed = try await rig.status("no primary") { $0.hasNoPrimary }
            #expect(failed.message?.contains("secondary.raw") == true, "\(failed.message ?? "no message")")
            await primary.close()
            let again = try await started(rig, 7)
            let healthy = try await rig.status()
            #expect(healthy.state == .protected)
            #expect(healthy.message == nil)
            #expect(try await rig.committedDisk() == again.disk)
            await again.close()
        }
    }

    @Test(
        "continuous replication: the guest that failed over is protected again from its active disk chain, exactly",
        .enabled(if: DiskTool.isInstalled, "qemu-io is not installed"))
    func continuous() async throws {
        let place = try Place()
        defer { place.remove() }
        let rig = try await ReplicationRig(place)
        let primary = try await started(rig, 8)
        try primary.write(10 * 4096, 0x81, count: 4 * 4096)
        let epoch = try await primary.checkpoint()
        var expected = primary.disk
        try primary.write(11 * 4096, 0x82, count: 8 * 4096)
        await primary.close()
        _ = try await rig.status("no primary") { $0.hasNoPrimary }
        await rig.stop()
        // The failover, without the QEMU.
        let log = Logger(label: "test", factory: { _ in SwiftLogNoOpLogHandler() })
        let description = try StoreDescription.decode(
            try WholeFile.read("\(place.directory)/store.info", limit: StoreDescription.lengthMax))
        let store = try GuestStore(
            name: "g", directory: "\(place.directory)/g", ramDirectory: "\(place.base)/again",
            storeID: description.id, log: log)
        #expect(store.committed == epoch)
        try store.promote()
        let active = try #require(try store.makeActiveDisks(.active)["d"])
        let written = try DiskTool.run("qemu-io", ["-f", "qcow2", "-c", "write -P 0x88 43008 30720", active])
        #expect(written.status == 0, "\(written.output)")
        expected.replaceSubrange(43008..<43008 + 30720, with: repeatElement(0x88, count: 30720))
        // It is a primary now, with its chain of disks as the source.
        let chain = try DiskTool.contents(active)
        #expect(chain == expected)
        try await withRig { second in
            let promoted = try await second.attach(size: RigDisk.size)
            try promoted.write(all: chain)
            try await promoted.finishInitialCopy()
            #expect(try await second.committedDisk() == expected)
            try promoted.write(512, 0x89, count: 4096)
            try await promoted.checkpoint()
            #expect(try await second.committedDisk() == promoted.disk)
            await promoted.close()
        }
    }
}
