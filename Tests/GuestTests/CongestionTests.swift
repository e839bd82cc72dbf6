import Foundation
import Glibc
import Testing

extension RealGuests {
    /// A link or a secondary that cannot keep up: the guest does not wait for it, memory stays bounded, and the
    /// protection goes on, or comes back by itself.
    @Suite struct CongestionTests {
        /// Changes more in a second than the slow links here carry: random pages, which do not compress, of 16 MiB.
        private static let heavy = "colo.ram_mib=16 colo.rate=100 colo.fullpages=2500 colo.disk_rate=50"
        private static let slow = 4 << 20
        /// MiB, of an agent that keeps no shadow of the guest's memory: its budget for the link, as much again for
        /// pages on their way to the encoder, and what a process takes.
        private static let budget = 32
        private static let memoryMax = 2 * budget + 64

        /// What the secondary needs the guest may not wait for, and beyond the bound of the outage nothing is excused.
        private func expectNoStall(_ watch: TickWatch, _ guest: Guest, _ what: String, _ scene: Scene) throws {
            let outage = watch.takeLongest()
            let monitor = try guest.watch()
            try monitor.drain()
            let pause = monitor.longestPause(from: 0)
            scene.say(
                "\(what): the guest stood still for \(Figure.text(outage * 1000, 0)) ms at most; the longest pause by QEMU's "
                    + "events so far \(Figure.text(pause * 1000, 0)) ms")
            #expect(outage <= RealGuests.bound, "\(what)")
        }

        private func residentMebibytes(_ pid: pid_t) -> Int {
            let text = (try? String(contentsOfFile: "/proc/\(pid)/status", encoding: .utf8)) ?? ""
            let line = text.split(separator: "\n").first { $0.hasPrefix("VmRSS:") }
            return (line?.split(separator: " ").dropFirst().first.flatMap { Int($0) } ?? 0) >> 10
        }

        @Test func aSecondaryThatIsStoppedForSecondsIsWaitedFor() throws {
            try Scene.run("stopped-secondary") { scene in
                let guest = try scene.launch(.init(workload: .all))
                let secondary = try scene.startedSecondary()
                let name = scene.guestName("g")
                try guest.waitUntilBusy()
                let before = try guest.footprint()
                let attach = try scene.attach(guest, to: secondary, name: name, options: ["--interval", "50ms"])
                try attach.waitUntilProtected()
                try secondary.waitForCheckpoints(3, of: name)
                let watch = TickWatch(guest)
                defer { watch.stop() }
                let daemon = try #require(secondary.daemon)
                let start = monotonicSeconds()
                daemon.signal(SIGSTOP)
                defer { daemon.signal(SIGCONT) }
                try waitUntil("the guest runs unprotected", within: 10, every: 5) { try guest.runsUnprotected() }
                try attach.waitFor("degraded: the secondary is lost", within: 10)
                let seconds = monotonicSeconds() - start
                scene.say("the loss is noticed and the guest unprotected after \(Figure.text(seconds, 1)) s")
                try guest.waitUntilUntouched(before, within: 2)
                pause(milliseconds: max(0, Int((start + 5 - monotonicSeconds()) * 1000)))
                daemon.signal(SIGCONT)
                let back = try attach.waitFor("protected:", times: 2, within: 60)
                scene.say("protected again \(Figure.text(back, 1)) s after the secondary went on")
                try expectNoStall(watch, guest, "a secondary stopped for 5 s", scene)
                try secondary.waitForCheckpoints(3, of: name)
                #expect(try secondary.status(name)["state"].string == "protected")
                #expect(secondary.log.contains("a primary has connected"))
                try attach.detach()
                try guest.waitUntilUntouched(before)
                try guest.checkAlive()
            }
        }

