import Foundation
import Glibc
import Testing

extension RealGuests {
    /// kill -9 of the secondary in the middle of checkpoints: the guest does not notice, and the next daemon has the
    /// last commit.
    @Suite struct SecondaryDeathTests {
        @Test func theGuestRunsOnAndTheLastCommitIsRecovered() throws {
            try Scene.run("secondary-dies") { scene in
                let guest = try scene.launch(.init(workload: .all))
                let secondary = try scene.startedSecondary()
                let name = scene.guestName("g")
                try guest.waitUntilBusy()
                let before = try guest.footprint()
                for round in 1...Settings.rounds {
                    let committed = try killSecondary(secondary, name, guest, before, scene)
                    // Once the machine itself is lost: nothing is left of what was in memory.
                    let isLast = round == Settings.rounds
                    if isLast { try scene.loseMemory(of: name) }
                    try secondary.start()
                    let status = try secondary.status(name)
                    #expect(status["state"].string == "idle", "\(status)")
                    let recovered = status["committedEpoch"].int ?? -1
                    #expect(recovered >= committed, "epoch \(committed) had been acknowledged")
                    scene.say("round \(round): epoch \(committed) was acknowledged, \(recovered) recovered")
                    if isLast { try failOver(secondary, name, guest, recovered, scene) }
                }
            }
        }

        /// Returns the last epoch that was known to be committed.
        private func killSecondary(
            _ secondary: Secondary, _ name: String, _ guest: Guest, _ before: Footprint, _ scene: Scene
        ) throws -> Int {
            let attach = try scene.attach(
                guest, to: secondary, name: name, options: ["--interval", "30ms", "--on-secondary-loss", "detach"])
            try attach.waitUntilProtected()
            try secondary.waitForCheckpoints(3, of: name)
            pause(milliseconds: scene.randomMilliseconds(0...700))
            let committed = try secondary.committedEpoch(name)
            pause(milliseconds: scene.randomMilliseconds(0...60))
            let start = monotonicSeconds()
            try secondary.kill()
            try waitUntil("the guest runs unprotected", within: 10, every: 2) { try guest.runsUnprotected() }
            let seconds = monotonicSeconds() - start
            scene.say("the guest runs unprotected after \(Figure.text(seconds * 1000, 0)) ms")
            #expect(seconds <= RealGuests.bound)
            try attach.waitForExit(2)
            try guest.waitUntilUntouched(before, within: 1)
            try guest.checkAlive()
            return committed
        }

        private func failOver(
            _ secondary: Secondary, _ name: String, _ guest: Guest, _ epoch: Int, _ scene: Scene
        ) throws {
            try guest.kill()
            guest.serial.read()
            let last = try #require(guest.serial.lastTick)
            let (restored, report) = try scene.failover(secondary, name, of: guest)
            #expect(report["epoch"].int == epoch)
            // The guest ran on unprotected for some time, so more ticks than usual are taken back.
            let check = try SelfCheck.follow(restored, after: last, report: report, mostLostTicks: 1200)
            scene.say("after the loss of the secondary's memory: \(check)")
        }
    }
}
