import Glibc
import Logging
import NIOCore
import NIOPosix
import QEMU
import Synchronization
import Testing

@testable import Node

/// Guardians against a guest that is a fake and agents that are shell scripts on the real socketpair.
@Suite(.serialized) struct GuardianTests {
    private let loop: any EventLoop = MultiThreadedEventLoopGroup.singleton.next()
    private let log: Logger = {
        var log = Logger(label: "test")
        log.logLevel = .critical
        return log
    }()

    private static let beating = #"while echo '{"heartbeat":1}' >&3; do sleep 0.1; done"#
    private static let addNode =
        #"echo '{"qmp":{"execute":"blockdev-add","arguments":{"driver":"nbd","node-name":"colo-blk-nbd-0"},"id":1}}' >&3; "#

    /// A guest in the middle of a checkpoint with everything of ours in it.
    private static func midCheckpoint() -> FakeGuest.State {
        var state = FakeGuest.State()
        (state.running, state.status, state.migration) = (false, "colo", "colo")
        state.jobs = ["users-own-job", "colo-blk-mirror-0"]
        state.nodes = ["disk0", "colo-blk-nbd-0"]
        state.objects = ["users-rng", "colo-blk-net-0"]
        state.chardevs = ["serial0", "colo-blk-net-in-0", "colo-blk-net-out-0"]
        state.capabilities["x-colo"] = true
        state.capabilities["return-path"] = false
        state.parameters["x-checkpoint-delay"] = 1_000_000
        return state
    }

    private func expectRestored(_ state: FakeGuest.State, jobs: [String] = ["users-own-job"]) {
        #expect(state.running && state.status == "running")
        #expect(state.migration != "colo")
        #expect(state.jobs == jobs)
        #expect(!state.nodes.contains { GuestNames.isOurs($0) })
        #expect(!state.objects.contains { GuestNames.isOurs($0) })
        #expect(!state.chardevs.contains { GuestNames.isOurs($0) })
        #expect(state.capabilities == FakeGuest.State().capabilities)
        #expect(state.parameters == FakeGuest.State().parameters)
    }

    private func guardian(_ guest: FakeGuest, script: String, signals: Bool = false) -> Guardian {
        var configuration = Guardian.Configuration(
            qmpPath: guest.path, agentExecutable: "/bin/bash", agentArguments: ["-c", "exec 3>&0; " + script])
        configuration.handlesSignals = signals
        return Guardian(configuration: configuration, eventLoop: loop, log: log)
    }

    /// Lets the guardian save the state of an untouched guest, then breaks the guest, and gives the time from the
    /// breaking to the outcome.
    private func run(
        _ guardian: Guardian, _ guest: FakeGuest, breaking: FakeGuest.State?, then act: () async throws -> Void = {}
    ) async throws -> (outcome: GuardianOutcome, time: Duration) {
        let task = Task { await guardian.run() }
        try await eventually { guest.log.contains("query-migrate-parameters") }
        if let breaking { guest.state.withLock { $0 = breaking } }
        try await act()
        let start = ContinuousClock.now
        return (await task.value, ContinuousClock.now - start)
    }

    private func eventually(_ condition: () -> Bool) async throws {
        for _ in 0..<500 {
            if condition() { return }
            try await Task.sleep(for: .milliseconds(10))
        }
        Issue.record("it never came")
    }

