import Foundation
import Glibc
import Testing

extension RealGuests {
    /// The bound from a fault until the guest runs, unprotected if need be.
    static let bound = 1.0

    /// Whatever kills, stops or hangs our processes on the primary, or QEMU under them, in whatever phase: the guest
    /// runs within a second, nothing of ours stays in it, and it can be protected again. One guest lives through all
    /// of it; that it can be protected again is what the next row begins with. docs/guest-safety.md has the same
    /// table.
    @Suite struct GuardianMatrixTests {
        /// What happens. The order is the order of the run.
        enum Row: String, CaseIterable {
            case diskCopy = "agent killed in the initial copy of the disk"
            case ramCopy = "agent killed in the initial copy of RAM"
            case between = "agent killed between two checkpoints"
            case requested = "agent killed between QEMU's request and the reply"
            case inPause = "agent killed while the guest stands still in a checkpoint"
            case atRandom = "agent killed at random in fast checkpoints"
            case stopped = "agent stopped (SIGSTOP), guest running"
            case stoppedInPause = "agent stopped (SIGSTOP), guest standing still"
            case outOfMemory = "agent gets no more memory in the initial copy"
            case unkillable = "agent hangs and keeps its sockets when killed, guest I/O in flight"
            case guardian = "guardian killed"
            case guardianInPause = "guardian killed while the guest stands still"
            case guardianOfStopped = "guardian killed while its agent is stopped"
            case both = "both killed; detach --recover"
            case bothInPause = "both killed while the guest stands still; detach --recover"
            case bothThenAttach = "both killed while the guest stands still; the next attach"
            case qemuStopped = "QEMU stopped for 1.5 s"
            case events = "QMP flooded with events"

            var options: [String] {
                switch self {
                case .diskCopy, .ramCopy, .outOfMemory: ["--budget", "16"]
                case .between: ["--interval", "2s"]
                case .requested: ["--interval", "10s"]
                case .unkillable, .qemuStopped, .events: []
                default: ["--interval", "30ms"]
                }
            }

            /// Times that the row is run.
            var rounds: Int { self == .atRandom || self == .inPause ? max(1, Settings.agentDeaths / 2) : 1 }
        }

        @Test func theGuestRunsOnAndCanBeProtectedAgain() throws {
            try Scene.run("matrix") { scene in
                var stage: MatrixStage?
                for row in Row.allCases where Settings.matrixRows.map({ row.rawValue.contains($0) }) ?? true {
                    for _ in 1...row.rounds {
                        do {
                            let ready = try stage ?? MatrixStage(scene)
                            stage = ready
                            try ready.play(row)
                        } catch {
                            Issue.record("\(row.rawValue): \(error)\n\(stage?.lastWords ?? "")")
                            // What it left may spoil the other rows: they get a guest of their own.
                            stage?.abandon()
                            stage = nil
                        }
                    }
                }
                try stage?.finish()
            }
        }
    }
}

/// The guest of the matrix, what it looked like before anybody attached, and what is done to those who protect it.
private final class MatrixStage {
    private let scene: Scene
    private let guest: Guest
    private let secondary: Secondary
    private let name: String
    private let before: Footprint
    private let watch: TickWatch
    private var attach: AttachProcess?

    init(_ scene: Scene) throws {
        self.scene = scene
        guest = try scene.launch(.init(workload: .all))
        secondary = try scene.startedSecondary()
        name = scene.guestName("g")
        try guest.waitUntilBusy()
        before = try guest.footprint()
        watch = TickWatch(guest)
    }

    var lastWords: String { attach.map { tail(of: $0.guardian.outputPath) } ?? "" }

    func abandon() {
        watch.stop()
        try? attach?.guardian.kill()
        try? guest.kill()
        try? secondary.kill()
    }

    /// The last row's guest, too, can be protected again; its checks have gone on all the time.
    func finish() throws {
        let attach = try protected([])
        try secondary.waitForCheckpoints(3, of: name)
        try attach.detach()
        try guest.waitUntilUntouched(before)
        try guest.checkAlive()
        watch.stop()
    }

    // MARK: Rows

