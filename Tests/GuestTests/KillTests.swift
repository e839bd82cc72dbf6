import Foundation
import Testing

extension RealGuests {
    /// kill -9 of QEMU at random moments. The guest that comes out of a failover is the next one to be protected and
    /// killed, so that each workload also shows a chain of failovers.
    @Suite struct KillTests {
        @Test(arguments: [Guest.Workload.idle, .mem, .disk])
        func aKilledGuestGoesOnFromItsLastCheckpoint(_ workload: Guest.Workload) throws {
            let kills = (Settings.kills + 2) / 3
            try Scene.run("kill-\(workload.rawValue)") { scene in
                let secondary = try scene.startedSecondary(qemu: try scene.protectableQemu())
                var guest = try scene.launch(.init(workload: workload))
                try guest.waitUntilBusy()
                var replica: String?
                for kill in 1...kills {
                    let name = scene.guestName("\(workload.rawValue)\(kill)")
                    let restored = try killAndFailOver(guest, name, secondary, scene)
                    // The guest that ran on the replica before has been killed: it can go.
                    if let replica { try secondary.remove(replica) }
                    replica = name
                    guest = restored
                }
            }
        }

        private func killAndFailOver(
            _ guest: Guest, _ name: String, _ secondary: Secondary, _ scene: Scene
        ) throws -> Guest {
            let attach = try scene.attach(guest, to: secondary, name: name)
            let protected = try attach.waitUntilProtected()
            pause(milliseconds: scene.randomMilliseconds(0...3000))
            let committed = try secondary.committedEpoch(name)
            guest.serial.read()
            #expect(guest.serial.faults.isEmpty, "the protected guest reports \(guest.serial.faults)")
            pause(milliseconds: scene.randomMilliseconds(0...250))
            try guest.kill()
            try attach.waitForExit(3)
            guest.serial.read()
            let last = try #require(guest.serial.lastTick)
            let (restored, report) = try scene.failover(secondary, name, of: guest)
            let check = try SelfCheck.follow(restored, after: last, report: report)
            #expect(check.epoch >= committed, "epoch \(committed) had been acknowledged")
            #expect(report["generation"].int == 2)
            scene.say("\(name): protected after \(Figure.text(protected)) s; \(check)")
            return restored
        }
    }
}