    @Test func anAgentKilledInACheckpointLeavesARunningGuestWithoutAnythingOfOurs() async throws {
        let guest = try await FakeGuest.start(eventLoop: loop)
        let guardian = guardian(guest, script: "sleep 0.2; kill -9 $$")
        let (outcome, time) = try await run(guardian, guest, breaking: Self.midCheckpoint())
        guard case .agentFailed(let reason, let code, let report) = outcome else {
            Issue.record("\(outcome)")
            return
        }
        #expect(code == nil && reason.contains("signal 9"), "\(reason)")
        #expect(report.guestRunning && report.clean)
        #expect(report.removed >= 4, "\(report)")
        #expect(time < .milliseconds(1_200), "0.2 s of it are the agent's life")
        expectRestored(guest.state.withLock { $0 })
        let log = guest.log
        #expect(!log.contains("migrate_cancel"), "a cancel may fall into COLO")
        // A job must not end while QEMU stops the guest to leave COLO.
        let cancel = try #require(log.firstIndex(of: "block-job-cancel by force"))
        let leave = try #require(log.firstIndex(of: "x-colo-lost-heartbeat"))
        #expect(cancel < leave, "\(log)")
        #expect(log[cancel..<leave].contains("query-block-jobs"), "the job's end is waited for: \(log)")
        #expect(!log.contains("oob:yank") && !log.contains("stop"), "QEMU answers, the guest stands still: \(log)")
        await guest.stop()
    }

    /// A guest that runs between two checkpoints, with our mirror.
    private static func mirrored() -> FakeGuest.State {
        var state = FakeGuest.State()
        state.migration = "colo"
        state.jobs = ["users-own-job", "colo-blk-mirror-0"]
        state.nodes = ["disk0", "colo-blk-nbd-0"]
        return state
    }

    @Test func aMirrorWhoseAgentIsDeadIsCancelledWhileTheGuestIsStopped() async throws {
        let guest = try await FakeGuest.start(eventLoop: loop)
        let guardian = guardian(guest, script: "sleep 0.2; kill -9 $$")
        let (outcome, _) = try await run(guardian, guest, breaking: Self.mirrored())
        #expect(outcome.guestIsSafe, "\(outcome)")
        let log = guest.log
        let stop = try #require(log.firstIndex(of: "stop"), "\(log)")
        let cancel = try #require(log.firstIndex(of: "block-job-cancel by force"), "\(log)")
        let leave = try #require(log.firstIndex(of: "x-colo-lost-heartbeat"), "\(log)")
        #expect(stop < cancel && cancel < leave, "\(log)")
        expectRestored(guest.state.withLock { $0 })
        await guest.stop()
    }

    /// Leaves as an agent does: says bye when it is told to end, and exits when it is told so.
    private static let obedient =
        "n=0; (\(beating)) & b=$!; while read -r line <&0; do case $line in *detach*) n=$((n+1)); kill $b; "
        + #"[ $n = 2 ] && exit 0; echo '{"bye":{"reason":"told to","exit":0}}' >&3;; esac; done"#

    @Test func aMirrorThatIsAnsweredIsAskedToFinishAndTheAgentStaysForThat() async throws {
        let guest = try await FakeGuest.start(eventLoop: loop)
        let guardian = guardian(guest, script: Self.obedient)
        let (outcome, _) = try await run(guardian, guest, breaking: Self.mirrored()) {
            try await Task.sleep(for: .milliseconds(200))
            guardian.requestDetach(reason: "by hand")
        }
        guard case .detached("by hand", let report) = outcome else {
            Issue.record("\(outcome)")
            return
        }
        #expect(report.guestRunning && report.clean)
        let log = guest.log
        let cancel = try #require(log.firstIndex(of: "block-job-cancel"), "\(log)")
        #expect(try cancel < #require(log.firstIndex(of: "x-colo-lost-heartbeat")), "\(log)")
        #expect(!log.contains("stop") && !log.contains("block-job-cancel by force"), "\(log)")
        expectRestored(guest.state.withLock { $0 })
        await guest.stop()
    }

    @Test func aMirrorThatIsNotReadyIsCancelledWhileTheGuestIsStopped() async throws {
        let guest = try await FakeGuest.start(eventLoop: loop)
        let guardian = guardian(guest, script: Self.obedient)
        var state = Self.mirrored()
        (state.migration, state.jobsAreReady) = ("none", false)
        let (outcome, _) = try await run(guardian, guest, breaking: state) {
            try await Task.sleep(for: .milliseconds(200))
            guardian.requestDetach(reason: "by hand")
        }
        #expect(outcome.guestIsSafe, "\(outcome)")
        let log = guest.log
        let order = ["stop", "block-job-cancel by force", "cont"].map { log.firstIndex(of: $0) ?? -1 }
        #expect(order[0] >= 0 && order == order.sorted(), "\(log)")
        expectRestored(guest.state.withLock { $0 })
        await guest.stop()
    }