    func play(_ row: RealGuests.GuardianMatrixTests.Row) throws {
        switch row {
        case .diskCopy:
            let attach = try start(row.options)
            try waitUntil("a mirror job runs", within: 30, every: 5, seen: { attach.log }) {
                guard attach.guardian.isRunning else { throw TestFailure("attach ended: \(attach.log)") }
                let jobs = try guest.watch().execute("query-block-jobs").array
                return jobs.contains { ($0["offset"].int ?? 0) > 0 && $0["ready"].bool == false }
            }
            try expectRestored(attach, row) { Glibc.kill($0, SIGKILL) }
        case .ramCopy:
            let attach = try start(row.options)
            try waitUntil("RAM is being copied", within: 60, every: 5, seen: { attach.log }) {
                guard attach.guardian.isRunning else { throw TestFailure("attach ended: \(attach.log)") }
                let migration = try guest.watch().execute("query-migrate")
                return migration["status"].string == "active" && (migration["ram"]["transferred"].int ?? 0) > 1 << 20
            }
            try expectRestored(attach, row) { Glibc.kill($0, SIGKILL) }
        case .between:
            let attach = try protected(row.options)
            pause(milliseconds: scene.randomMilliseconds(100...600))
            try expectRestored(attach, row) { Glibc.kill($0, SIGKILL) }
        case .requested:
            try expectRestored(try protected(row.options), row) { agent in
                try freeze(agent, whileGuestIsStopped: false)
                // QEMU asks, and waits for the answer while the guest runs.
                try guest.watch().execute("migrate-set-parameters", ["x-checkpoint-delay": 3_600_000])
                pause(milliseconds: 30)
                #expect(try guest.watch().execute("query-status")["running"].bool == true)
                Glibc.kill(agent, SIGKILL)
            }
        case .inPause:
            try expectRestored(try protected(row.options), row) { agent in
                try freeze(agent, whileGuestIsStopped: true)
                Glibc.kill(agent, SIGKILL)
            }
        case .atRandom:
            let attach = try protected(row.options)
            pause(milliseconds: scene.randomMilliseconds(50...700))
            try expectRestored(attach, row) { Glibc.kill($0, SIGKILL) }
        case .stopped, .stoppedInPause:
            try expectRestored(try protected(row.options), row) { agent in
                try freeze(agent, whileGuestIsStopped: row == .stoppedInPause)
            }
        case .outOfMemory:
            let attach = try start(row.options)
            try waitUntil("a mirror job runs", within: 30, every: 5, seen: { attach.log }) {
                guard attach.guardian.isRunning else { throw TestFailure("attach ended: \(attach.log)") }
                return try !guest.watch().execute("query-block-jobs").array.isEmpty
            }
            try expectRestored(attach, row) { agent in
                try Interference.forbidMoreMemory(agent, output: scene.directory + "/prlimit.log")
                try waitUntil("the agent fails", within: 10, every: 5) { !ProcessTable.isAlive(agent) }
            }
        case .unkillable:
            var keeper: ChildProcess?
            defer { try? keeper?.kill() }
            try expectRestored(try protected(row.options), row) { agent in
                keeper = try Interference.keepSockets(of: agent, output: scene.directory + "/keeper.log")
                try freeze(agent, whileGuestIsStopped: false)
            }
        case .guardian, .guardianInPause, .guardianOfStopped:
            try guardianDies(row)
        case .both, .bothInPause, .bothThenAttach:
            try bothDie(row)
        case .qemuStopped:
            try qemuStops(row)
        case .events:
            try flood(row)
        }
        guest.serial.read()
        #expect(guest.serial.faults.isEmpty, "\(row.rawValue)")
    }

    private func guardianDies(_ row: RealGuests.GuardianMatrixTests.Row) throws {
        let attach = try protected(row.options)
        let agent = try attach.agent()
        if row != .guardian { try freeze(agent, whileGuestIsStopped: true) }
        let start = begin()
        attach.guardian.signal(SIGKILL)
        // The kernel itself continues an orphan that is stopped, and hangs up on it (SIGHUP).
        if row == .guardianInPause { _ = Glibc.kill(agent, SIGCONT) }
        try expectRunning(since: start, row)
        try guest.waitUntilUntouched(before, within: 2)
        #expect(try attach.guardian.waitForExit(within: 5) == -SIGKILL)
        try waitUntil("the agent ends after its guardian", within: 5) { !ProcessTable.isAlive(agent) }
    }

    /// Nobody is left to help. Somebody has to come.
    private func bothDie(_ row: RealGuests.GuardianMatrixTests.Row) throws {
        let attach = try protected(row.options)
        let agent = try attach.agent()
        // Frozen, the agent cannot restore the guest when it loses its guardian.
        try freeze(agent, whileGuestIsStopped: row != .both)
        attach.guardian.signal(SIGKILL)
        _ = Glibc.kill(agent, SIGKILL)
        _ = try attach.guardian.waitForExit(within: 5)
        try waitUntil("the agent is gone", within: 5) { !ProcessTable.isAlive(agent) }
        #expect(try guest.watch().execute("query-status")["running"].bool == (row == .both))
        guard row != .bothThenAttach else {
            // What the next row begins with.
            let next = try protected([])
            say(row, begun: nil)
            try next.detach()
            return try guest.waitUntilUntouched(before)
        }
        let start = begin()
        let recovered = try secondary.verb(["detach", "--recover", "--qmp", guest.qmpPath])
        #expect(recovered.code == 0 && recovered.output.contains("colo-blk"), "\(recovered)")
        try expectRunning(since: start, row)
        try guest.waitUntilUntouched(before, within: 1)
    }

