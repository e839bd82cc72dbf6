import Foundation
import Glibc
import Testing

extension RealGuests {
    /// Output commit, as the world outside sees it: over tap devices of a namespace that the test makes.
    @Suite(.enabled(if: Network.problem == nil, Comment(rawValue: Network.problem ?? "")))
    struct OutputCommitTests {
        /// A guest that two cards and a connection tie to the world is killed, and comes back from its last checkpoint.
        /// Nothing that the world ever received may be unknown to it, and the connection must go on.
        @Test func nothingThatTheWorldSawIsUnknownToTheRecoveredGuest() throws {
            try Scene.run("output-commit") { scene in
                let (watch, words) = try killAndObserve(scene, ["--hold-network", "all"], until: "network: HELD")
                for sender in Set(watch.datagrams.map(\.sender)).sorted() {
                    #expect(watch.disorder(from: sender) == [], "numbers of \(sender) that came twice or out of order")
                }
                #expect(words.hasPrefix("STREAMOK"), "\(words)")
            }
        }

        /// The same without held packets, to see that the world would notice.
        @Test(.enabled(if: Settings.isFull, "COLO_BLK_FULL is not 1"))
        func withoutHeldPacketsTheWorldSeesNumbersTwice() throws {
            try Scene.run("no-output-commit") { scene in
                let (watch, _) = try killAndObserve(scene, ["--interval", "500ms"], until: "protected:")
                #expect(watch.disorder(from: "10.0.2.15") != [])
            }
        }

        /// Kills a protected guest and fails over. Returns what the world saw, and how its connection ended.
        private func killAndObserve(
            _ scene: Scene, _ options: [String], until words: String
        ) throws -> (Watch, String) {
            let network = try scene.network(cards: 2)
            let guest = try scene.launch(.init(workload: .mem, network: network))
            let secondary = try scene.startedSecondary(network: network)
            let watch = try network.watch()
            try guest.waitUntilBusy()
            try watch.waitForMore(within: 10)
            let name = scene.guestName("g")
            let attach = try scene.attach(guest, to: secondary, name: name, options: options)
            try attach.waitFor(words)
            let stream = try network.stream(bytesPerSecond: 200_000)
            pause(milliseconds: scene.randomMilliseconds(1500...2500))
            if options.contains("--hold-network") {
                let status = try secondary.status(name)["network"]
                #expect(status["isHeld"].bool == true && (status["maxMilliseconds"].double ?? 0) > 0, "\(status)")
            }
            watch.read()
            let senders = Set(watch.datagrams.map(\.sender))
            #expect(senders == ["10.0.2.15", "10.0.3.15"])
            try guest.kill()
            let decided = monotonicSeconds()
            try attach.waitForExit(3)
            let last = try lastTick(guest)
            let (restored, report) = try scene.failover(secondary, name, of: guest)
            let back = try watch.waitForMore(within: 15)
            if options.contains("--hold-network") { try stream.waitForProgress(within: 30) }
            let resumed = monotonicSeconds() - decided
            _ = try SelfCheck.follow(restored, after: last, report: report, seconds: 1)
            // Without held packets the connection cannot always go on.
            let ending = (try? stream.finish()) ?? tail(of: stream.process.outputPath, bytes: 100)
            watch.read()
            scene.say(
                "\(watch.datagrams.count) datagrams; first one again after \(Figure.text(back, 2)) s, the connection "
                    + "\(Figure.text(resumed, 2)) s after the kill; \(ending)")
            return (watch, ending)
        }

        /// What the loss of the secondary, a signal and the death of the agent do to a held network.
        @Test func aLostSecondaryOpensOrClosesTheNetworkAsThePolicySays() throws {
            try Scene.run("network-policy") { scene in
                let network = try scene.network()
                let guest = try scene.launch(.init(hasDisk: false, network: network))
                let secondary = try scene.startedSecondary(network: network)
                let watch = try network.watch()
                try guest.waitUntilBusy()
                let stage = Stage(
                    scene: scene, guest: guest, secondary: secondary, watch: watch, name: scene.guestName("g"),
                    before: try guest.footprint())
                try stage.lossUnderContinue()
                try stage.lossUnderHold()
                try stage.agentDeathUnderHold()
                #expect(watch.disorder(from: Network.guestAddress) == [])
                try guest.checkAlive()
            }
        }