    @Test func jobsThatWaitForAServerThatIsGoneAreYanked() async throws {
        let guest = try await FakeGuest.start(eventLoop: loop)
        let guardian = guardian(guest, script: "sleep 0.2; kill -9 $$")
        var state = Self.midCheckpoint()
        state.jobsWaitFor = "colo-blk-nbd-0"
        let (outcome, time) = try await run(guardian, guest, breaking: state)
        guard case .agentFailed(_, _, let report) = outcome else {
            Issue.record("\(outcome)")
            return
        }
        #expect(report.guestRunning && report.clean, "\(report)")
        #expect(time < .milliseconds(1_200), "0.2 s of it are the agent's life")
        let log = guest.log
        let yank = try #require(log.firstIndex(of: "oob:yank"))
        #expect(try yank < #require(log.firstIndex(of: "x-colo-lost-heartbeat")), "\(log)")
        expectRestored(guest.state.withLock { $0 })
        await guest.stop()
    }

    @Test func anAgentThatEatsMemoryIsEndedWhileItStillBeats() async throws {
        let guest = try await FakeGuest.start(eventLoop: loop)
        var configuration = Guardian.Configuration(
            qmpPath: guest.path, agentExecutable: "/bin/bash",
            agentArguments: [
                "-c",
                "exec 3>&0; (" + Self.beating + #") & x=$(head -c 30000000 /dev/zero | tr '\0' x); y="$x$x$x$x"; wait"#,
            ])
        configuration.handlesSignals = false
        configuration.agentMemoryMax = 50 << 20
        let guardian = Guardian(configuration: configuration, eventLoop: loop, log: log)
        let (outcome, _) = try await run(guardian, guest, breaking: Self.mirrored())
        guard case .agentFailed(let reason, _, let report) = outcome else {
            Issue.record("\(outcome)")
            return
        }
        #expect(reason.contains("of memory, more than it may"), "\(reason)")
        #expect(report.guestRunning && report.clean)
        expectRestored(guest.state.withLock { $0 })
        await guest.stop()
    }

    @Test func anAgentThatFallsSilentIsKilledAndTheGuestFreedWithinASecond() async throws {
        let guest = try await FakeGuest.start(eventLoop: loop)
        let script = "for i in 1 2 3; do echo '{\"heartbeat\":1}' >&3; sleep 0.1; done; exec sleep 60"
        let guardian = guardian(guest, script: script)
        let (outcome, time) = try await run(guardian, guest, breaking: Self.midCheckpoint())
        guard case .agentFailed(let reason, _, let report) = outcome else {
            Issue.record("\(outcome)")
            return
        }
        #expect(reason.contains("no sign of life") && reason.contains("signal 9"), "\(reason)")
        #expect(report.guestRunning && report.clean)
        #expect(time > .milliseconds(400) && time < .milliseconds(1_600), "\(time)")
        expectRestored(guest.state.withLock { $0 })
        await guest.stop()
    }

    @Test func aHangingMainLoopIsFreedByAYankOutOfBand() async throws {
        let guest = try await FakeGuest.start(eventLoop: loop)
        let guardian = guardian(guest, script: Self.addNode + "sleep 0.2; kill -9 $$")
        var state = Self.midCheckpoint()
        state.hangsOn = "colo-blk-nbd-0"
        let (outcome, _) = try await run(guardian, guest, breaking: nil) {
            try await eventually { guest.log.contains("blockdev-add") }
            guest.state.withLock { $0 = state }
        }
        guard case .agentFailed(_, _, let report) = outcome else {
            Issue.record("\(outcome)")
            return
        }
        #expect(report.guestRunning && report.clean, "\(report)")
        #expect(guest.log.contains("oob:yank"))
        expectRestored(guest.state.withLock { $0 })
        await guest.stop()
    }

