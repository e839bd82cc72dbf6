import Foundation
import Glibc
import Testing

extension RealGuests {
    /// What a guest and its operator do while it is protected: followed, or an end in order, and no wrong replica.
    ///
    /// One guest lives through it all. What a guest does by itself is done to its ports from outside: `o/w 0x604` is the
    /// power management register that a kernel writes to, `o/b 0x505` the panic device.
    @Suite struct GuestLifeTests {
        private static let sleepWord = "o/w 0x604 0x2400"
        private static let powerOffWord = "o/w 0x604 0x2000"
        private static let panicWord = "o/b 0x505 1"

        /// Everything that a case needs.
        private struct Stage {
            let scene: Scene
            let guest: Guest
            let secondary: Secondary
            let name: String

            func human(_ command: String) throws {
                try guest.watch().execute("human-monitor-command", ["command-line": command])
            }

            func state() throws -> String { try guest.watch().execute("query-status")["status"].string ?? "?" }

            /// Waits until the secondary says so; returns its message.
            @discardableResult
            func waitFor(_ state: String, within seconds: Double = 10) throws -> String {
                var status = JSON(nil)
                try waitUntil("'\(state)'", within: seconds, every: 50, seen: { "\(status)" }) {
                    status = try secondary.status(name)
                    return status["state"].string == state
                }
                return status["message"].string ?? ""
            }

            /// The guest stands still in this state, no checkpoint comes, and both sides say why.
            func expectHalted(_ expected: String, _ words: String) throws {
                #expect(try waitFor("guest halted").contains(words))
                // A checkpoint that was under way may have been committed a moment later.
                pause(milliseconds: 150)
                let epoch = try secondary.committedEpoch(name)
                guest.serial.read()
                let tick = guest.serial.lastTick
                pause(milliseconds: 500)
                #expect(try state() == expected)
                #expect(try secondary.committedEpoch(name) == epoch, "a checkpoint of a guest that stands still")
                guest.serial.read()
                #expect(guest.serial.lastTick == tick)
            }

            func expectGoesOn() throws {
                try waitFor("protected")
                try secondary.waitForCheckpoints(2, of: name)
                #expect(try guest.watch().execute("query-migrate")["status"].string == "colo")
            }

            func expectRefused(_ command: String, _ arguments: [String: Any], _ words: String) {
                let error = #expect(throws: TestFailure.self) { try guest.watch().execute(command, arguments) }
                #expect(error?.description.contains(words) == true, "\(command): \(String(describing: error))")
            }
        }

        @Test("a life: stops, sleep, resets, panic, hot-plug, media, and the end")
        func life() throws {
            try Scene.run("life") { scene in
                let hooks = "\(scene.directory)/hooks"
                let discs = ["a", "b"].map { "\(scene.directory)/\($0).iso" }
                for disc in discs { try Data(count: 1 << 20).write(to: URL(fileURLWithPath: disc)) }
                var options = Guest.Options(workload: .all)
                options.arguments = [
                    "-action", "reboot=reset,shutdown=pause,panic=pause", "-device", "pvpanic",
                    "-device", "virtio-scsi-pci,id=scsi9", "-device", "scsi-cd,drive=cd0,id=cd,bus=scsi9.0",
                    "-drive", "if=none,id=cd0,media=cdrom,format=raw,file=\(discs[0])",
                ]
                let guest = try scene.launch(options)
                let secondary = try scene.secondary()
                let note = "echo \"$COLO_BLK_EVENT $COLO_BLK_REASON\" >> \(hooks)"
                secondary.options = ["--on-loss", note, "--auto-failover", "--fence-command", note]
                try secondary.start()
                let stage = Stage(scene: scene, guest: guest, secondary: secondary, name: scene.guestName("g"))
                try guest.waitUntilBusy()
                let attach = try scene.attach(guest, to: secondary, name: stage.name)
                try attach.waitUntilProtected()
                try secondary.waitForCheckpoints(2, of: stage.name)

                try refusedByQemu(stage)
                try stops(stage)
                try sleepAndResets(stage)
                try panic(stage)
                try media(stage, attach, discs)
                let again = try detachedWhileStopped(stage, attach)
                try end(stage, again)
                #expect(!FileManager.default.fileExists(atPath: hooks), "nothing of this is a loss")
            }
        }

