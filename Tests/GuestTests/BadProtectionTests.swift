import Foundation
import Glibc
import Link
import Testing
import Units

extension BadInput {
    /// What happens to a protection that stands, when something bad comes.
    @Suite("Protection")
    struct Protection {
        /// Attaches and waits for the first committed checkpoint.
        private func attach(
            _ guest: BadGuest, to address: String, name: String = "vm", _ more: [String] = []
        ) throws -> FakeProcess {
            let attach = try FakeProcess(
                ["attach", "--qmp", guest.qmp, "--to", address, "--guest", name, "--durability", "memory"] + more)
            guard attach.says("protected: checkpoint", within: 60) else {
                throw FakeFailure("the attach did not succeed: \(attach.error)")
            }
            return attach
        }

        /// New checkpoints are committed while we watch.
        private func expectProgress(
            _ serve: FakeServe, _ name: String = "vm", _ location: SourceLocation = #_sourceLocation
        )
            throws
        {
            let before = try serve.status(name)?["committedEpoch"] as? Int ?? 0
            let goesOn = try FakeTool.wait(5) { (try serve.status(name)?["committedEpoch"] as? Int ?? 0) > before + 2 }
            #expect(goesOn, "no checkpoint after \(before)", sourceLocation: location)
            let state = try serve.status(name)?["state"] as? String
            #expect(state == "protected", sourceLocation: location)
        }

        /// Ends it in order.
        private func detach(_ attach: FakeProcess, _ guest: BadGuest, _ location: SourceLocation = #_sourceLocation)
            throws
        {
            attach.signal(SIGINT)
            let ending = attach.end(within: 10)
            #expect(ending.code == 0, "\(ending)", sourceLocation: location)
            try guest.expectUntouched(location)
        }

        /// The directory with the sockets that QEMU speaks to.
        private func socketFolder(in guest: BadGuest) throws -> String {
            let nodes =
                try FakeQMP(guest.otherQMP).execute("query-named-block-nodes", ["flat": true]) as? [[String: Any]]
            let files = (nodes ?? []).filter { ($0["node-name"] as? String ?? "").hasPrefix("colo-blk-nbd") }
                .compactMap { $0["file"] as? String }
            let folder = files.first?.firstMatch(of: /\/tmp\/colo-blk-[A-Za-z0-9-]+/)
            return try #require(folder.map { String($0.output) }, "no socket directory in \(files)")
        }

        @Test("garbage on every socket that listens: nobody crashes, and protection goes on")
        func garbageEverywhere() throws {
            let guest = try BadGuest.running()
            let serve = try FakeServe()
            let attach = try attach(guest, to: serve.address)
            let folder = try socketFolder(in: guest)
            var information = stat()
            #expect(
                stat(folder, &information) == 0 && information.st_mode & 0o077 == 0, "others may look into \(folder)")
            let sockets = [
                "unix:\(folder)/nbd.sock", "unix:\(folder)/ram.sock", serve.address,
                "unix:\(serve.store.path)/control.sock",
            ]
            var random = SystemRandomNumberGenerator()
            let noise = (0..<10_000).map { _ in UInt8.random(in: 0...255, using: &random) }
            let badMigration = Array("QEVM".utf8) + [0, 0, 0, 3, 7, 255, 255, 255, 255]
            let badNBD = [0, 0, 0, 3] + Array("IHAVEOPT".utf8) + [0, 0, 0, 7, 255, 255, 255, 255]
            let badFrame = FakeFrames.header(kind: 16, length: 64) + [UInt8](repeating: 1, count: 64)
            for socket in sockets {
                for words in [noise, badMigration, badNBD, badFrame, []] {
                    let stream = try FakeStream.connect(to: socket)
                    stream.write(words)
                    usleep(50_000)
                    stream.shut()
                    #expect(attach.isRunning, "\(socket) after \(words.prefix(16)): \(attach.error.suffix(1500))")
                    #expect(serve.process.isRunning, "\(socket): \(serve.process.error.suffix(1500))")
                }
                try expectProgress(serve)
            }
            try detach(attach, guest)
        }

        @Test("a second attach of a protected guest is refused and the first one goes on")
        func secondAttach() throws {
            let guest = try BadGuest.running()
            let serve = try FakeServe()
            let attach = try attach(guest, to: serve.address)
            let throughSameMonitor = try FakeTool.run(
                ["attach", "--qmp", guest.qmp, "--to", serve.address, "--guest", "vm"])
            expectRefusal(throughSameMonitor, "another client")
            for name in ["vm", "other"] {
                let throughOtherMonitor = try FakeTool.run(
                    ["attach", "--qmp", guest.otherQMP, "--to", serve.address, "--guest", name])
                expectRefusal(throughOtherMonitor, "protected")
                #expect(attach.isRunning, "\(attach.error.suffix(1500))")
                try expectProgress(serve)
            }
            try detach(attach, guest)
        }

        @Test("another guest's primary under the same name is refused and the protection goes on")
        func nameTaken() throws {
            let guest = try BadGuest.running()
            let serve = try FakeServe()
            let attach = try attach(guest, to: serve.address)
            let other = try FakePrimary(serve.address)
            other.send(FakeFrames.frame(FakeFrames.hello(guest: "vm")))
            #expect(other.refusal()?.code == .alreadyProtected)
            try expectProgress(serve)
            try detach(attach, guest)
        }