    @Test func sigtermTellsTheAgentAndThenRestores() async throws {
        let guest = try await FakeGuest.start(eventLoop: loop)
        let script =
            "(\(Self.beating)) & b=$!; while read -r line <&0; do case $line in *detach*) kill $b; "
            + #"echo '{"bye":{"reason":"told to","exit":0}}' >&3; exit 0;; esac; done"#
        let guardian = guardian(guest, script: script, signals: true)
        let (outcome, time) = try await run(guardian, guest, breaking: Self.midCheckpoint()) {
            try await Task.sleep(for: .milliseconds(200))
            kill(getpid(), SIGTERM)
            // A second one changes nothing.
            try await Task.sleep(for: .milliseconds(20))
            kill(getpid(), SIGINT)
        }
        guard case .detached(let reason, let report) = outcome else {
            Issue.record("\(outcome)")
            return
        }
        #expect(reason == "terminated by a signal")
        #expect(report.guestRunning && report.clean && outcome.guestIsSafe)
        #expect(time < .seconds(1), "\(time)")
        expectRestored(guest.state.withLock { $0 })
        await guest.stop()
    }

    @Test func anAgentThatDoesNotObeyADetachIsNotWaitedFor() async throws {
        let guest = try await FakeGuest.start(eventLoop: loop)
        let guardian = guardian(guest, script: Self.beating)
        let (outcome, time) = try await run(guardian, guest, breaking: Self.midCheckpoint()) {
            try await Task.sleep(for: .milliseconds(100))
            guardian.requestDetach(reason: "by hand")
        }
        guard case .detached("by hand", let report) = outcome else {
            Issue.record("\(outcome)")
            return
        }
        #expect(report.guestRunning && report.clean)
        #expect(time > .milliseconds(250) && time < .seconds(1), "\(time)")
        expectRestored(guest.state.withLock { $0 })
        await guest.stop()
    }

