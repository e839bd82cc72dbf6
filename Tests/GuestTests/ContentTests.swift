import Foundation
import Glibc
import Testing

extension RealGuests {
    /// What is committed is the primary's content at that moment, byte for byte.
    ///
    /// The guest is caught while it stands still for a checkpoint: what RAM and disks hold then is what that checkpoint
    /// must hold.
    @Suite struct ContentTests {
        private static let ramBytes = 262_152 << 10
        /// Device memory and firmware shadows: not a part of RAM as the file has it.
        private static let hole = 0xA0000..<0x10_0000

        @Test func ramAndDisksOfACheckpointAreThoseOfTheStoppedGuest() throws {
            try Scene.run("content") { scene in
                let guest = try scene.launch(.init(workload: .all))
                let secondary = try scene.startedSecondary()
                let name = scene.guestName("g")
                try guest.waitUntilBusy()
                let attach = try scene.attach(guest, to: secondary, name: name, options: ["--interval", "3s"])
                try attach.waitUntilProtected()
                try secondary.waitForProof(name)
                for round in 1...Settings.rounds {
                    let snapshot = try stopAtCheckpoint(guest, attach, secondary, name, scene)
                    let cache = try ramCache(scene, name)
                    let different = try Content.differentPages(snapshot.ram, cache, skipping: Self.hole)
                    #expect(different.isEmpty, "RAM pages of epoch \(snapshot.epoch): \(different.prefix(20))")
                    scene.say("round \(round): epoch \(snapshot.epoch): RAM compared, \(different.count) pages differ")
                }
                let snapshot = try stopAtCheckpoint(guest, attach, secondary, name, scene)
                try guest.kill()
                try attach.waitForExit(3)
                try compareRestored(snapshot, guest, secondary, name, scene)
            }
        }

        @Test func theDiskOfADetachedReplicaIsThatOfTheStoppedGuest() throws {
            try Scene.run("content-detached") { scene in
                let guest = try scene.launch(.init(workload: .all))
                let secondary = try scene.startedSecondary()
                let name = scene.guestName("g")
                try guest.waitUntilBusy()
                let attach = try scene.attach(guest, to: secondary, name: name, options: ["--interval", "5s"])
                try attach.waitUntilProtected()
                try secondary.waitForProof(name)
                let snapshot = try stopAtCheckpoint(guest, attach, secondary, name, scene)
                // What the guest writes now belongs to an epoch that is never committed, and must be taken back.
                pause(milliseconds: 1000)
                try attach.detach()
                #expect(try secondary.committedEpoch(name) == snapshot.epoch)
                let folder = "\(secondary.store)/\(name)/disks"
                let disk = try #require(try FileManager.default.contentsOfDirectory(atPath: folder).first)
                let different = try Content.differentPages(snapshot.disk, "\(folder)/\(disk)/secondary.raw")
                #expect(different.isEmpty, "blocks that differ: \(different.prefix(20))")
                let moved = try Content.differentPages(snapshot.disk, "\(scene.directory)/g0/disk0.raw")
                #expect(!moved.isEmpty, "the guest has written since")
                scene.say(
                    "epoch \(snapshot.epoch): the disk is equal; the primary's own has moved on by \(moved.count) blocks"
                )
            }
        }

        @Test func anAttachAfterAnOutageSendsOnlyWhatHasChanged() throws {
            try Scene.run("content-again") { scene in
                let guest = try scene.launch(.init(workload: .disk))
                let secondary = try scene.startedSecondary()
                let name = scene.guestName("g")
                try guest.waitUntilBusy()
                let first = try scene.attach(
                    guest, to: secondary, name: name, options: ["--on-secondary-loss", "detach"])
                try first.waitUntilProtected()
                try secondary.waitForProof(name)
                let whole = try copied(first)
                // The secondary dies in the middle of an epoch, and the guest writes on for a while.
                try secondary.kill()
                try first.waitForExit(2)
                pause(milliseconds: 500)
                try secondary.start()
                let again = try scene.attach(guest, to: secondary, name: name, options: ["--interval", "3s"])
                try again.waitUntilProtected()
                try secondary.waitForProof(name)
                let part = try copied(again)
                scene.say("first \(whole), then \(part)")
                #expect(whole.skipped == 0)
                // The guest goes on writing all the time, so that much has changed; but far from everything.
                #expect(part.skipped > 16 << 20)
                let snapshot = try stopAtCheckpoint(guest, again, secondary, name, scene)
                try again.detach()
                #expect(try secondary.committedEpoch(name) == snapshot.epoch)
                let folder = "\(secondary.store)/\(name)/disks"
                let disk = try #require(try FileManager.default.contentsOfDirectory(atPath: folder).first)
                let different = try Content.differentPages(snapshot.disk, "\(folder)/\(disk)/secondary.raw")
                #expect(different.isEmpty, "blocks that differ: \(different.prefix(20))")
            }
        }