    /// All of QEMU hangs, and goes on: what we asked of it meanwhile is late, and that is all.
    private func qemuStops(_ row: RealGuests.GuardianMatrixTests.Row) throws {
        let attach = try protected(row.options)
        _ = Glibc.kill(guest.pid, SIGSTOP)
        pause(milliseconds: 1500)
        let start = begin()
        _ = Glibc.kill(guest.pid, SIGCONT)
        try waitUntil("the guest ticks", within: 10, every: 2) { watch.ticks(since: start) >= 3 }
        say(row, begun: start)
        try secondary.waitForCheckpoints(2, of: name)
        try attach.detach()
        try guest.waitUntilUntouched(before, within: 1)
    }

    /// Somebody else's work makes QEMU say much. Each of these jobs is worth six events.
    private func flood(_ row: RealGuests.GuardianMatrixTests.Row) throws {
        let attach = try protected(row.options)
        let first = try secondary.committedEpoch(name)
        let start = begin()
        let monitor = try guest.watch()
        let seen = monitor.events.count
        let file = scene.directory + "/flood"
        _ = FileManager.default.createFile(atPath: file, contents: nil)
        var number = 0
        while monotonicSeconds() - start < 2 {
            for _ in 0..<20 {
                number += 1
                let options: [String: Any] = ["driver": "file", "filename": file, "size": 0]
                try monitor.execute("blockdev-create", ["job-id": "flood\(number)", "options": options])
            }
            for back in 0..<20 {
                try waitUntil("the job ends", within: 5, every: 1) {
                    (try? monitor.execute("job-dismiss", ["id": "flood\(number - back)"])) != nil
                }
            }
        }
        scene.say("\(monitor.events.count - seen) events in \(Figure.text(monotonicSeconds() - start, 1)) s")
        say(row, begun: start)
        #expect(attach.guardian.isRunning)
        #expect(try secondary.committedEpoch(name) > first + 2)
        try attach.detach()
        try guest.waitUntilUntouched(before, within: 1)
    }

    // MARK: Steps

    private func start(_ options: [String]) throws -> AttachProcess {
        let attach = try scene.attach(guest, to: secondary, name: name, options: options)
        self.attach = attach
        return attach
    }

    /// A new attachment protects the guest.
    private func protected(_ options: [String]) throws -> AttachProcess {
        let attach = try start(options)
        try attach.waitUntilProtected()
        return attach
    }

    private func begin() -> Double {
        _ = watch.takeLongest()
        return monotonicSeconds()
    }

    /// Does the agent harm, and expects that the guest runs in time, that attach says so, and that nothing is left.
    private func expectRestored(
        _ attach: AttachProcess, _ row: RealGuests.GuardianMatrixTests.Row, harm: (pid_t) throws -> Void
    ) throws {
        let agent = try attach.agent()
        _ = watch.takeLongest()
        try harm(agent)
        try expectRunning(since: monotonicSeconds(), row)
        try attach.waitForExit(2)
        try guest.waitUntilUntouched(before, within: 2)
        #expect(!ProcessTable.isAlive(agent), "\(row.rawValue): the agent is gone")
    }

    private func expectRunning(since start: Double, _ row: RealGuests.GuardianMatrixTests.Row) throws {
        try waitUntil("the guest runs unprotected", within: 15, every: 2) {
            // A monitor that does not answer is what a QEMU that hangs looks like.
            (try? guest.watch().execute("query-status", within: 0.3))?["running"].bool == true
                && (try? guest.runsUnprotected()) == true
        }
        let seconds = monotonicSeconds() - start
        try waitUntil("the guest ticks", within: 5, every: 2) { watch.ticks(since: start) >= 2 }
        say(row, begun: start, seconds)
        #expect(seconds <= RealGuests.bound, "\(row.rawValue): the guest runs after \(seconds) s")
    }

    private func say(_ row: RealGuests.GuardianMatrixTests.Row, begun: Double?, _ seconds: Double? = nil) {
        let stood = Figure.text(watch.takeLongest() * 1000, 0)
        let unprotected = seconds.map { ", unprotected after \(Figure.text($0 * 1000, 0)) ms" } ?? ""
        scene.say("ROW \(row.rawValue): the guest stood still for \(stood) ms\(unprotected)")
    }

    /// Stops the agent (SIGSTOP) at a moment when the guest stands still inside a checkpoint, or when it runs.
    private func freeze(_ agent: pid_t, whileGuestIsStopped wanted: Bool) throws {
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
}