        /// What QEMU itself refuses during a migration harms nothing.
        private func refusedByQemu(_ stage: Stage) throws {
            let monitor = try stage.guest.watch()
            stage.expectRefused(
                "device_add", ["driver": "virtio-rng-pci", "id": "rng9"], "not allowed while migrating")
            let disk = ["driver": "null-co", "node-name": "spare", "read-only": true] as [String: Any]
            try monitor.execute("blockdev-add", disk)
            stage.expectRefused(
                "device_add", ["driver": "virtio-blk-pci", "drive": "spare", "id": "disk9"],
                "not allowed while migrating")
            try monitor.execute("blockdev-del", ["node-name": "spare"])
            try monitor.execute("object-add", ["qom-type": "memory-backend-ram", "id": "m9", "size": 16 << 20])
            stage.expectRefused("device_add", ["driver": "pc-dimm", "memdev": "m9"], "not allowed while migrating")
            try monitor.execute("object-del", ["id": "m9"])
            stage.expectRefused("device_del", ["id": "vd0"], "not allowed while migrating")
            stage.expectRefused("block_resize", ["device": "disk0", "size": 128 << 20], "in use")
            stage.expectRefused(
                "blockdev-snapshot-sync", ["device": "disk0", "snapshot-file": "\(stage.scene.directory)/s"], "mirror")
            try stage.human("savevm a")
            try stage.human("drive_del disk0")
            try stage.guest.checkAlive()
            try stage.expectGoesOn()
        }

        /// An operator's stop holds, at whatever moment it comes.
        private func stops(_ stage: Stage) throws {
            let monitor = try stage.guest.watch()
            var lost = 0
            for _ in 1...12 {
                pause(milliseconds: stage.scene.randomMilliseconds(0...250))
                try monitor.execute("stop")
                pause(milliseconds: 60)
                // QEMU forgets a stop that comes within a checkpoint: it succeeds, and changes nothing.
                guard try stage.state() == "paused" else {
                    lost += 1
                    continue
                }
                pause(milliseconds: 250)
                #expect(try stage.state() == "paused")
                try monitor.execute("cont")
            }
            stage.scene.say("of 12 stops QEMU forgot \(lost)")
            #expect(lost < 12)
            try waitUntil("a stop that QEMU does not forget", within: 5, every: 20) {
                try monitor.execute("stop")
                pause(milliseconds: 60)
                return try stage.state() == "paused"
            }
            try stage.expectHalted("paused", "'cont' resumes it")
            try monitor.execute("cont")
            try stage.expectGoesOn()
            try stage.guest.checkAlive()
            // QEMU's loadvm leaves a guest stopped when it fails, in a state from which it cannot be checkpointed.
            try stage.human("loadvm none")
            try stage.expectHalted("restore-vm", "'loadvm' has failed")
            try monitor.execute("cont")
            try stage.expectGoesOn()
        }

        private func sleepAndResets(_ stage: Stage) throws {
            let monitor = try stage.guest.watch()
            try stage.human(Self.sleepWord)
            try stage.expectHalted("suspended", "'system_wakeup'")
            // A guest that did not mean to sleep wakes with a reset.
            stage.guest.serial.expectRestart()
            try monitor.execute("system_wakeup")
            try stage.expectGoesOn()
            // Reset while it is stopped: from "prelaunch" QEMU would abort at a checkpoint.
            try waitUntil("the guest is stopped", within: 5, every: 20) {
                try monitor.execute("stop")
                pause(milliseconds: 60)
                return try stage.state() == "paused"
            }
            stage.guest.serial.expectRestart()
            try monitor.execute("system_reset")
            try stage.expectHalted("prelaunch", "'cont' starts it")
            try monitor.execute("cont")
            try stage.expectGoesOn()
            try stage.guest.waitUntilBusy()
            try stage.guest.checkAlive()
            let verified = try stage.secondary.verify(stage.name, ["--bandwidth", "0", "--json"])
            #expect(verified.code == 0, "the replica is the guest that has booted anew: \(verified)")
        }

