import Foundation
import Glibc
import Testing

extension RealGuests {
    /// The primary is lost: the secondary notices within a second, tells somebody, and starts the guest by itself only
    /// behind a fence command that said yes.
    @Suite struct LossTests {
        /// Promised from a death to the command that tells of it, and some for a busy machine's shell.
        private static let bound = 1.5

        /// A command that writes down what it is told, and when.
        private func note(_ file: String) -> String {
            "echo \"$COLO_BLK_EVENT $COLO_BLK_GUEST $COLO_BLK_EPOCH $COLO_BLK_GENERATION $COLO_BLK_REASON "
                + "$(date +%s.%N)\" >> \(file)"
        }

        private func notes(_ file: String) -> [[String]] {
            let text = (try? String(contentsOfFile: file, encoding: .utf8)) ?? ""
            return text.split(separator: "\n").map { $0.split(separator: " ").map(String.init) }
        }

        /// Waits for the line of a loss; returns the seconds from `begin`, wall clock.
        private func waitForNote(
            _ file: String, _ count: Int, since begin: Double
        ) throws -> (words: [String], Double) {
            try waitUntil("\(file) has \(count) lines", within: 10, every: 5) { self.notes(file).count >= count }
            let words = notes(file)[count - 1]
            return (words, (Double(words.last ?? "") ?? 0) - begin)
        }

        private func now() -> Double { Date().timeIntervalSince1970 }

        private func epoch(_ words: [String]) -> Int { words.count > 2 ? Int(words[2]) ?? -1 : -1 }

        @Test("who leaves in order is not lost; who falls silent, or dies, is, within a second, and once")
        func noticed() throws {
            try Scene.run("loss") { scene in
                let file = "\(scene.directory)/losses"
                let guest = try scene.launch(.init(workload: .all))
                let secondary = try scene.secondary()
                secondary.options = ["--on-loss", note(file)]
                try secondary.start()
                let name = scene.guestName("g")
                try guest.waitUntilBusy()
                let first = try scene.attach(guest, to: secondary, name: name)
                try first.waitUntilProtected()
                try secondary.waitForCheckpoints(2, of: name)
                try first.detach()
                pause(milliseconds: 1200)
                #expect(notes(file).isEmpty, "a detached primary was taken for lost: \(notes(file))")
                #expect(try secondary.status(name)["state"].string == "idle")

                // Silence: nothing ends, nothing is said.
                let second = try scene.attach(guest, to: secondary, name: name)
                try second.waitUntilProtected()
                try secondary.waitForCheckpoints(2, of: name)
                let agent = try second.agent()
                let committed = try secondary.committedEpoch(name)
                second.guardian.signal(SIGSTOP)
                let begin = now()
                Glibc.kill(agent, SIGSTOP)
                let (words, seconds) = try waitForNote(file, 1, since: begin)
                scene.say("silence is told after \(Figure.text(seconds * 1000, 0)) ms: \(words)")
                #expect(words.prefix(2) == ["loss", name] && words[3] == "1" && words[4] == "silent", "\(words)")
                #expect(epoch(words) >= committed)
                #expect(seconds <= Self.bound && seconds >= 0.5, "\(seconds) s")
                let status = try secondary.status(name)
                #expect(status["state"].string == "primary lost", "\(status)")
                #expect(status["message"].string?.contains("colo-blk failover \(name)") == true, "\(status)")

                // And then everything dies: the same loss. Nothing was started here.
                Glibc.kill(agent, SIGKILL)
                try second.guardian.kill()
                try guest.kill()
                pause(milliseconds: 1200)
                #expect(notes(file).count == 1, "\(notes(file))")
                #expect(try secondary.status(name)["state"].string == "primary lost")
                #expect(try secondary.status(name)["generation"].int == 1)

                // By hand, with a fence command: what says no changes nothing, what says yes starts it.
                let refused = try secondary.run("failover", name, ["--fence-command", "exit 9"])
                #expect(refused.code == 1)
                #expect(refused.error.contains("exited with 9") && refused.error.contains("not started"))
                #expect(try secondary.status(name)["generation"].int == 1)
                guest.serial.read()
                let last = try #require(guest.serial.lastTick)
                let (restored, report) = try scene.failover(
                    secondary, name, of: guest, options: ["--fence-command", note("\(scene.directory)/fences")])
                #expect(notes("\(scene.directory)/fences").first?.prefix(2) == ["fence", name])
                let check = try SelfCheck.follow(restored, after: last, report: report)
                scene.say("after the failover: \(check)")
                #expect(try secondary.status(name)["state"].string == "failed over")
            }
        }

