import Checkpointer
import Link
import TestSupport
import Testing
import Units

@testable import Node

/// What QEMU's own replication test asks of a primary, and more: our agent's export, core and link against a real
/// secondary.
@Suite("Replication, seen from the primary")
struct PrimaryScenarioTests {
    @Test("start: nothing is committed until the initial copy is complete; then the secondary holds exactly the disk")
    func start() async throws {
        try await withRig { rig in
            let primary = try await rig.attach(size: RigDisk.size)
            #expect(primary.welcome.lastCommitted == .none)
            try primary.write(all: RigDisk.pattern(1))
            let syncing = try await rig.status()
            #expect(syncing.state == .syncing)
            #expect(syncing.committedEpoch == nil)
            try await primary.finishInitialCopy()
            let status = try await rig.status()
            #expect(status.state == .protected)
            #expect(status.committedEpoch == 1)
            #expect(try await rig.committedDisk() == primary.disk)
            await primary.close()
        }
    }

    @Test("write: it is answered at once, is not in the checkpoint before it, and is in the one behind it")
    func write() async throws {
        try await withRig { rig in
            let primary = try await rig.attach(size: RigDisk.size)
            try primary.write(all: RigDisk.pattern(1))
            try await primary.finishInitialCopy()
            let before = primary.disk
            #expect(try primary.write(4096 + 512, 0xB1, count: 9000 / 512 * 512) == 0)
            #expect(try primary.write(64 * 4096, 0xB2, count: 512) == 0, "the half block at the end")
            try primary.zero(20 * 4096 + 1024..<24 * 4096)
            try primary.discard(40 * 4096..<60 * 4096)
            #expect(try primary.flush() == 0)
            #expect(try await rig.committedDisk() == before)
            try await primary.checkpoint()
            #expect(try await rig.committedDisk() == primary.disk)
            await primary.close()
        }
    }

    @Test("read: the export holds no contents; a read is refused rather than invented, and harms nothing")
    func read() async throws {
        try await withRig { rig in
            let primary = try await rig.attach(size: RigDisk.size)
            try primary.write(all: RigDisk.pattern(2))
            try await primary.finishInitialCopy()
            #expect(try primary.read(0..<4096) == 5, "EIO")
            #expect(try primary.write(0, 0x77, count: 4096) == 0)
            try await primary.checkpoint()
            #expect(primary.ending == nil)
            #expect(try await rig.committedDisk() == primary.disk)
            await primary.close()
        }
    }

    @Test("do_checkpoint: writes before the boundary belong to the checkpoint, writes behind it to the next one")
    func boundary() async throws {
        try await withRig { rig in
            let primary = try await rig.attach(size: RigDisk.size)
            try primary.write(all: RigDisk.pattern(3))
            try await primary.finishInitialCopy()
            for round in UInt8(1)...5 {
                try primary.write(Int(round) * 4096, round, count: 8192)
                let epoch = try await primary.onLoop { core in
                    core.checkpointRequested()
                    let epoch = core.streamEpoch
                    core.epochBoundary()
                    return epoch
                }
                let atBoundary = primary.disk
                // The same blocks again, while the checkpoint is still on its way.
                try primary.write(Int(round) * 4096 + 2048, 0x80 + round, count: 4096)
                try await primary.onLoop { core in
                    core.checkpointComplete(deviceState: [4, round, 0x7E, 0, 0, 0, 1, 0])
                    core.flush()
                }
                try await primary.wait("checkpoint \(epoch)") { $0.figures.committed >= epoch }
                #expect(try rig.disk(after: epoch) == atBoundary, "round \(round)")
            }
            try await primary.checkpoint()
            #expect(try await rig.committedDisk() == primary.disk)
            await primary.close()
        }
    }

    @Test(
        "stop: the primary leaves in order; what was written since the last checkpoint is forgotten, and it can return")
    func stop() async throws {
        try await withRig { rig in
            let primary = try await rig.attach(size: RigDisk.size)
            try primary.write(all: RigDisk.pattern(4))
            try await primary.finishInitialCopy()
            try primary.write(8192, 0xC1, count: 4096)
            try await primary.checkpoint()
            let last = primary.disk
            try primary.write(8192, 0xC2, count: 40960)
            try await primary.leave()
            let status = try await rig.status("no primary") { $0.hasNoPrimary }
            #expect(status.message == "detached")
            #expect(status.committedEpoch == 2)
            #expect(try await rig.committedDisk() == last)

            let again = try await rig.attach(size: RigDisk.size)
            #expect(again.welcome.lastCommitted == Epoch(2))
            try again.write(all: RigDisk.pattern(5))
            try await again.finishInitialCopy()
            #expect(try await rig.committedDisk() == again.disk)
            await again.close()
        }
    }

    @Test("get_error_all: no error through many checkpoints; when the link breaks the reason is given once, in words")
    func errors() async throws {
        try await withRig { rig in
            let primary = try await rig.attach(size: RigDisk.size)
            try primary.write(all: RigDisk.pattern(6))
            try await primary.finishInitialCopy()
            for round in UInt8(1)...10 {
                try primary.write(Int(round) * 512, round, count: 512)
                try await primary.checkpoint()
                #expect(primary.ending == nil)
            }
            let last = primary.disk
            try await primary.cutLink()
            guard case .linkLost(let reason) = try await primary.waitForEnding() else {
                Issue.record("\(String(describing: primary.ending))")
                return
            }
            #expect(!reason.isEmpty)
            #expect(try primary.write(0, 0xEE, count: 4096) == 0, "the guest does not notice")
            _ = try await rig.status("no primary") { $0.hasNoPrimary }
            #expect(try await rig.committedDisk() == last)
            await primary.close()
        }
    }

    @Test(
        "QEMU's own client writes through the agent's export: patterns, zeroes and discards arrive as they were written",
        .enabled(if: DiskTool.isInstalled, "qemu-io is not installed"))
    func realClient() async throws {
        try await withRig { rig in
            let primary = try await rig.attach(size: RigDisk.size)
            try primary.write(all: RigDisk.pattern(7))
            try await primary.finishInitialCopy()
            let client = try LiveQemuIO("nbd+unix:///d?socket=\(primary.nbdSocket)")
            try client.run("write -P 0x5A 1536 70144")
            try client.run("write -z 100k 20k")
            try client.run("discard 160k 8k")
            var expected = primary.disk
            expected.replaceSubrange(1536..<1536 + 70144, with: repeatElement(0x5A, count: 70144))
            expected.replaceSubrange(100 << 10..<120 << 10, with: repeatElement(0, count: 20 << 10))
            expected.replaceSubrange(160 << 10..<168 << 10, with: repeatElement(0, count: 8 << 10))
            try await primary.checkpoint()
            #expect(try await rig.committedDisk() == expected)
            client.close()
            guard case .mirrorLost = try await primary.waitForEnding() else {
                Issue.record("\(String(describing: primary.ending))")
                return
            }
            await primary.close()
        }
    }
}
