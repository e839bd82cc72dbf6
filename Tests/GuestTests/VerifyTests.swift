import Foundation
import Glibc
import Testing

extension RealGuests {
    /// `colo-blk verify` beside a guest that writes its memory and its disks.
    @Suite struct VerifyTests {
        private static let ramBytes = 262_152 << 10

        @Test func damageBehindTheDaemonsBackIsNamedAndMended() throws {
            try Scene.run("verify") { scene in
                let guest = try scene.launch(.init(shape: "q35", workload: .all))
                let secondary = try scene.startedSecondary()
                let name = scene.guestName("g")
                try guest.waitUntilBusy()
                let before = try guest.footprint()
                let idle = try secondary.verify("nobody")
                #expect(idle.code == 1, "\(idle)")
                let attach = try scene.attach(guest, to: secondary, name: name, options: ["--interval", "100ms"])
                try attach.waitUntilProtected()
                try secondary.waitForProof(name)
                try secondary.waitForCheckpoints(2, of: name)

                let clean = try secondary.verify(name, ["--bandwidth", "0", "--json"])
                #expect(clean.code == 0, "\(clean)")
                let report = try JSON(parsing: clean.output)
                #expect(report["comparedPages"].int == report["ramPages"].int, "\(clean.output)")
                #expect(report["disks"].array.count == 2)
                for disk in report["disks"].array {
                    #expect(disk["comparedBytes"].int == disk["bytes"].int, "\(clean.output)")
                    #expect(disk["differentBlocks"].int == 0, "\(clean.output)")
                }

                // A block near the end of a disk and a page near the end of RAM, which this guest leaves alone for now.
                let disk = try #require(report["disks"].array.last?["id"].string)
                let bytes = try #require(report["disks"].array.last?["bytes"].int)
                let raw = "\(secondary.store)/\(name)/disks/\(disk)/secondary.raw"
                let blocks = [bytes / 65536 - 1, bytes / 65536 - 3].sorted()
                let page = Self.ramBytes / 4096 - 300
                for block in blocks { try spoil(raw, at: block * 65536 + 4097) }
                try spoil(try scene.ramCache(of: name, bytes: Self.ramBytes), at: page * 4096 + 17)
                let damaged = try secondary.verify(name, ["--bandwidth", "0", "--json"])
                #expect(damaged.code == 4, "\(damaged)")
                let found = try JSON(parsing: damaged.output)["differences"].array
                #expect(
                    found.filter { $0["disk"].string == disk }.map { $0["offset"].int ?? 0 }
                        == blocks.map { $0 * 65536 })
                #expect(
                    found.filter { $0["ramBlock"].string == "pc.ram" }.map { $0["offset"].int ?? 0 } == [page * 4096])

                let mended = try secondary.verify(name, ["--bandwidth", "0", "--repair", "--json"])
                #expect(mended.code == 8, "\(mended)")
                let repaired = try JSON(parsing: mended.output)
                #expect(repaired["differences"].array.allSatisfy { $0["repaired"].bool == true }, "\(mended.output)")
                #expect(repaired["differences"].array.count == 3, "\(mended.output)")
                let after = try secondary.verify(name, ["--bandwidth", "0"])
                #expect(after.code == 0, "\(after)")

                try guest.checkAlive()
                try attach.detach()
                try guest.waitUntilUntouched(before)
                let ended = try secondary.verify(name)
                #expect(ended.code == 6 && ended.error.contains("no primary"), "\(ended)")
            }
        }

        @Test func anInterruptedComparisonGoesOnWhereItWas() throws {
            try Scene.run("verify-resume") { scene in
                let guest = try scene.launch(.init(workload: .all))
                let secondary = try scene.startedSecondary()
                let name = scene.guestName("g")
                try guest.waitUntilBusy()
                let attach = try scene.attach(guest, to: secondary, name: name, options: ["--interval", "50ms"])
                try attach.waitUntilProtected()
                try secondary.waitForProof(name)
                let cursor = "\(secondary.store)/\(name)/verify.json"
                let slow = try ChildProcess(
                    "verify", try #require(Settings.binary),
                    ["verify", name, "--store", secondary.store, "--bandwidth", "8"],
                    output: scene.directory + "/verify.log")
                pause(milliseconds: 4000)
                try slow.kill()
                try waitUntil("the comparison is given up", within: 10) {
                    FileManager.default.fileExists(atPath: cursor)
                }
                let kept = try JSON(parsing: String(contentsOfFile: cursor, encoding: .utf8))
                let begun = kept["report"]["disks"].array.first?["comparedBytes"].int ?? 0
                #expect(begun > 0 && begun < 64 << 20, "\(kept)")
                let first = kept["report"]["firstEpoch"].int
                var rest = try secondary.verify(name, ["--bandwidth", "0", "--resume", "--json"])
                // The daemon may not have noticed yet that nobody waits for the first one.
                for _ in 0..<50 where rest.code == 1 && rest.error.contains("is being compared already") {
                    pause(milliseconds: 100)
                    rest = try secondary.verify(name, ["--bandwidth", "0", "--resume", "--json"])
                }
                #expect(rest.code == 0, "\(rest)")
                let report = try JSON(parsing: rest.output)
                #expect(report["firstEpoch"].int == first && first != nil, "\(rest.output)")
                #expect(report["disks"].array.first?["comparedBytes"].int == 64 << 20, "\(rest.output)")
                #expect(!FileManager.default.fileExists(atPath: cursor))
                try guest.checkAlive()
                try attach.detach()
            }
        }
    }
}