        @Test(
            "the link is cut inside a checkpoint: the guest runs on, the last commit starts, the old primary is fenced")
        func cutAndFence() throws {
            let guest = try BadGuest.running()
            let serve = try FakeServe()
            let cable = try FakeCable(to: serve.address)
            let attach = try attach(guest, to: cable.address, ["--on-secondary-loss", "detach"])
            try expectProgress(serve)
            #expect(cable.cutInsideNextCheckpoint())
            let ending = attach.end(within: 5)
            expectRefusal(ending, code: 2, "protection ended", "the secondary is lost")
            #expect(ending.sentences.first?.contains("the guest runs") == true, "\(ending)")
            try guest.expectUntouched()

            #expect(try FakeTool.wait(5) { try serve.status("vm")?["state"] as? String == "primary lost" })
            let kept = try #require(try serve.status("vm")?["committedEpoch"] as? Int)
            let failover = try FakeTool.run(["failover", "vm", "--store", serve.store.path, "--json"], limit: 60)
            try #require(failover.code == 0, "\(failover)")
            let restored = try BadRestoredGuest(report: failover.out)
            defer { restored.kill() }
            #expect(restored.epoch == kept)
            #expect(restored.generation == 2)
            let again = try FakeTool.run(["failover", "vm", "--store", serve.store.path])
            expectRefusal(again, "runs here already", "\(restored.pid)")
            let removal = try FakeTool.run(["remove", "vm", "--store", serve.store.path])
            expectRefusal(removal, "it runs here", "\(restored.pid)")

            let fenced = try FakeTool.run(["attach", "--qmp", guest.qmp, "--to", serve.address, "--guest", "vm"])
            expectRefusal(fenced, "the secondary refuses", "failed over", "generation 2")
            try guest.expectUntouched()
        }

        @Test("a failover while the primary answers is refused, and protection goes on")
        func failoverOfTheLiving() throws {
            let guest = try BadGuest.running()
            let serve = try FakeServe()
            let attach = try attach(guest, to: serve.address)
            let ending = try FakeTool.run(["failover", "vm", "--store", serve.store.path])
            expectRefusal(ending, "still answers", "--force")
            let removal = try FakeTool.run(["remove", "vm", "--store", serve.store.path])
            expectRefusal(removal, "detach it first")
            try expectProgress(serve)
            try detach(attach, guest)
        }

        @Test("a replica of other disks is not overwritten")
        func otherDisks() throws {
            let guest = try BadGuest.running()
            let serve = try FakeServe()
            let attach = try attach(guest, to: serve.address)
            try detach(attach, guest)
            let kept = try #require(try serve.status("vm")?["committedEpoch"] as? Int)
            let other = try FakePrimary(serve.address)
            other.send(FakeFrames.frame(FakeFrames.hello(guest: "vm", disks: [Hello.Disk(id: "disk0", size: 1 << 20)])))
            let refuse = try #require(other.refusal())
            #expect(refuse.code == .identityMismatch)
            #expect(refuse.message.contains("1048576") && refuse.message.contains("remove vm"), "\(refuse)")
            #expect(try serve.status("vm")?["committedEpoch"] as? Int == kept)
        }

        @Test("a QEMU that ends the migration as completed instead of entering COLO is named, and its guest runs on")
        func completesInsteadOfColo() throws {
            BadGuest.stopShared()
            let guest = try BadGuest(["--no-disk"])
            let serve = try FakeServe()
            let folder = try FakeFolder()
            let insertion = try FakeMigration(folder["ram.sock"])
            let monitor = try FakeMonitor(inFrontOf: guest.qmp, insertion.story())
            let ending = try FakeTool.run(
                ["attach", "--qmp", monitor.path, "--pid", "\(guest.pid)", "--to", serve.address, "--guest", "vm"],
                limit: 60)
            #expect(ending.code == 1 || ending.code == 2, "\(ending)")
            #expect(ending.sentences.count == 1, "\(ending)")
            let sentence = ending.sentences.first ?? ""
            #expect(sentence.contains("COLO") && sentence.contains("10.0"), "\(ending)")
            #expect(insertion.continued, "the guest was not sent 'cont'")
            try guest.expectUntouched()
        }

        @Test("a guest without a writable disk is protected: RAM and device state only")
        func withoutDisk() throws {
            BadGuest.stopShared()
            let guest = try BadGuest(["--no-disk", "--mode", "mem"])
            let serve = try FakeServe()
            let attach = try attach(guest, to: serve.address)
            #expect(attach.error.contains("no writable disk"))
            try expectProgress(serve)
            let status = try #require(try serve.status("vm"))
            #expect((status["disks"] as? [Any])?.isEmpty == true)
            try detach(attach, guest)
            let failover = try FakeTool.run(["failover", "vm", "--store", serve.store.path, "--json"], limit: 60)
            try #require(failover.code == 0, "\(failover)")
            let restored = try BadRestoredGuest(report: failover.out)
            #expect(kill(restored.pid, 0) == 0)
            restored.kill()
        }
    }
}
