import Foundation
import Glibc
import Testing

extension RealGuests {
    /// Whatever kills or stops our processes on the primary, in whatever phase: the guest runs within a second, nothing
    /// of ours stays in it, and it can be protected again.
    @Suite struct AgentDeathTests {
        /// The bound from the fault until the guest runs unprotected.
        static let bound = 1.0

        @Test func theAgentDiesDuringTheInitialCopyOfTheDisk() throws {
            try withGuest("agent-disk-copy", .all) { stage in
                let attach = try stage.attach(["--budget", "16"])
                try waitUntil("a mirror job runs", within: 30, every: 5, seen: { attach.log }) {
                    guard attach.guardian.isRunning else { throw TestFailure("attach ended: \(attach.log)") }
                    let jobs = try stage.guest.watch().execute("query-block-jobs").array
                    return jobs.contains { ($0["offset"].int ?? 0) > 0 && $0["ready"].bool == false }
                }
                try stage.expectRestored(attach, "killed in the initial copy of the disk") { Glibc.kill($0, SIGKILL) }
                try stage.attachAgain()
            }
        }

        @Test func theAgentDiesDuringTheInitialCopyOfRam() throws {
            try withGuest("agent-ram-copy", .mem) { stage in
                let attach = try stage.attach(["--budget", "16"])
                try waitUntil("RAM is being copied", within: 60, every: 5, seen: { attach.log }) {
                    guard attach.guardian.isRunning else { throw TestFailure("attach ended: \(attach.log)") }
                    let migration = try stage.guest.watch().execute("query-migrate")
                    return migration["status"].string == "active"
                        && (migration["ram"]["transferred"].int ?? 0) > 1 << 20
                }
                try stage.expectRestored(attach, "killed in the initial copy of RAM") { Glibc.kill($0, SIGKILL) }
                try stage.attachAgain()
            }
        }

        @Test func theAgentDiesBetweenCheckpoints() throws {
            try withGuest("agent-between", .all) { stage in
                let attach = try stage.attach(["--interval", "2s"])
                try attach.waitUntilProtected()
                try stage.secondary.waitForCheckpoints(1, of: stage.name)
                pause(milliseconds: stage.scene.randomMilliseconds(200...1200))
                try stage.expectRestored(attach, "killed between two checkpoints") { Glibc.kill($0, SIGKILL) }
                try stage.attachAgain()
            }
        }

        @Test func theAgentDiesAtRandomMomentsOfFastCheckpoints() throws {
            try withGuest("agent-random", .mem) { stage in
                var stopped = 0
                for round in 1...Settings.agentDeaths {
                    let interval = stage.scene.randomMilliseconds(20...50)
                    let attach = try stage.attach(["--interval", "\(interval)ms"])
                    try attach.waitUntilProtected()
                    pause(milliseconds: stage.scene.randomMilliseconds(50...900))
                    // Every other time it is caught while the guest stands still inside a checkpoint.
                    let inside = round % 2 == 0
                    try stage.expectRestored(attach, inside ? "killed inside a checkpoint" : "killed at random") {
                        agent in
                        if inside { try stage.freeze(agent, whileGuestIsStopped: true) }
                        _ = Glibc.kill(agent, SIGKILL)
                    }
                    stopped += inside ? 1 : 0
                }
                try stage.attachAgain()
                stage.scene.say(
                    "\(Settings.agentDeaths) deaths, \(stopped) of them with the guest stopped inside a checkpoint")
            }
        }

        @Test(arguments: [false, true])
        func theAgentHangs(whileGuestIsStopped: Bool) throws {
            try withGuest("agent-hangs-\(whileGuestIsStopped ? "inside" : "outside")", .mem) { stage in
                let attach = try stage.attach(["--interval", "30ms"])
                try attach.waitUntilProtected()
                pause(milliseconds: stage.scene.randomMilliseconds(50...500))
                try stage.expectRestored(attach, "stopped (SIGSTOP)") { agent in
                    try stage.freeze(agent, whileGuestIsStopped: whileGuestIsStopped)
                }
                try stage.attachAgain()
            }
        }

        @Test func theGuardianDies() throws {
            try withGuest("guardian-dies", .all) { stage in
                for moment in ["at random", "inside a checkpoint", "while its agent is stopped"] {
                    let attach = try stage.attach(["--interval", "30ms"])
                    try attach.waitUntilProtected()
                    let agent = try attach.agent()
                    pause(milliseconds: stage.scene.randomMilliseconds(50...500))
                    if moment != "at random" { try stage.freeze(agent, whileGuestIsStopped: true) }
                    let start = monotonicSeconds()
                    attach.guardian.signal(SIGKILL)
                    // The kernel itself continues an orphan that is stopped, and hangs up on it (SIGHUP).
                    if moment == "inside a checkpoint" { _ = Glibc.kill(agent, SIGCONT) }
                    try stage.expectRunning(since: start, "the guardian killed \(moment)")
                    try stage.guest.waitUntilUntouched(stage.before)
                    #expect(try attach.guardian.waitForExit(within: 5) == -SIGKILL)
                    try waitUntil("the agent ends after its guardian", within: 5) { !ProcessTable.isAlive(agent) }
                }
                try stage.attachAgain()
            }
        }