        private func panic(_ stage: Stage) throws {
            try stage.human(Self.panicWord)
            try stage.expectHalted("guest-panicked", "panicked")
            try stage.guest.watch().execute("cont")
            try stage.expectGoesOn()
        }

        /// Another medium is another machine: the guest is described anew, and a failover has what was in the drive.
        private func media(_ stage: Stage, _ attach: AttachProcess, _ discs: [String]) throws {
            let monitor = try stage.guest.watch()
            func command() throws -> String {
                let result = try stage.secondary.run("failover", stage.name, ["--dry-run"])
                return result.output
            }
            #expect(try command().contains(discs[0]))
            try monitor.execute(
                "blockdev-change-medium", ["id": "cd", "filename": discs[1], "format": "raw"])
            try attach.waitFor("drive cd0 holds \(discs[1])")
            try attach.waitFor("protected:", times: 2)
            #expect(try command().contains(discs[1]))
            #expect(try !command().contains(discs[0]))
            try monitor.execute("eject", ["id": "cd", "force": true])
            try attach.waitFor("drive cd0 holds nothing")
            try attach.waitFor("protected:", times: 3)
            #expect(try !command().contains(".iso"))
            try stage.secondary.waitForProof(stage.name)
            try stage.guest.checkAlive()
        }

        /// Leaving COLO starts a guest; one that its operator has stopped is stopped again.
        private func detachedWhileStopped(_ stage: Stage, _ attach: AttachProcess) throws -> AttachProcess {
            let monitor = try stage.guest.watch()
            try waitUntil("the guest is stopped", within: 5, every: 20) {
                try monitor.execute("stop")
                pause(milliseconds: 60)
                return try stage.state() == "paused"
            }
            try attach.detach()
            #expect(try stage.state() == "paused")
            #expect(attach.log.contains("left so (paused)"), "\(attach.log)")
            let early = try stage.scene.attach(stage.guest, to: stage.secondary, name: stage.name)
            try early.waitForExit(1)
            #expect(early.log.contains("'cont'") && early.log.contains("paused"))
            #expect(try stage.state() == "paused")
            try monitor.execute("cont")
            let again = try stage.scene.attach(stage.guest, to: stage.secondary, name: stage.name)
            try again.waitUntilProtected()
            try stage.secondary.waitForCheckpoints(2, of: stage.name)
            try stage.guest.checkAlive()
            return again
        }

        /// Its user powers it off; QEMU stays, as under libvirt.
        private func end(_ stage: Stage, _ attach: AttachProcess) throws {
            try stage.human(Self.powerOffWord)
            try attach.waitForExit(3, within: 5)
            #expect(attach.log.contains("the guest was powered off by its user. Protection has ended"), "\(attach.log)")
            #expect(try stage.state() == "shutdown")
            #expect(try stage.waitFor("shut off").contains("powered off by its user"))
            let refused = try stage.secondary.run("failover", stage.name)
            #expect(refused.code == 1 && refused.error.contains("--force"), "\(refused)")
            pause(milliseconds: 1200)
            let status = try stage.secondary.status(stage.name)
            #expect(status["state"].string == "shut off" && status["generation"].int == 1, "\(status)")
        }