        @Test func aLinkThatIsTooSlowMakesEpochsLongAndNothingElse() throws {
            try Scene.run("slow-link") { scene in
                let guest = try scene.launch(.init(workload: .all, append: Self.heavy))
                let secondary = try scene.startedSecondary()
                let name = scene.guestName("g")
                try guest.waitUntilBusy()
                let watch = TickWatch(guest)
                defer { watch.stop() }
                let cable = try SlowCable(to: secondary.address, bytesPerSecond: 64 << 20)
                try follow(
                    "--bandwidth 12M", ["--bandwidth", "12M"], secondary.address, guest, secondary, name, watch, scene)
                try follow("a link that becomes slow", [], cable.address, guest, secondary, name, watch, scene) {
                    cable.setRate(bytesPerSecond: Self.slow)
                }
                try overflow(cable, guest, secondary, name, watch, scene)
                try guest.checkAlive()
            }
        }

        /// A link that carries next to nothing, until more waits than may: protection is interrupted, and comes back when
        /// the link does.
        private func overflow(
            _ cable: SlowCable, _ guest: Guest, _ secondary: Secondary, _ name: String, _ watch: TickWatch,
            _ scene: Scene
        ) throws {
            cable.setRate(bytesPerSecond: 64 << 20)
            let before = try guest.footprint()
            _ = watch.takeLongest()
            let attach = try scene.attach(
                guest, to: .secondary(cable.address), name: name, options: ["--budget", "16", "--no-delta"])
            try attach.waitUntilProtected()
            cable.setRate(bytesPerSecond: 128 << 10)
            try attach.waitFor("degraded: the secondary is", within: 60)
            #expect(attach.log.contains("MiB behind, more than the budget of 16 MiB"))
            try guest.waitUntilUntouched(before, within: 2)
            cable.setRate(bytesPerSecond: 64 << 20)
            let back = try attach.waitFor("protected:", times: 2, within: 60)
            scene.say("more than the budget waited; protected again \(Figure.text(back, 1)) s after the link was back")
            try expectNoStall(watch, guest, "a link that carries next to nothing", scene)
            try attach.detach()
        }

        /// Protects the guest, and watches memory, checkpoints and ticks for some checkpoints.
        private func follow(
            _ what: String, _ options: [String], _ address: String, _ guest: Guest, _ secondary: Secondary,
            _ name: String,
            _ watch: TickWatch, _ scene: Scene, whenProtected: () -> Void = {}
        ) throws {
            _ = watch.takeLongest()
            let attach = try scene.attach(
                guest, to: .secondary(address), name: name,
                options: ["--budget", "\(Self.budget)", "--no-delta", "--on-secondary-loss", "detach"] + options)
            let agent = try attach.agent()
            var resident = 0
            func look() throws {
                resident = max(resident, residentMebibytes(agent))
                guard attach.guardian.isRunning else { throw TestFailure("attach ended: \(attach.log)") }
            }
            let protected = try waitUntil("protected over \(what)", within: 120, every: 20, seen: { attach.log }) {
                try look()
                return attach.log.contains("protected:")
            }
            whenProtected()
            let first = try secondary.committedEpoch(name)
            let begin = monotonicSeconds()
            var last = first
            var waiting = 0
            try waitUntil("checkpoints over \(what)", within: 60, every: 100, seen: { attach.log }) {
                try look()
                let status = try secondary.status(name)
                last = status["committedEpoch"].int ?? 0
                waiting = max(waiting, status["lagBytes"].int ?? 0)
                return last >= first + 3
            }
            let each = (monotonicSeconds() - begin) / Double(last - first)
            scene.say(
                "\(what): protected after \(Figure.text(protected, 1)) s, a checkpoint each \(Figure.text(each, 1)) s, "
                    + "\(waiting >> 10) KiB waited, agent \(resident) MiB at most")
            #expect(resident <= Self.memoryMax, "\(what)")
            #expect(waiting > 0, "status tells what waits")
            try expectNoStall(watch, guest, what, scene)
            try attach.detach()
            // Not lost: a farewell is not behind what waits.
            var state: String?
            try waitUntil("the secondary knows that it was left", within: 5, every: 50, seen: { "\(state ?? "-")" }) {
                state = try secondary.status(name)["state"].string
                return state == "idle"
            }
        }
    }
}
