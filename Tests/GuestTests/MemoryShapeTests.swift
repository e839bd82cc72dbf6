import Foundation
import Testing

extension RealGuests {
    /// Guests whose memory is large, or made in another way.
    @Suite struct MemoryShapeTests {
        /// The test guest's usual memory: no multiple of 256 KiB, see Images/launch.
        private static let usualKiB = 262_152

        /// Eight gibibytes in the nightly run, one where time is short.
        @Test func aGuestWithMuchMemoryThatUsesLittleGoesOn() throws {
            try Scene.run("much-memory") { scene in
                let kib = (Settings.isFull ? 8 << 20 : 1 << 20) | 8
                try protectCompareAndFailOver(.init(workload: .mem, memoryKiB: kib), memoryKiB: kib, scene)
            }
        }

        @Test(.enabled(if: Settings.isFull, "COLO_BLK_FULL"))
        func memoryOfAMemoryFileSharedOnThePrimaryGoesOn() throws {
            try Scene.run("memfd") { scene in
                let object = "memory-backend-memfd,id=m0,size=\(Self.usualKiB)K,share=on"
                try protectCompareAndFailOver(
                    .init(workload: .mem, arguments: ["-object", object, "-machine", "memory-backend=m0"]),
                    memoryKiB: Self.usualKiB, scene)
            }
        }

        @Test func memoryOfAFileSharedOnThePrimaryGoesOnAndThatFileIsNotOpenedAgain() throws {
            try Scene.run("memory-file") { scene in
                let file = "\(scene.directory)/guest.ram"
                let object = "memory-backend-file,id=m0,size=\(Self.usualKiB)K,share=on,mem-path=\(file)"
                let report = try protectCompareAndFailOver(
                    .init(workload: .mem, arguments: ["-object", object, "-machine", "memory-backend=m0"]),
                    memoryKiB: Self.usualKiB, scene)
                let words = report["arguments"].array.compactMap(\.string)
                #expect(!words.contains { $0.contains(file) }, "\(words)")
            }
        }

        @Test func memoryThatWasPluggedInIsRefusedByName() throws {
            try Scene.run("dimm") { scene in
                let guest = try scene.launch(
                    .init(arguments: ["-m", "size=\(Self.usualKiB)K,slots=2,maxmem=1G"]))
                let secondary = try scene.startedSecondary()
                try guest.waitUntilBusy()
                let watch = try guest.watch()
                try watch.execute("object-add", ["qom-type": "memory-backend-ram", "id": "d0", "size": 128 << 20])
                try watch.execute("device_add", ["driver": "pc-dimm", "id": "dimm0", "memdev": "d0"])
                let attach = try scene.attach(guest, to: secondary, name: scene.guestName("g"))
                try attach.waitForExit(1)
                #expect(attach.log.contains("plugged in"), "\(attach.log)")
                #expect(try guest.runsUnprotected())
                try guest.checkAlive()
            }
        }

        @discardableResult
        private func protectCompareAndFailOver(
            _ options: Guest.Options, memoryKiB: Int, _ scene: Scene
        ) throws -> JSON {
            let guest = try scene.launch(options)
            let secondary = try scene.startedSecondary()
            let name = scene.guestName("g")
            try guest.waitUntilBusy()
            let attach = try scene.attach(guest, to: secondary, name: name, options: ["--interval", "100ms"])
            let protected = try attach.waitUntilProtected()
            try secondary.waitForProof(name)
            let compared = try secondary.ram("verify", name, ["--guest-memory", "--json"])
            #expect(compared.code == 0, "\(compared)")
            #expect(try JSON(parsing: compared.output)["pagesOfGuest"].int == memoryKiB / 4, "\(compared.output)")
            let committed = try secondary.waitForCheckpoints(3, of: name)
            try guest.kill()
            try attach.waitForExit(3)
            guest.serial.read()
            let last = try #require(guest.serial.lastTick)
            let (restored, report) = try scene.failover(secondary, name, of: guest)
            let check = try SelfCheck.follow(restored, after: last, report: report, mostLostTicks: 80)
            #expect(check.epoch >= committed)
            let info = try JSON(parsing: try secondary.ram("info", name, ["--json"]).output)
            scene.say(
                "protected after \(Figure.text(protected)) s, cache \((info["cacheBytes"].int ?? 0) >> 20) MiB; \(check)"
            )
            return report
        }
    }
}