        /// What an attach says about its initial copy of the disks, in bytes.
        private func copied(_ attach: AttachProcess) throws -> (disks: Int, skipped: Int, sent: Int) {
            let number = try numbers("initial copy of disks", attach)
            return (try number("disks"), try number("skipped"), try number("sent"))
        }

        /// What it says about RAM: pages, those that were there already, and bytes on the link.
        private func copiedRam(_ attach: AttachProcess) throws -> (pages: Int, known: Int, sent: Int) {
            let number = try numbers("initial copy of RAM", attach)
            return (try number("pages"), try number("known"), try number("sent"))
        }

        /// Looks numbers up in the last line of the log that has the words.
        private func numbers(_ words: String, _ attach: AttachProcess) throws -> (String) throws -> Int {
            let line = try #require(attach.log.split(separator: "\n").last { $0.contains(words) })
            func number(_ key: String) throws -> Int {
                let part = try #require(line.split(separator: " ").first { $0.hasPrefix("\(key)=") })
                return try #require(Int(part.dropFirst(key.count + 1).filter(\.isNumber)))
            }
            return number
        }

        @Test func aSecondaryThatComesBackIsResyncedByTheSameAttach() throws {
            try Scene.run("content-resync") { scene in
                let guest = try scene.launch(.init(workload: .all))
                let secondary = try scene.startedSecondary()
                let name = scene.guestName("g")
                try guest.waitUntilBusy()
                let before = try guest.footprint()
                let attach = try scene.attach(guest, to: secondary, name: name, options: ["--interval", "3s"])
                try attach.waitUntilProtected()
                try secondary.waitForProof(name)
                // The daemon is killed and started again; then it hangs for a while, which cuts the link.
                for outage in 1...2 {
                    let start = monotonicSeconds()
                    if outage == 1 { try secondary.kill() } else { secondary.daemon?.signal(SIGSTOP) }
                    try waitUntil("the guest runs unprotected", within: 10, every: 2) { try guest.runsUnprotected() }
                    let seconds = monotonicSeconds() - start
                    scene.say("outage \(outage): the guest runs unprotected after \(Figure.text(seconds * 1000, 0)) ms")
                    if outage == 1 { #expect(seconds <= RealGuests.bound) }
                    try waitUntil("attach says so", within: 10) { lines("degraded: the secondary", attach) >= outage }
                    pause(milliseconds: 1500)
                    if outage == 1 { try secondary.start() } else { secondary.daemon?.signal(SIGCONT) }
                    try waitUntil("it is protected again", within: 90, seen: { tail(of: attach.guardian.outputPath) }) {
                        lines("protected: checkpoint", attach) == outage + 1
                    }
                    let copy = try copied(attach)
                    let ram = try copiedRam(attach)
                    scene.say("outage \(outage): \(copy), RAM \(ram); \(lastLine("protected:", attach))")
                    #expect(copy.sent < copy.disks / 4, "most of the disk has not changed")
                    #expect(ram.known > ram.pages / 2, "most of RAM has not changed")
                }
                try secondary.waitForProof(name)
                let snapshot = try stopAtCheckpoint(guest, attach, secondary, name, scene)
                let pages = try Content.differentPages(snapshot.ram, try ramCache(scene, name), skipping: Self.hole)
                #expect(pages.isEmpty, "RAM pages of epoch \(snapshot.epoch): \(pages.prefix(20))")
                try attach.detach()
                try guest.waitUntilUntouched(before)
                #expect(try secondary.committedEpoch(name) == snapshot.epoch)
                let folder = "\(secondary.store)/\(name)/disks"
                let disk = try #require(try FileManager.default.contentsOfDirectory(atPath: folder).first)
                let blocks = try Content.differentPages(snapshot.disk, "\(folder)/\(disk)/secondary.raw")
                #expect(blocks.isEmpty, "blocks that differ: \(blocks.prefix(20))")
            }
        }

        @Test func aSecondaryThatStaysAwayEndsTheProtectionWhenThatIsWished() throws {
            try Scene.run("resync-timeout") { scene in
                let guest = try scene.launch(.init(workload: .disk))
                let secondary = try scene.startedSecondary()
                let name = scene.guestName("g")
                try guest.waitUntilBusy()
                let before = try guest.footprint()
                let attach = try scene.attach(guest, to: secondary, name: name, options: ["--resync-timeout", "2"])
                try attach.waitUntilProtected()
                try secondary.kill()
                let start = monotonicSeconds()
                try attach.waitForExit(2)
                let seconds = monotonicSeconds() - start
                #expect((2...8).contains(seconds), "\(seconds)")
                #expect(attach.log.contains("--resync-timeout"))
                try guest.waitUntilUntouched(before)
                try guest.checkAlive()
            }
        }

        private func lines(_ start: String, _ attach: AttachProcess) -> Int {
            attach.log.split(separator: "\n").count { $0.hasPrefix(start) }
        }

        private func lastLine(_ start: String, _ attach: AttachProcess) -> Substring {
            attach.log.split(separator: "\n").last { $0.hasPrefix(start) } ?? ""
        }

        private struct Snapshot {
            let epoch: Int
            let ram: String
            let disk: String
        }

        /// Catches the guest in a checkpoint, copies what it holds, and lets the checkpoint be committed.
        private func stopAtCheckpoint(
            _ guest: Guest, _ attach: AttachProcess, _ secondary: Secondary, _ name: String, _ scene: Scene
        ) throws -> Snapshot {
            let ram = "\(scene.directory)/ram"
            let disk = "\(scene.directory)/disk"
            for _ in 1...10 {
                let caught = try whileInCheckpoint(guest, attach, scene) { watch in
                    for path in [ram, disk] { unlink(path) }
                    try watch.execute("pmemsave", ["val": 0, "size": Self.ramBytes, "filename": ram], within: 60)
                    try FileManager.default.copyItem(atPath: "\(scene.directory)/g0/disk0.raw", toPath: disk)
                    return try secondary.committedEpoch(name) + 1
                }
                guard let epoch = caught else {
                    scene.say("the checkpoint could not be caught; once more")
                    continue
                }
                try waitUntil("epoch \(epoch) is committed", within: 20, every: 20) {
                    try secondary.committedEpoch(name) >= epoch
                }
                return Snapshot(epoch: epoch, ram: ram, disk: disk)
            }
            throw TestFailure("no checkpoint could be caught")
        }

        /// Does something while the guest stands still in a checkpoint; nil when that was over too soon.
        ///
        /// What has changed since the last one does not fit into the migration's socket, so that QEMU waits in the
        /// checkpoint for an agent that is stopped.
        private func whileInCheckpoint<Value>(
            _ guest: Guest, _ attach: AttachProcess, _ scene: Scene, _ body: (Monitor) throws -> Value
        ) throws -> Value? {
            let watch = try guest.watch()
            let agent = try attach.agent()
            try watch.drain()
            let seen = watch.events.count
            try waitUntil("a checkpoint", within: 20, every: 0) {
                try watch.drain(milliseconds: 1)
                return watch.events[seen...].contains { $0.name == "STOP" }
            }
            // QEMU says so before it flushes its disks, for which it needs the agent, too.
            pause(milliseconds: scene.randomMilliseconds(1...4))
            Glibc.kill(agent, SIGSTOP)
            attach.guardian.signal(SIGSTOP)
            defer {
                Glibc.kill(agent, SIGCONT)
                // The guardian listens for the agent's heart.
                pause(milliseconds: 150)
                attach.guardian.signal(SIGCONT)
            }
            func isCaught() -> Bool {
                (try? watch.execute("query-status", within: 1))?["status"].string == "colo"
                    && !watch.events[seen...].contains { $0.name == "RESUME" }
            }
            pause(milliseconds: 50)
            guard isCaught() else { return nil }
            let value = try body(watch)
            guard isCaught() else { throw TestFailure("the guest went on meanwhile") }
            return value
        }

        /// The file of the guest's RAM in the cache of the last commit.
        private func ramCache(_ scene: Scene, _ name: String) throws -> String {
            let folder = try scene.memoryFolder(of: name)
            let caches = try FileManager.default.contentsOfDirectory(atPath: folder).filter { $0.hasPrefix("cache-") }
            for cache in caches {
                let files = try FileManager.default.contentsOfDirectory(atPath: "\(folder)/\(cache)")
                for file in files where Content.size("\(folder)/\(cache)/\(file)") == Self.ramBytes {
                    return "\(folder)/\(cache)/\(file)"
                }
            }
            throw TestFailure("no file of \(Self.ramBytes) bytes in the caches \(caches) of \(folder)")
        }

        private func compareRestored(
            _ snapshot: Snapshot, _ guest: Guest, _ secondary: Secondary, _ name: String, _ scene: Scene
        ) throws {
            guest.serial.read()
            let last = try #require(guest.serial.lastTick)
            let (restored, report) = try scene.failover(secondary, name, of: guest, options: ["--paused"])
            #expect(report["epoch"].int == snapshot.epoch)
            let watch = try restored.watch()
            #expect(try watch.execute("query-status")["running"].bool == false)
            let ram = "\(scene.directory)/ram-restored"
            try watch.execute("pmemsave", ["val": 0, "size": Self.ramBytes, "filename": ram], within: 60)
            let different = try Content.differentPages(snapshot.ram, ram)
            #expect(different.isEmpty, "RAM pages of the restored guest: \(different.prefix(20))")
            let active = "\(secondary.store)/\(name)/disks"
            let disk = try #require(try FileManager.default.contentsOfDirectory(atPath: active).first)
            let flat = "\(scene.directory)/disk-restored"
            try Content.convert("\(active)/\(disk)/active.qcow2", to: flat, scene)
            let blocks = try Content.differentPages(snapshot.disk, flat)
            #expect(blocks.isEmpty, "disk blocks of the restored guest: \(blocks.prefix(20))")
            try watch.execute("cont")
            let check = try SelfCheck.follow(restored, after: last, report: report, seconds: 3, mostLostTicks: 80)
            scene.say("epoch \(snapshot.epoch): RAM and disk of the restored guest are equal; \(check)")
        }
    }
}

/// Comparing files.
private enum Content {
    static func size(_ path: String) -> Int {
        var status = stat()
        return stat(path, &status) == 0 ? Int(status.st_size) : -1
    }

