import Foundation
import Glibc
import Testing

extension RealGuests {
    /// `colo-blk ram info` and `ram verify` beside a guest that works.
    @Suite struct RamVerbTests {
        private static let ramBytes = 262_152 << 10

        @Test func theCacheIsComparedWithTheGuestAndADifferentPageIsNamed() throws {
            try Scene.run("ram-verify") { scene in
                let guest = try scene.launch(.init(workload: .mem))
                let secondary = try scene.startedSecondary()
                let name = scene.guestName("g")
                try guest.waitUntilBusy()
                let idle = try secondary.ram("verify", "nobody")
                #expect(idle.code == 1, "\(idle)")
                let attach = try scene.attach(guest, to: secondary, name: name, options: ["--interval", "50ms"])
                try attach.waitUntilProtected()
                try secondary.waitForProof(name)
                try secondary.waitForCheckpoints(2, of: name)
                for options in [[], ["--guest-memory"]] {
                    let result = try secondary.ram("verify", name, options + ["--json"])
                    #expect(result.code == 0, "\(result)")
                    let report = try JSON(parsing: result.output)
                    let compared = (report["pagesOfGuest"].int ?? 0) + (report["pagesOfCopy"].int ?? 0)
                    #expect(compared >= Self.ramBytes / 4096, "\(result.output)")
                    #expect((report["pagesOfGuest"].int == Self.ramBytes / 4096) == !options.isEmpty)
                    #expect(report["differentPages"].int == 0, "\(result.output)")
                }
                let info = try JSON(parsing: try secondary.ram("info", name, ["--json"]).output)
                #expect(info["blocks"].array.contains { $0["name"].string == "pc.ram" }, "\(info)")
                #expect((info["total"]["pages"].int ?? 0) > 1000 && info["epochs"].array.count > 5, "\(info)")
                // A page near the end of RAM that this guest never touches again, spoilt behind the secondary's back.
                let page = Self.ramBytes / 4096 - 300
                try spoil(try scene.ramCache(of: name, bytes: Self.ramBytes), at: page * 4096 + 17)
                for options in [[], ["--guest-memory"]] {
                    let result = try secondary.ram("verify", name, options + ["--json"])
                    #expect(result.code == 4, "\(result)")
                    let report = try JSON(parsing: result.output)
                    #expect(report["differentPages"].int == 1, "\(result.output)")
                    #expect(report["differences"].array.first?["block"].string == "pc.ram")
                    #expect(report["differences"].array.first?["offset"].int == page * 4096, "\(result.output)")
                }
                try guest.checkAlive()
                try attach.detach()
                let ended = try secondary.ram("verify", name)
                #expect(ended.code == 5 && ended.error.contains("no primary"), "\(ended)")
            }
        }

        @Test func theCacheStaysEqualOverManyCheckpointsOfAGuestThatWritesItsMemory() throws {
            try Scene.run("ram-verify-long") { scene in
                let guest = try scene.launch(.init(workload: .mem))
                let secondary = try scene.startedSecondary()
                let name = scene.guestName("g")
                try guest.waitUntilBusy()
                let attach = try scene.attach(guest, to: secondary, name: name, options: ["--interval", "50ms"])
                try attach.waitUntilProtected()
                try secondary.waitForProof(name)
                let first = try secondary.committedEpoch(name)
                var comparisons = 0
                while try secondary.committedEpoch(name) < first + Settings.comparedCheckpoints {
                    // Every fourth one with the guest's own memory.
                    let options = comparisons % 4 == 3 ? ["--guest-memory"] : []
                    let result = try secondary.ram("verify", name, options)
                    guard result.code == 0 else {
                        throw TestFailure("comparison \(comparisons): exit code \(result.code): \(result)")
                    }
                    comparisons += 1
                }
                try guest.checkAlive()
                scene.say("\(comparisons) comparisons over \(Settings.comparedCheckpoints) checkpoints are clean")
                try attach.detach()
            }
        }

        @Test func withoutACopyTheDigestsOfWhatWasSentAndTheGuestsOwnMemoryAreCompared() throws {
            try Scene.run("ram-verify-no-delta") { scene in
                let guest = try scene.launch(.init(workload: .mem))
                let secondary = try scene.startedSecondary()
                let name = scene.guestName("g")
                try guest.waitUntilBusy()
                let attach = try scene.attach(
                    guest, to: secondary, name: name,
                    options: ["--interval", "50ms", "--no-delta", "--durability", "memory"])
                try attach.waitUntilProtected()
                try secondary.waitForProof(name)
                for options in [[], ["--guest-memory"]] {
                    let result = try secondary.ram("verify", name, options + ["--json"])
                    #expect(result.code == 0, "\(result)")
                    let report = try JSON(parsing: result.output)
                    let compared = (report["pagesOfGuest"].int ?? 0) + (report["pagesOfCopy"].int ?? 0)
                    #expect(compared > Self.ramBytes / 4096, "\(result.output)")
                    #expect((report["pagesOfGuest"].int == Self.ramBytes / 4096) == !options.isEmpty)
                }
                let page = Self.ramBytes / 4096 - 300
                try spoil(try scene.ramCache(of: name, bytes: Self.ramBytes), at: page * 4096 + 17)
                let spoilt = try secondary.ram("verify", name, ["--json"])
                #expect(spoilt.code == 4, "\(spoilt)")
                try guest.checkAlive()
                try attach.detach()
            }
        }
    }
}

extension Scene {
    /// The file of a RAM block of this many bytes in the cache of the last commit.
    func ramCache(of name: String, bytes: Int) throws -> String {
        let folder = try memoryFolder(of: name)
        let caches = try FileManager.default.contentsOfDirectory(atPath: folder).filter { $0.hasPrefix("cache-") }
        for cache in caches {
            for file in try FileManager.default.contentsOfDirectory(atPath: "\(folder)/\(cache)") {
                var status = stat()
                let path = "\(folder)/\(cache)/\(file)"
                if file.hasSuffix(".ram"), !file.hasPrefix("staging"), stat(path, &status) == 0,
                    Int(status.st_size) == bytes
                {
                    return path
                }
            }
        }
        throw TestFailure("no file of \(bytes) bytes in the caches \(caches) of \(folder)")
    }
}
