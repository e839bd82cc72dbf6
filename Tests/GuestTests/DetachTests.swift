import Foundation
import Testing

extension RealGuests {
    @Suite struct DetachTests {
        @Test func aDetachedGuestRunsOnWithNothingOfOursAndCanBeAttachedAgain() throws {
            try Scene.run("detach") { scene in
                let guest = try scene.launch(.init(workload: .all))
                let secondary = try scene.startedSecondary()
                let name = scene.guestName("g")
                try guest.waitUntilBusy()
                let before = try guest.footprint()
                for round in 1...2 {
                    let attach = try scene.attach(guest, to: secondary, name: name)
                    let seconds = try attach.waitUntilProtected()
                    let epoch = try secondary.waitForCheckpoints(round == 1 ? 20 : 5, of: name)
                    let sockets = try #require(try guest.socketDirectory(), "the mirror's node names its socket")
                    #expect(FileManager.default.fileExists(atPath: sockets))
                    #expect(try guest.footprint() != before, "a protected guest shows that it is")
                    try attach.detach()
                    try guest.waitUntilUntouched(before, within: 1)
                    #expect(!FileManager.default.fileExists(atPath: sockets), "the agent's sockets are gone")
                    try guest.checkAlive()
                    let status = try secondary.status(name)
                    #expect(status["state"].string == "idle", "\(status)")
                    #expect(try secondary.committedEpoch(name) >= epoch, "the replica keeps its last checkpoint")
                    scene.say("round \(round): protected after \(Figure.text(seconds)) s, detached at epoch \(epoch)")
                }
            }
        }
    }
}
