import AsyncIO
import BlockReplica
import Checkpointer
import Glibc
import Link
import SystemPackage
import TestSupport
import Testing
import Units

@testable import Node

/// The seven failures that QEMU's block replication document numbers, injected for real, and its answers. The first is
/// in PrimaryDiskErrorTests: there QEMU itself is the primary.
@Suite("The seven failures of block replication")
struct ReplicationFailureTests {
    private func started(_ rig: ReplicationRig, _ seed: Int, budget: UInt64 = 64 << 20) async throws -> RigPrimary {
        let primary = try await rig.attach(size: RigDisk.size, budget: budget)
        try primary.write(all: RigDisk.pattern(seed))
        try await primary.finishInitialCopy()
        return primary
    }

    /// The secondary meets a fault while it commits; the manager is told, the guest is not, the checkpoint stays, and
    /// protection can begin again once the fault is gone.
    private func expectReported(
        _ rig: ReplicationRig, words: String, errno: Errno = .ioError, count: Int = .max,
        where applies: @escaping @Sendable (FileCall) -> Bool
    ) async throws {
        let primary = try await started(rig, 1)
        try primary.write(0, 0x11, count: 20480)
        let last = try await primary.checkpoint()
        let checkpoint = primary.disk
        rig.faults.fail(errno, count: count, where: applies)
        try primary.write(2048, 0x22, count: 30 * 4096)
        try primary.write(RigDisk.size - 512, 0x22, count: 512)
        try await primary.beginCheckpoint()
        guard case .secondaryRefused(let reason) = try await primary.waitForEnding() else {
            Issue.record("the session ended with \(String(describing: primary.ending))")
            return
        }
        #expect(reason.contains(words), "\(reason)")
        #expect(!rig.faults.failed.isEmpty)
        #expect(try primary.write(0, 0x33, count: 4096) == 0, "the guest goes on unharmed")
        #expect(try primary.flush() == 0)
        let status = try await rig.status("no primary") { $0.hasNoPrimary }
        #expect(status.message?.contains(words) == true, "\(status.message ?? "no message")")
        #expect(status.committedEpoch == last.rawValue)
        await primary.close()
        rig.faults.heal()
        #expect(try rig.disk(after: last) == checkpoint, "the last checkpoint is intact")

        let again = try await started(rig, 2)
        #expect(again.welcome.lastCommitted == last)
        #expect(try await rig.committedDisk() == again.disk)
        try again.write(4096, 0x44, count: 512)
        try await again.checkpoint()
        #expect(try await rig.committedDisk() == again.disk)
        await again.close()
    }

    // MARK: 2. Forwarding the primary's writes fails