        /// While disks are copied a stopped guest is waited for, and a device that is plugged in is noticed.
        private func initialCopy(_ stage: Stage) throws {
            let monitor = try stage.guest.watch()
            // Such a disk takes a second or more with such a budget.
            let disk = try #require(
                try monitor.execute("query-block").array.compactMap { $0["inserted"]["image"]["filename"].string }.first
            )
            var bytes = [UInt64](repeating: 0, count: 8 << 20)
            for index in bytes.indices { bytes[index] = stage.scene.random.next() }
            let file = try FileHandle(forWritingTo: URL(fileURLWithPath: disk))
            try file.write(contentsOf: bytes.withUnsafeBytes { Data($0) })
            try file.close()
            let attach = try stage.scene.attach(
                stage.guest, to: stage.secondary, name: stage.name, options: ["--budget", "64"])
            try waitUntil("the disk is copied", within: 20, every: 10) {
                try !monitor.execute("query-block-jobs").array.isEmpty
            }
            try monitor.execute("stop")
            try attach.waitFor("waiting: the guest is paused", within: 10)
            try attach.waitFor("disks copied", within: 60)
            pause(milliseconds: 1000)
            #expect(!attach.log.contains("copying RAM") && attach.guardian.isRunning)
            #expect(try stage.state() == "paused")
            try monitor.execute("device_add", ["driver": "virtio-rng-pci", "id": "rng9"])
            try monitor.execute("cont")
            try attach.waitForExit(1, within: 20)
            #expect(attach.log.contains("device rng9 was plugged in"), "\(attach.log)")
            #expect(try stage.guest.runsUnprotected())
            // The doctor says the rest.
            let again = try stage.scene.attach(stage.guest, to: stage.secondary, name: stage.name)
            try again.waitForExit(1, within: 20)
            #expect(again.log.contains("rng9 (virtio-rng-pci) was plugged in after the start"), "\(again.log)")
            try monitor.execute("device_del", ["id": "rng9"])
            try waitUntil("the guest lets go of the device", within: 20, every: 100) {
                try monitor.execute("qom-list", ["path": "/machine/peripheral"]).array.allSatisfy {
                    $0["name"].string != "rng9"
                }
            }
        }

        @Test(
            "rare: somebody else's migration; a death while the guest is stopped",
            .enabled(if: Settings.isFull, "COLO_BLK_FULL"))
        func rare() throws {
            try Scene.run("life-rare") { scene in
                let secondary = try scene.secondary()
                secondary.options = ["--auto-failover", "--fence-command", "true"]
                try secondary.start()
                let migrated = try scene.launch(.init(workload: .idle))
                try migrated.waitUntilBusy()
                let attach = try scene.attach(migrated, to: secondary, name: scene.guestName("m"))
                try attach.waitUntilProtected()
                #expect(throws: TestFailure.self) {
                    try migrated.watch().execute("migrate", ["uri": "exec:cat > /dev/null"])
                }
                // A newer QEMU (10.0.13 seen) refuses, and that is all. QEMU 7.2 dies of it now and then.
                pause(milliseconds: 500)
                if !migrated.isAlive {
                    scene.say("QEMU has died of its operator's 'migrate'")
                    try attach.waitForExit(3)
                } else if try migrated.watch().execute("query-migrate")["status"].string == "colo" {
                    try secondary.waitForCheckpoints(2, of: scene.guestName("m"))
                    try attach.detach()
                } else {
                    try attach.waitForExit(2, within: 20)
                    #expect(attach.log.contains("somebody has tried to migrate"), "\(attach.log)")
                }
                if migrated.isAlive { try migrated.checkAlive() }

                let guest = try scene.launch(.init(workload: .idle))
                try guest.waitUntilBusy()
                let stage = Stage(scene: scene, guest: guest, secondary: secondary, name: scene.guestName("g"))
                try initialCopy(stage)
                let second = try scene.attach(guest, to: secondary, name: stage.name)
                try second.waitUntilProtected()
                try secondary.waitForCheckpoints(2, of: stage.name)
                try waitUntil("the guest is stopped", within: 5, every: 20) {
                    try guest.watch().execute("stop")
                    pause(milliseconds: 60)
                    return try stage.state() == "paused"
                }
                try stage.waitFor("guest halted")
                try guest.kill()
                try stage.waitFor("failed over", within: 20)
                var status = JSON(nil)
                try waitUntil("it is there", within: 10, every: 50) {
                    status = try secondary.status(stage.name)
                    return status["qmpSocket"].string != nil
                }
                let monitor = try Monitor(path: try #require(status["qmpSocket"].string))
                #expect(try monitor.execute("query-status")["status"].string == "paused")
                _ = try? monitor.execute("quit")
            }
        }
    }
}
