import Foundation
import Testing

extension RealGuests {
    /// Other guests and other ways to protect them: each is killed once and goes on.
    @Suite struct ShapeTests {
        @Test func aGuestWithTwoProcessorsAndTwoScsiDisksGoesOn() throws {
            try Scene.run("q35") { scene in
                let guest = try scene.launch(.init(shape: "q35", workload: .all))
                let secondary = try scene.startedSecondary()
                try protectKillAndCheck(guest, secondary, [], scene) { status in
                    #expect(status["disks"].array.count == 2, "\(status)")
                    #expect(status["durability"].string == "disk")
                }
            }
        }

        @Test func aGuestWithoutDisksGoesOn() throws {
            try Scene.run("no-disk") { scene in
                let guest = try scene.launch(.init(workload: .mem, hasDisk: false))
                let secondary = try scene.startedSecondary()
                try protectKillAndCheck(guest, secondary, [], scene) { status in
                    #expect(status["disks"].array.isEmpty, "\(status)")
                }
            }
        }

        @Test func aCheckpointInMemoryAndWithoutDeltasServesAsWell() throws {
            try Scene.run("memory-no-delta") { scene in
                let guest = try scene.launch(.init(workload: .all))
                let secondary = try scene.startedSecondary()
                try protectKillAndCheck(guest, secondary, ["--durability", "memory", "--no-delta"], scene) { status in
                    #expect(status["durability"].string == "memory", "\(status)")
                }
            }
        }

        @Test func aStoreThatAttachKeepsItselfServesWithoutAnyDaemon() throws {
            try Scene.run("embedded") { scene in
                let guest = try scene.launch(.init(workload: .all))
                // Never started: attach holds the store itself, and afterwards nobody does.
                let secondary = try scene.secondary()
                try protectKillAndCheck(guest, secondary, [], scene, to: .store(secondary.store)) { _ in }
            }
        }

        private func protectKillAndCheck(
            _ guest: Guest, _ secondary: Secondary, _ options: [String], _ scene: Scene,
            to target: AttachProcess.Target? = nil, expect: (JSON) throws -> Void
        ) throws {
            let name = scene.guestName("g")
            try guest.waitUntilBusy()
            let attach = try scene.attach(
                guest, to: target ?? .secondary(secondary.address), name: name, options: options)
            let protected = try attach.waitUntilProtected()
            try secondary.waitForProof(name)
            try secondary.waitForCheckpoints(5, of: name)
            try expect(try secondary.status(name))
            pause(milliseconds: scene.randomMilliseconds(0...1000))
            let committed = try secondary.committedEpoch(name)
            try guest.kill()
            try attach.waitForExit(3)
            guest.serial.read()
            let last = try #require(guest.serial.lastTick)
            let (restored, report) = try scene.failover(secondary, name, of: guest)
            let check = try SelfCheck.follow(restored, after: last, report: report)
            #expect(check.epoch >= committed)
            scene.say("protected after \(Figure.text(protected)) s; \(check)")
        }
    }
}
