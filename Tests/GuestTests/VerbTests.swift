import Foundation
import Testing

extension RealGuests {
    /// status, failover and the fence, as an operator meets them.
    @Suite struct VerbTests {
        @Test func aLivingPrimaryIsFencedOnlyByForceAndThenForEver() throws {
            try Scene.run("verbs") { scene in
                let guest = try scene.launch(.init(workload: .all))
                let secondary = try scene.startedSecondary()
                let name = scene.guestName("g")
                try guest.waitUntilBusy()
                let before = try guest.footprint()
                let attach = try scene.attach(guest, to: secondary, name: name)
                try attach.waitUntilProtected()
                try secondary.waitForProof(name)
                try expectProtected(secondary, name)
                try expectDryRunChangesNothing(secondary, name)
                try expectRefusalWhilePrimaryLives(secondary, name, attach)

                let (restored, report) = try scene.failover(secondary, name, of: guest, options: ["--force"])
                try attach.waitForExit(2)
                try guest.waitUntilUntouched(before)
                guest.serial.read()
                let last = try #require(guest.serial.lastTick)
                let check = try SelfCheck.follow(restored, after: last, report: report)
                scene.say("forced: \(check)")
                try expectFenced(secondary, name, guest, scene)
                try guest.checkAlive()
            }
        }

        private func expectProtected(_ secondary: Secondary, _ name: String) throws {
            try secondary.waitForCheckpoints(2, of: name)
            let status = try secondary.status(name)
            #expect(status["state"].string == "protected", "\(status)")
            #expect(status["generation"].int == 1, "\(status)")
            #expect((status["commitAgeSeconds"].double ?? 99) < 5, "\(status)")
            #expect((status["silentSeconds"].double ?? 99) < 2, "\(status)")
            #expect((status["ramBytes"].int ?? 0) > 262_152 << 10, "\(status)")
            #expect(status["disks"][0]["bytes"].int == 64 << 20, "\(status)")
            #expect(!status["pid"].exists, "\(status)")
            let text = try secondary.run("status", name)
            #expect(text.code == 0)
            #expect(text.output.contains("proven at epoch"), "\(text.output)")
        }

        private func expectDryRunChangesNothing(_ secondary: Secondary, _ name: String) throws {
            let files = try tree(secondary.store, name)
            let result = try secondary.run("failover", name, ["--dry-run"])
            #expect(result.code == 0, "\(result.error)")
            #expect(result.output.contains("qemu") && result.output.contains("-incoming"), "\(result.output)")
            #expect(result.output.contains("active.qcow2"), "\(result.output)")
            #expect(try tree(secondary.store, name) == files, "no disk of a running guest is made")
            let status = try secondary.status(name)
            #expect(status["generation"].int == 1 && status["state"].string == "protected", "\(status)")
            try secondary.waitForCheckpoints(2, of: name)
        }

        /// The active disks there are.
        private func tree(_ store: String, _ name: String) throws -> [String] {
            let paths = try FileManager.default.subpathsOfDirectory(atPath: "\(store)/\(name)/disks")
            return paths.filter { $0.contains("active") }.sorted()
        }

        private func expectRefusalWhilePrimaryLives(
            _ secondary: Secondary, _ name: String, _ attach: AttachProcess
        ) throws {
            let result = try secondary.run("failover", name)
            #expect(result.code == 1)
            #expect(result.error.contains("--force"), "the remedy is named: \(result.error)")
            #expect(result.error.split(separator: "\n").count == 1, "one line: \(result.error)")
            #expect(attach.guardian.isRunning)
            try secondary.waitForCheckpoints(2, of: name)
        }

        private func expectFenced(_ secondary: Secondary, _ name: String, _ guest: Guest, _ scene: Scene) throws {
            let status = try secondary.status(name)
            #expect(status["state"].string == "failed over", "\(status)")
            #expect(status["generation"].int == 2, "\(status)")
            #expect(status["pid"].exists && status["qmpSocket"].exists, "\(status)")
            // The old primary comes back, and again after the daemon has been restarted.
            for restart in [false, true] {
                if restart {
                    try secondary.stop()
                    try secondary.start()
                }
                let again = try scene.attach(guest, to: secondary, name: name)
                try again.waitForExit(1, within: 30)
                #expect(again.log.contains("failed over"), "\(again.log)")
                #expect(try guest.runsUnprotected())
            }
            let removal = try secondary.run("remove", name)
            #expect(removal.code == 1, "a running guest's replica is not removed: \(removal.output)")
            let second = try secondary.run("failover", name)
            #expect(second.code == 1, "it runs already: \(second.output)")
        }
    }
}