    /// The numbers of the 4 KiB pages in which two files differ.
    static func differentPages(_ one: String, _ other: String, skipping hole: Range<Int> = 0..<0) throws -> [Int] {
        let first = try Data(contentsOf: URL(fileURLWithPath: one), options: .alwaysMapped)
        let second = try Data(contentsOf: URL(fileURLWithPath: other), options: .alwaysMapped)
        guard first.count == second.count else {
            throw TestFailure("\(one) has \(first.count) bytes, \(other) has \(second.count)")
        }
        return first.withUnsafeBytes { left in
            second.withUnsafeBytes { right in
                guard let left = left.baseAddress, let right = right.baseAddress else { return [] }
                return stride(from: 0, to: first.count, by: 4096).filter { offset in
                    let count = min(4096, first.count - offset)
                    return !hole.contains(offset) && memcmp(left + offset, right + offset, count) != 0
                }.map { $0 / 4096 }
            }
        }
    }

    /// What a guest would read from an image, as a raw file; the image may be in use.
    static func convert(_ image: String, to flat: String, _ scene: Scene) throws {
        let log = "\(scene.directory)/qemu-img.log"
        let process = try ChildProcess(
            "qemu-img", "qemu-img", ["convert", "-U", "-f", "qcow2", "-O", "raw", image, flat], output: log)
        guard try process.waitForExit(within: 60) == 0 else { throw TestFailure("qemu-img: \(tail(of: log))") }
    }
}