        /// The guest is started on the secondary while it still runs here, unfenced. Under `hold` the world hears one of
        /// the two only.
        @Test func aGuestThatWasReplacedIsNotHeardAnyMore() throws {
            try Scene.run("replaced") { scene in
                let network = try scene.network()
                network.isUserMode = true
                let guest = try scene.launch(.init(hasDisk: false, network: network))
                let secondary = try scene.startedSecondary(network: network)
                let watch = try network.watch()
                try guest.waitUntilBusy()
                let before = try guest.footprint()
                let name = scene.guestName("g")
                let attach = try scene.attach(
                    guest, to: secondary, name: name,
                    options: ["--hold-network", "all", "--on-secondary-loss", "hold"])
                try attach.waitFor("network: HELD")
                let (restored, _) = try scene.failover(secondary, name, of: guest, options: ["--force"])
                try attach.waitForExit(2)
                #expect(attach.log.contains("stays CLOSED: fence this guest"))
                try watch.waitForMore(200, within: 20)
                #expect(watch.disorder(from: "127.0.0.1") == [])
                #expect(try guest.runsUnprotected())
                try restored.kill()
                watch.read()
                pause(milliseconds: 500)
                #expect(watch.read().isEmpty, "the guest that was replaced is silent")
                let recovered = try Verbs(directory: scene.directory).run([
                    "detach", "--recover", "--qmp", guest.qmpPath,
                ])
                #expect(recovered.code == 0 && recovered.output.contains("colo-blk-gate-0"), "\(recovered)")
                try guest.waitUntilUntouched(before)
                try watch.waitForMore(within: 5)
            }
        }

        private func lastTick(_ guest: Guest) throws -> SerialLog.Tick {
            guest.serial.read()
            return try #require(guest.serial.lastTick)
        }
    }
}

/// A guest that counts aloud on the network, and whoever listens.
private struct Stage {
    let scene: Scene
    let guest: Guest
    let secondary: Secondary
    let watch: Watch
    let name: String
    let before: Footprint

    private func attach(_ policy: String) throws -> AttachProcess {
        let options = ["--hold-network", "n0", "--on-secondary-loss", policy]
        let attach = try scene.attach(guest, to: secondary, name: name, options: options)
        try attach.waitFor("network: HELD")
        return attach
    }

    /// Expects datagrams within the bound.
    private func expectOpen(_ what: String) throws {
        let seconds = try watch.waitForMore(within: 10)
        scene.say("\(what): heard outside after \(Figure.text(seconds * 1000, 0)) ms")
        #expect(seconds <= RealGuests.bound, "\(what)")
    }

    func lossUnderContinue() throws {
        let attach = try attach("continue")
        try secondary.kill()
        try expectOpen("secondary killed, continue")
        try attach.waitFor("network: OPEN and UNPROTECTED")
        try secondary.start()
        try attach.waitFor("network: HELD", times: 2)
        try expectOpen("secondary back, continue")
        try attach.detach()
        try guest.waitUntilUntouched(before)
    }

    func lossUnderHold() throws {
        let attach = try attach("hold")
        try secondary.kill()
        try attach.waitFor("network: CLOSED until")
        try expectClosed()
        try secondary.start()
        try attach.waitFor("network: HELD", times: 2)
        try expectOpen("secondary back, hold")
        // Once more, and this time somebody gives up waiting.
        try secondary.kill()
        try attach.waitFor("network: CLOSED until", times: 2)
        try expectClosed()
        attach.guardian.signal(SIGTERM)
        try expectOpen("attach ended during an outage, hold")
        try attach.waitForExit(0)
        try guest.waitUntilUntouched(before)
    }

    /// What was on its way has arrived; then there is silence, while the guest runs.
    private func expectClosed() throws {
        pause(milliseconds: 100)
        watch.read()
        let tick = {
            guest.serial.read(); return guest.serial.lastTick?.number ?? 0
        }
        let first = tick()
        pause(milliseconds: 1200)
        #expect(watch.read().isEmpty, "the network is closed")
        #expect(tick() > first, "the guest runs")
        #expect(try guest.runsUnprotected())
        let filters = try guest.footprint().differences(from: before).filter { $0.hasPrefix("object") }
        #expect(filters.count == 1, "\(filters)")
    }

    func agentDeathUnderHold() throws {
        try secondary.start()
        for (signal, what) in [(SIGKILL, "killed"), (SIGSTOP, "stopped")] {
            let attach = try attach("hold")
            let agent = try attach.agent()
            watch.read()
            _ = Glibc.kill(agent, signal)
            // What was on its way already does not count.
            pause(milliseconds: 20)
            try expectOpen("agent \(what), hold")
            try attach.waitForExit(2)
            try guest.waitUntilUntouched(before, within: 2)
        }
    }
}