        @Test("a primary that dies is failed over by itself behind a fence command that succeeds, and not else")
        func byItself() throws {
            try Scene.run("auto-failover") { scene in
                let losses = "\(scene.directory)/losses", fences = "\(scene.directory)/fences"
                let allow = "\(scene.directory)/allow"
                let secondary = try scene.secondary()
                secondary.options = [
                    "--on-loss", note(losses), "--auto-failover", "--fence-command",
                    "\(note(fences)); test -e \(allow)",
                ]
                try secondary.start()
                for round in 1...2 {
                    let name = scene.guestName("g\(round)")
                    let guest = try scene.launch(.init(workload: .idle))
                    try guest.waitUntilBusy()
                    let attach = try scene.attach(guest, to: secondary, name: name)
                    try attach.waitUntilProtected()
                    try secondary.waitForCheckpoints(2, of: name)
                    if round == 2 { try "yes".write(toFile: allow, atomically: true, encoding: .utf8) }
                    let agent = try attach.agent()
                    let begin = now()
                    if round == 1 {
                        // The host as a whole.
                        attach.guardian.signal(SIGKILL)
                        Glibc.kill(agent, SIGKILL)
                    }
                    // Or QEMU alone, which is no power-off.
                    try guest.kill()
                    let (words, seconds) = try waitForNote(losses, round, since: begin)
                    scene.say("round \(round): told after \(Figure.text(seconds * 1000, 0)) ms: \(words)")
                    #expect(words[1] == name && words[4] == (round == 1 ? "disconnected" : "guest-died"), "\(words)")
                    #expect(seconds <= Self.bound)
                    if round == 1 {
                        _ = try waitForNote(fences, 1, since: begin)
                        pause(milliseconds: 500)
                        let status = try secondary.status(name)
                        #expect(status["state"].string == "primary lost" && status["generation"].int == 1, "\(status)")
                        #expect(secondary.log.contains("not started by itself"), "\(secondary.log.suffix(2000))")
                    } else {
                        try expectRunning(secondary, name, since: begin, scene)
                        try attach.waitForExit(3)
                    }
                }
                #expect(notes(fences).count == 2)
            }
        }

        private func expectRunning(_ secondary: Secondary, _ name: String, since begin: Double, _ scene: Scene) throws {
            var status = JSON(nil)
            try waitUntil("the guest runs by itself", within: 20, every: 20, seen: { "\(status)" }) {
                status = try secondary.status(name)
                return status["state"].string == "failed over" && status["qmpSocket"].string != nil
            }
            scene.say("it runs here \(Figure.text((now() - begin) * 1000, 0)) ms after the death")
            #expect(status["generation"].int == 2)
            let monitor = try Monitor(path: try #require(status["qmpSocket"].string))
            #expect(try monitor.execute("query-status")["running"].bool == true)
            _ = try? monitor.execute("quit")
        }

        /// How a guest or its QEMU is ended on purpose, and what is said of it. QEMU runs with -no-reboot.
        private static let endings = [
            ("quit", "was told to quit"), ("signal", "was ended by a signal"),
            ("reset", "was reset from outside, and its QEMU ends"), ("panic", "kernel has panicked"),
        ]

        @Test("a guest that is ended on purpose is not lost", arguments: endings.prefix(Settings.isFull ? 4 : 1))
        func ended(_ how: String, _ words: String) throws {
            try Scene.run("end-\(how)") { scene in
                let losses = "\(scene.directory)/losses", fences = "\(scene.directory)/fences"
                let secondary = try scene.secondary()
                secondary.options = [
                    "--on-loss", note(losses), "--auto-failover", "--fence-command", note(fences),
                ]
                try secondary.start()
                let name = scene.guestName("g")
                let guest = try scene.launch(.init(workload: .idle, arguments: ["-device", "pvpanic"]))
                try guest.waitUntilBusy()
                let attach = try scene.attach(guest, to: secondary, name: name)
                try attach.waitUntilProtected()
                try secondary.waitForCheckpoints(2, of: name)
                let monitor = try guest.watch()
                switch how {
                case "signal": Glibc.kill(guest.pid, SIGTERM)
                case "reset": _ = try? monitor.execute("system_reset")
                case "panic": _ = try? monitor.execute("human-monitor-command", ["command-line": "o/b 0x505 1"])
                default: _ = try? monitor.execute("quit")
                }
                try attach.waitForExit(3)
                pause(milliseconds: 1500)
                #expect(notes(losses).isEmpty && notes(fences).isEmpty, "\(notes(losses)) \(notes(fences))")
                let status = try secondary.status(name)
                #expect(status["state"].string == "shut off" && status["generation"].int == 1, "\(status)")
                #expect(status["message"].string?.contains(words) == true, "\(status)")
                let last = attach.log.split(separator: "\n").last ?? ""
                #expect(last.contains(words) && last.contains("Protection has ended"), "\(attach.log)")
            }
        }
    }
}

extension BadInput.Options {
    @Test("a guest is started by itself only with a fence command")
    func autoFailover() throws {
        let folder = try FakeFolder()
        let serve = ["serve", "--store", folder["store"], "--listen", "unix:\(folder["link"])"]
        for options in [["--auto-failover"], ["--fence-command", "true"]] {
            let ending = try FakeTool.run(serve + options)
            #expect(ending.code == 64, "\(ending)")
            #expect(ending.error.contains("--fence-command"), "\(ending)")
        }
        #expect(!FileManager.default.fileExists(atPath: folder["store"]))
    }
}
