import Foundation
import Testing

extension RealGuests {
    /// A failover to a QEMU that maps nothing.
    @Suite struct FullStreamTests {
        @Test(arguments: Settings.isFull ? ["i440fx", "q35"] : ["q35"])
        func allMemoryThroughTheStreamStartsTheSameGuest(shape: String) throws {
            try Scene.run("full-stream-\(shape)") { scene in
                let guest = try scene.launch(.init(shape: shape, workload: .all))
                let secondary = try scene.startedSecondary()
                let name = scene.guestName("g")
                try guest.waitUntilBusy()
                let attach = try scene.attach(guest, to: secondary, name: name)
                try attach.waitUntilProtected()
                try secondary.waitForProof(name)
                let committed = try secondary.waitForCheckpoints(5, of: name)
                try guest.kill()
                try attach.waitForExit(3)
                guest.serial.read()
                let last = try #require(guest.serial.lastTick)
                let (restored, report) = try scene.failover(secondary, name, of: guest, options: ["--full-stream"])
                let words = report["arguments"].array.compactMap(\.string)
                #expect(!words.contains { $0.contains("memory-backend-file") }, "\(words)")
                let check = try SelfCheck.follow(restored, after: last, report: report, mostLostTicks: 80)
                #expect(check.epoch >= committed)
                scene.say("\(check)")
            }
        }
    }
}