        @Test func anAttachCleansUpAfterOneThatDiedAltogether() throws {
            try withGuest("both-die", .all) { stage in
                for inside in [false, true] {
                    let attach = try stage.attach(["--interval", "30ms"])
                    try attach.waitUntilProtected()
                    let agent = try attach.agent()
                    // Frozen, the agent cannot restore the guest when it loses its guardian.
                    try stage.freeze(agent, whileGuestIsStopped: inside)
                    attach.guardian.signal(SIGKILL)
                    _ = Glibc.kill(agent, SIGKILL)
                    _ = try attach.guardian.waitForExit(within: 5)
                    try waitUntil("the agent is gone", within: 5) { !ProcessTable.isAlive(agent) }
                    // Nobody is left to help; the next attach does.
                    let running = try guestRuns(stage)
                    #expect(running != inside, "the guest \(running ? "runs" : "stands still")")
                    try stage.attachAgain()
                }
            }
        }

        private func guestRuns(_ stage: Stage) throws -> Bool {
            try stage.guest.watch().execute("query-status")["running"].bool ?? false
        }

        // MARK: Stage

        private func withGuest(_ name: String, _ workload: Guest.Workload, _ body: (Stage) throws -> Void) throws {
            try Scene.run(name) { scene in
                let guest = try scene.launch(.init(workload: workload))
                let secondary = try scene.startedSecondary()
                try guest.waitUntilBusy()
                try body(
                    Stage(
                        scene: scene, guest: guest, secondary: secondary, name: scene.guestName("g"),
                        before: try guest.footprint()))
                try guest.checkAlive()
            }
        }
    }
}

/// A running guest, a secondary, and what the guest looked like before anybody attached.
private struct Stage {
    let scene: Scene
    let guest: Guest
    let secondary: Secondary
    let name: String
    let before: Footprint

    func attach(_ options: [String] = []) throws -> AttachProcess {
        try scene.attach(guest, to: secondary, name: name, options: options)
    }

    /// Does the agent harm, and expects that the guest runs in time, that attach says so, and that nothing is left.
    func expectRestored(_ attach: AttachProcess, _ what: String, harm: (pid_t) throws -> Void) throws {
        let agent = try attach.agent()
        try harm(agent)
        let start = monotonicSeconds()
        try expectRunning(since: start, what)
        try attach.waitForExit(2)
        try guest.waitUntilUntouched(before, within: 2)
        #expect(!ProcessTable.isAlive(agent), "the agent is gone")
    }

    func expectRunning(since start: Double, _ what: String) throws {
        try waitUntil("the guest runs unprotected", within: 10, every: 2) { try guest.runsUnprotected() }
        let seconds = monotonicSeconds() - start
        scene.say("\(what): running after \(Figure.text(seconds * 1000, 0)) ms")
        #expect(seconds <= RealGuests.AgentDeathTests.bound, "\(what)")
    }

    /// Stops the agent (SIGSTOP) at a moment when the guest stands still inside a checkpoint, or when it runs.
    func freeze(_ agent: pid_t, whileGuestIsStopped wanted: Bool) throws {
        try waitUntil("the agent is caught while the guest \(wanted ? "stands still" : "runs")", within: 20, every: 3) {
            _ = Glibc.kill(agent, SIGSTOP)
            // What is on its way in QEMU comes to rest.
            pause(milliseconds: 15)
            // QEMU that waits for the agent's answer to a flush does not answer either: its guest is being stopped.
            let status = try? guest.watch().execute("query-status", within: 0.15)
            let running = status?["running"].bool ?? false
            if running != wanted { return true }
            _ = Glibc.kill(agent, SIGCONT)
            // It must beat, or its guardian gives it up. Never the same time, or we keep step with the checkpoints.
            pause(milliseconds: scene.randomMilliseconds(40...110))
            return false
        }
    }

    /// A new attachment protects the guest, and leaves it clean.
    func attachAgain() throws {
        let attach = try attach()
        try attach.waitUntilProtected()
        try secondary.waitForCheckpoints(3, of: name)
        try attach.detach()
        try guest.waitUntilUntouched(before)
        guest.serial.read()
        #expect(guest.serial.faults.isEmpty)
    }
}