    @Test("2: the link breaks while writes are under way: the guest's writes succeed, protection ends with the reason")
    func forwarding() async throws {
        try await withRig { rig in
            let primary = try await started(rig, 1)
            let checkpoint = primary.disk
            try primary.write(0, 0x21, count: 65536)
            try await primary.cutLink()
            for index in 0..<20 { #expect(try primary.write(index * 4096, 0x22, count: 4096) == 0) }
            guard case .linkLost = try await primary.waitForEnding() else {
                Issue.record("the session ended with \(String(describing: primary.ending))")
                return
            }
            let status = try await rig.status("no primary") { $0.hasNoPrimary }
            #expect(status.message?.isEmpty == false)
            #expect(try await rig.committedDisk() == checkpoint)
            await primary.close()
        }
    }

    @Test("2: the secondary takes too little: beyond the budget protection ends, and no write of the guest fails")
    func congestion() async throws {
        try await withRig { rig in
            let primary = try await started(rig, 1, budget: 1 << 20)
            let checkpoint = primary.disk
            var refused = 0
            for round in 0..<200 where primary.ending == nil {
                refused += try primary.write(0, UInt8(round % 255), count: 256 << 10) == 0 ? 0 : 1
            }
            #expect(refused == 0)
            guard case .congested(let reason) = try await primary.waitForEnding() else {
                Issue.record("the session ended with \(String(describing: primary.ending))")
                return
            }
            #expect(reason.contains("--budget"))
            try await primary.cutLink()
            _ = try await rig.status("no primary") { $0.hasNoPrimary }
            #expect(try await rig.committedDisk() == checkpoint)
            await primary.close()
        }
    }

    // MARK: 3. The pre-image cannot be kept

    @Test("3: the hidden disk cannot be written: reported, nothing of the secondary disk is overwritten")
    func preImage() async throws {
        try await withRig { rig in
            try await expectReported(rig, words: "hidden-") { call in
                if case .write(let path, _, _) = call { return path.contains("/hidden-") }
                return false
            }
        }
    }

    @Test("3: the hidden disk cannot be made durable: reported, nothing of the secondary disk is overwritten")
    func preImageSync() async throws {
        try await withRig { rig in
            try await expectReported(rig, words: "hidden-") { call in
                if case .sync(let path) = call { return path.contains("/hidden-") }
                return false
            }
        }
    }

    @Test("3: the store has no space for the pre-images: reported as a full store, with the remedy")
    func preImageNoSpace() async throws {
        try await withRig { rig in
            try await expectReported(rig, words: "Free space", errno: .noSpace) { call in
                switch call {
                case .write(let path, _, _), .allocate(let path, _, _), .truncate(let path, _):
                    path.contains("/hidden-")
                default: false
                }
            }
        }
    }

    @Test(
        "3: a file system that is really full: reported, the checkpoint stays exact, and space brings the protection back",
        .enabled(if: geteuid() == 0, "mounting a small tmpfs needs root"))
    func fullFileSystem() async throws {
        let scratch = try DiskScratch()
        let mount = try Program.run("mount", ["-t", "tmpfs", "-o", "size=2m,mode=0700", "tmpfs", scratch.path])
        guard mount.succeeded else {
            print("skipped: a tmpfs cannot be mounted here: \(mount.errors)")
            return
        }
        defer { _ = try? Program.run("umount", [scratch.path]) }
        let size = 1 << 20
        let replica = try DiskReplica.create(directory: scratch.path, size: UInt64(size), durable: true)
        func write(_ epoch: UInt64, _ value: UInt8, _ range: Range<Int>) throws {
            let bytes = [UInt8](repeating: value, count: range.count)
            try bytes.withUnsafeBytes {
                try replica.write(epoch: Epoch(epoch), offset: UInt64(range.lowerBound), bytes: $0)
            }
        }
        try replica.beginEpoch(Epoch(1), preserve: false)
        try write(1, 1, 0..<size)
        _ = try replica.seal(epoch: Epoch(1))
        try replica.committed(Epoch(1))
        // Somebody else fills the file system up to a few hundred KiB.
        let filler = try DirectFile(path: scratch.path + "/filler", mode: .create, direct: false)
        try filler.write(at: 0, from: [UInt8](repeating: 9, count: 700 << 10))
        try replica.beginEpoch(Epoch(2))
        try write(2, 2, 0..<size)
        let error = #expect(throws: DiskReplicaError.self) { _ = try replica.seal(epoch: Epoch(2)) }
        #expect(error?.isNoSpace == true, "\(String(describing: error))")
        let old = [UInt8](repeating: 1, count: size)
        #expect(try replica.contents(after: Epoch(1)) == old)
        _ = try replica.recover(committed: Epoch(1))
        #expect(try replica.contents(after: Epoch(1)) == old, "a rollback needs no space")
        try Directory.removeFile(scratch.path + "/filler")
        try filler.truncate(to: 0)
        try replica.beginEpoch(Epoch(3))
        try write(3, 3, 4096..<40960)
        _ = try replica.seal(epoch: Epoch(3))
        #expect(try replica.contents(after: Epoch(1)) == old)
        #expect(try replica.contents(after: Epoch(3))[4096..<40960].allSatisfy { $0 == 3 })
    }

    // MARK: 4. The secondary disk fails

    @Test(
        "4: the secondary disk cannot be written: reported, and the checkpoint is rolled back to when it can be again")
    func secondaryWrite() async throws {
        try await withRig { rig in
            try await expectReported(rig, words: "secondary.raw") { call in
                if case .write(let path, _, _) = call { return path.hasSuffix("/secondary.raw") }
                return false
            }
        }
    }

    @Test("4: the secondary disk cannot be read for the pre-image: reported, nothing is overwritten")
    func secondaryRead() async throws {
        try await withRig { rig in
            try await expectReported(rig, words: "secondary.raw", count: 1) { call in
                if case .read(let path, _, _) = call { return path.hasSuffix("/secondary.raw") }
                return false
            }
        }
    }

    @Test("4: the secondary disk cannot be made durable: the epoch is not committed, and reported")
    func secondarySync() async throws {
        try await withRig { rig in
            try await expectReported(rig, words: "secondary.raw", count: 1) { call in
                if case .sync(let path) = call { return path.hasSuffix("/secondary.raw") }
                return false
            }
        }
    }

    // MARK: 5. The active disk fails

    @Test(
        "5: an error of the active disk is the guest's own; the replica reports nothing and the checkpoint below is intact",
        .enabled(if: DiskTool.isInstalled, "qemu-io is not installed"))
    func activeDisk() async throws {
        try await withRig { rig in
            let primary = try await started(rig, 5)
            let checkpoint = primary.disk
            try primary.write(0, 0x51, count: 65536)
            try await primary.cutLink()
            await primary.close()
            let before = try await rig.status("no primary") { $0.hasNoPrimary }
            let replica = try DiskReplica(directory: rig.diskDirectory, durable: true)
            let active = try replica.createActive(name: "active.qcow2", after: Epoch(1))
            let failing =
                #"json:{"driver":"qcow2","file":{"driver":"blkdebug","image":{"driver":"file","filename":""# + active
                + #""},"inject-error":[{"event":"write_aio","errno":5}]}}"#
            let written = try DiskTool.run("qemu-io", ["-c", "write -P 0xEE 0 64k", failing])
            #expect(written.output.contains("write failed: Input/output error"), "\(written.output)")
            let after = try await rig.status()
            #expect(after.message == before.message, "the manager hears nothing of it")
            #expect(try rig.disk(after: Epoch(1)) == checkpoint)
            // The guest that tries again, on a device that works, writes to where it belongs.
            let retried = try DiskTool.run("qemu-io", ["-f", "qcow2", "-c", "write -P 0xEE 0 64k", active])
            #expect(retried.status == 0, "\(retried.output)")
            var expected = checkpoint
            expected.replaceSubrange(0..<65536, with: repeatElement(0xEE, count: 65536))
            #expect(try DiskTool.contents(active) == expected)
            #expect(try rig.disk(after: Epoch(1)) == checkpoint)
            try Directory.removeFile(active)
        }
    }

    // MARK: 6. An empty hidden or active disk cannot be made

    @Test("6: the next epoch's hidden disk cannot be made: reported, the checkpoint stays")
    func emptyHidden() async throws {
        try await withRig { rig in
            try await expectReported(rig, words: "hidden-") { call in
                switch call {
                case .create(let path), .rename(_, let path): path.contains("/hidden-")
                default: false
                }
            }
        }
    }

    @Test("6: an old hidden disk cannot be removed: protection goes on, and it is removed when it can be")
    func oldHidden() async throws {
        try await withRig { rig in
            let primary = try await started(rig, 6)
            rig.faults.fail(.ioError) { call in
                if case .remove(let path) = call { return path.contains("/hidden-") }
                return false
            }
            for round in UInt8(1)...3 {
                try primary.write(Int(round) * 8192, round, count: 8192)
                try await primary.checkpoint()
                #expect(try await rig.committedDisk() == primary.disk)
            }
            #expect(!rig.faults.failed.isEmpty)
            #expect(primary.ending == nil)
            rig.faults.heal()
            for _ in 0..<5 {
                try primary.write(0, 0x66, count: 512)
                try await primary.checkpoint()
            }
            try await primary.leave()
            _ = try await rig.status("no primary") { $0.hasNoPrimary }
            #expect(try Directory.names(in: rig.diskDirectory) == ["secondary.raw"])
        }
    }

    // MARK: 7. The failover fails

    @Test(
        "7 (and 6, the active disk): status says so and why, the checkpoint is untouched, and it can be tried again")
    func failover() async throws {
        let place = try Place()
        defer { place.remove() }
        // A QEMU that does not start.
        let qemu = place.base + "/no-qemu"
        try WholeFile.write(qemu, Array("#!/bin/sh\necho cannot start >&2\nexit 1\n".utf8), durable: false)
        chmod(qemu, 0o700)
        let rig = try await ReplicationRig(place, qemu: qemu)
        do {
            let primary = try await started(rig, 7)
            try primary.write(4096, 0x71, count: 16384)
            let epoch = try await primary.checkpoint()
            let checkpoint = primary.disk
            try primary.write(4096, 0x72, count: 65536)
            try await primary.cutLink()
            await primary.close()
            _ = try await rig.status("no primary") { $0.hasNoPrimary }

            rig.faults.fail(.ioError) { $0.path.contains("/active.qcow2") }
            let unmade = await rig.daemon.answer(ControlRequest(verb: .failover, guest: "g"))
            #expect(unmade.error?.contains("active.qcow2") == true, "\(unmade.error ?? "no error")")
            #expect(try await rig.status().state == .failoverFailed)
            rig.faults.heal()

            for attempt in 1...2 {
                let failed = await rig.daemon.answer(ControlRequest(verb: .failover, guest: "g"))
                #expect(failed.error?.contains("could not be started") == true, "\(attempt): \(failed.error ?? "")")
                let status = try await rig.status()
                #expect(status.state == .failoverFailed)
                #expect(status.message?.contains("tries again") == true, "\(status.message ?? "no message")")
                #expect(status.pid == nil)
                #expect(try rig.disk(after: epoch) == checkpoint, "attempt \(attempt)")
            }
            await #expect(throws: Refuse.self) { _ = try await rig.attach(size: RigDisk.size) }
            #expect(try rig.disk(after: epoch) == checkpoint)
        } catch {
            await rig.stop()
            throw error
        }
        await rig.stop()
    }

    @Test("7: a disk that is in failover takes no writes; when it failed it can be tried again, or rolled back")
    func diskStages() throws {
        let scratch = try DiskScratch()
        let replica = try DiskReplica.create(directory: scratch.path, size: UInt64(RigDisk.size), durable: true)
        try replica.beginEpoch(Epoch(1), preserve: false)
        let first = RigDisk.pattern(1)
        try first.withUnsafeBytes { try replica.write(epoch: Epoch(1), offset: 0, bytes: $0) }
        _ = try replica.seal(epoch: Epoch(1))
        try replica.committed(Epoch(1))
        try replica.beginEpoch(Epoch(2))
        let later = [UInt8](repeating: 0x70, count: 65536)
        try later.withUnsafeBytes { try replica.write(epoch: Epoch(2), offset: 0, bytes: $0) }
        try replica.drain()
        try replica.beginFailover()
        #expect(throws: DiskReplicaError.pipeline(.notRunning(.failover))) {
            try later.withUnsafeBytes { try replica.write(epoch: Epoch(2), offset: 0, bytes: $0) }
        }
        try replica.endFailover(succeeded: false)
        #expect(replica.state.stage == .failoverFailed)
        #expect(replica.state.stage.rawValue == "failover failed")
        #expect(try replica.contents(after: Epoch(1)) == first)
        try replica.beginFailover()
        try replica.endFailover(succeeded: false)
        _ = try replica.recover(committed: Epoch(1))
        #expect(replica.state.stage == .running)
        #expect(try replica.contents(after: Epoch(1)) == first)
    }
}