    @Test func anAgentThatGivesUpSaysWhyAndItsCodeIsPassedOn() async throws {
        let guest = try await FakeGuest.start(eventLoop: loop)
        let guardian = guardian(
            guest, script: #"echo '{"bye":{"reason":"the secondary refused us","exit":7}}' >&3; exit 7"#)
        let (outcome, _) = try await run(guardian, guest, breaking: nil)
        guard case .agentFailed("the secondary refused us", 7, let report) = outcome else {
            Issue.record("\(outcome)")
            return
        }
        #expect(report.guestRunning && report.clean && report.removed == 0)
        await guest.stop()
    }

    @Test func anInitialCopyThatDoesNotEndByItselfIsCancelled() async throws {
        let guest = try await FakeGuest.start(eventLoop: loop)
        let guardian = guardian(guest, script: "sleep 0.1; exit 3")
        var state = FakeGuest.State()
        state.migration = "active"
        let (outcome, _) = try await run(guardian, guest, breaking: state)
        guard case .agentFailed(_, 3, let report) = outcome else {
            Issue.record("\(outcome)")
            return
        }
        #expect(report.guestRunning && report.clean)
        #expect(guest.log.contains("migrate_cancel"))
        #expect(!guest.log.contains("x-colo-lost-heartbeat"))
        await guest.stop()
    }

    @Test func aMigrationThatNeverEndsIsNotWaitedForWhileTheGuestRuns() async throws {
        // What QEMU 7.2 is left with when somebody migrates a guest that is in COLO.
        let guest = try await FakeGuest.start(eventLoop: loop)
        let guardian = guardian(guest, script: "sleep 0.1; exit 2")
        var state = FakeGuest.State()
        (state.migration, state.cancelHangs) = ("setup", true)
        let (outcome, time) = try await run(guardian, guest, breaking: state)
        #expect(outcome.guestIsSafe && time < .seconds(5), "\(outcome) after \(time)")
        await guest.stop()
    }

    @Test func aGuestThatEndedAsCompletedAndPausedIsContinued() async throws {
        // What QEMU 10.0.2 does instead of entering COLO.
        let guest = try await FakeGuest.start(eventLoop: loop)
        let guardian = guardian(guest, script: "sleep 0.1; exit 3")
        var state = FakeGuest.State()
        (state.running, state.status, state.migration) = (false, "postmigrate", "completed")
        let (outcome, _) = try await run(guardian, guest, breaking: state)
        #expect(outcome.guestIsSafe)
        #expect(guest.log.contains("cont"))
        await guest.stop()
    }

    @Test(
        "a guest that somebody else has stopped is left stopped, although leaving COLO starts it",
        arguments: ["paused", "prelaunch", "guest-panicked", "io-error"])
    func stoppedByOthers(_ status: String) async throws {
        let guest = try await FakeGuest.start(eventLoop: loop)
        let guardian = guardian(guest, script: "sleep 0.1; exit 3")
        var state = Self.midCheckpoint()
        state.status = status
        let (outcome, time) = try await run(guardian, guest, breaking: state)
        guard case .agentFailed(_, 3, let report) = outcome else {
            Issue.record("\(outcome)")
            return
        }
        #expect(report.leftStopped == "paused" && !report.guestRunning && report.clean && outcome.guestIsSafe)
        #expect("\(report)".contains("left so (paused)") && time < .seconds(2))
        let left = guest.state.withLock { $0 }
        #expect(!left.running && left.migration == "completed" && left.jobs == ["users-own-job"])
        #expect(!guest.log.contains("cont"))
        await guest.stop()
    }

    @Test func aGuestThatIsOffIsNotWaitedFor() async throws {
        let guest = try await FakeGuest.start(eventLoop: loop)
        let guardian = guardian(guest, script: "sleep 0.1; exit 3")
        var state = FakeGuest.State()
        (state.running, state.status, state.migration) = (false, "shutdown", "completed")
        let (outcome, time) = try await run(guardian, guest, breaking: state)
        #expect(outcome.guestIsSafe && time < .seconds(2))
        #expect(!guest.log.contains("cont") && !guest.log.contains("stop"))
        await guest.stop()
    }

    @Test func aGuestThatQemuCannotTakeOutOfColoIsNotKilledByTrying() async throws {
        let guest = try await FakeGuest.start(eventLoop: loop)
        let guardian = guardian(guest, script: "sleep 0.1; exit 3")
        var state = Self.midCheckpoint()
        state.status = "internal-error"
        let (outcome, _) = try await run(guardian, guest, breaking: state)
        guard case .agentFailed(_, 3, let report) = outcome else {
            Issue.record("\(outcome)")
            return
        }
        #expect(!report.clean && "\(report)".contains("system_reset"))
        #expect(!guest.log.contains("x-colo-lost-heartbeat"))
        await guest.stop()
    }

    @Test func aGuestThatSleepsIsWokenBeforeColoIsLeft() async throws {
        let guest = try await FakeGuest.start(eventLoop: loop)
        let guardian = guardian(guest, script: "sleep 0.1; exit 3")
        var state = Self.midCheckpoint()
        state.status = "suspended"
        let (outcome, _) = try await run(guardian, guest, breaking: state)
        #expect(outcome.guestIsSafe)
        let log = guest.log
        let woken = try #require(log.firstIndex(of: "system_wakeup"))
        #expect(try #require(log.firstIndex(of: "x-colo-lost-heartbeat")) > woken)
        expectRestored(guest.state.withLock { $0 })
        await guest.stop()
    }

    @Test("a QEMU that says why it ends, and one that does not", arguments: ["host-qmp-quit", "host-error", ""])
    func says(_ reason: String) async throws {
        let guest = try await FakeGuest.start(eventLoop: loop)
        let guardian = guardian(guest, script: Self.beating)
        let (outcome, _) = try await run(guardian, guest, breaking: nil) {
            try await Task.sleep(for: .milliseconds(100))
            if !reason.isEmpty { guest.send(event: "SHUTDOWN", data: #"{"guest": false, "reason": "\#(reason)"}"#) }
            guest.disconnect()
        }
        if reason == "host-qmp-quit" {
            #expect(outcome == .guestShutOff(reason: "the guest's QEMU was told to quit"))
        } else {
            guard case .guestGone = outcome else {
                Issue.record("\(outcome)")
                return
            }
        }
        await guest.stop()
    }

    @Test func aGuestThatEndsEndsTheGuardianToo() async throws {
        let guest = try await FakeGuest.start(eventLoop: loop)
        let guardian = guardian(guest, script: Self.beating)
        let (outcome, time) = try await run(guardian, guest, breaking: nil) {
            try await Task.sleep(for: .milliseconds(100))
            guest.disconnect()
        }
        guard case .guestGone = outcome else {
            Issue.record("\(outcome)")
            return
        }
        #expect(time < .seconds(1), "\(time)")
        await guest.stop()
    }

    @Test func noMonitorAndNoAgentAreSaidAndHarmless() async throws {
        let guest = try await FakeGuest.start(eventLoop: loop)
        var configuration = Guardian.Configuration(
            qmpPath: guest.path, agentExecutable: "/no/such/agent", agentArguments: [])
        configuration.handlesSignals = false
        let outcome = await Guardian(configuration: configuration, eventLoop: loop, log: log).run()
        #expect(outcome.description.contains("/no/such/agent"), "\(outcome)")
        #expect(outcome.guestIsSafe)
        await guest.stop()
        let second = await Guardian(configuration: configuration, eventLoop: loop, log: log).run()
        guard case .notStarted(let reason) = second else {
            Issue.record("\(second)")
            return
        }
        #expect(reason.contains("no such socket"))
    }

    @Test func remainsOfADeadPairAreRemoved() async throws {
        let guest = try await FakeGuest.start(Self.midCheckpoint(), eventLoop: loop)
        let client = try await QMPClient.connect(path: guest.path, eventLoop: loop)
        let report = await GuestRestoration.removeRemains(client, log: log)
        #expect(report.guestRunning && report.clean && report.removed >= 4)
        let state = guest.state.withLock { $0 }
        #expect(state.running && state.jobs == ["users-own-job"] && state.nodes == ["disk0"])
        #expect(state.capabilities["x-colo"] == false)
        let again = await GuestRestoration.removeRemains(client, log: log)
        #expect(again.removed == 0 && again.clean)
        client.close()
        await guest.stop()
    }

    @Test(arguments: ["active", "colo"])
    func theLimitOfTheDownTimeThatACopyLeftIsQEMUsOwnAgain(migration: String) async throws {
        var state = Self.midCheckpoint()
        state.migration = migration
        state.parameters["x-checkpoint-delay"] = 3_600_000
        state.parameters["downtime-limit"] = 77
        let guest = try await FakeGuest.start(state, eventLoop: loop)
        let client = try await QMPClient.connect(path: guest.path, eventLoop: loop)
        try await GuestRestoration.removeRemains(ofDeadAttachIn: client, log: log)
        let left = guest.state.withLock { $0 }.parameters
        #expect(left["x-checkpoint-delay"] == 20_000)
        // Behind the copy it is the user's.
        #expect(left["downtime-limit"] == (migration == "colo" ? 77 : 300))
        client.close()
        await guest.stop()
    }

    @Test func aGuestThatTheUserPausedIsNotStartedWhenRemainsAreRemoved() async throws {
        var state = FakeGuest.State()
        (state.running, state.status) = (false, "paused")
        let guest = try await FakeGuest.start(state, eventLoop: loop)
        let client = try await QMPClient.connect(path: guest.path, eventLoop: loop)
        let report = await GuestRestoration.removeRemains(client, log: log)
        #expect(!report.guestRunning && report.clean)
        #expect(!guest.log.contains("cont"))
        client.close()
        await guest.stop()
    }
}
