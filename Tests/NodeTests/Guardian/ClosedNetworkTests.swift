import Logging
import NIOCore
import NIOPosix
import QEMU
import Synchronization
import Testing

@testable import Node

/// What a guardianship leaves of a held network: nothing, or a gate, and no moment in between in which packets pass.
@Suite(.serialized) struct ClosedNetworkTests {
    private let loop: any EventLoop = MultiThreadedEventLoopGroup.singleton.next()
    private let log: Logger = {
        var log = Logger(label: "test")
        log.logLevel = .critical
        return log
    }()

    /// Two held networks in the middle of a checkpoint.
    private static func held() -> FakeGuest.State {
        var state = FakeGuest.State()
        (state.running, state.status, state.migration) = (false, "colo", "colo")
        state.objects = ["users-rng", "colo-blk-net-0", "colo-blk-net-1"]
        state.netdevs = ["colo-blk-net-0": "n0", "colo-blk-net-1": "n1"]
        state.chardevs = ["serial0"] + (0...1).flatMap { ["colo-blk-net-in-\($0)", "colo-blk-net-out-\($0)"] }
        return state
    }

    /// A guest whose network an outage keeps closed.
    private static func gated() -> FakeGuest.State {
        var state = FakeGuest.State()
        state.objects = ["colo-blk-gate-0"]
        state.netdevs = ["colo-blk-gate-0": "n0"]
        state.chardevs = ["colo-blk-gate-out-0"]
        return state
    }

    /// Has an agent say its last words, or die without any, over a guest in this state.
    private func end(
        _ words: String?, over broken: FakeGuest.State?, from state: FakeGuest.State = FakeGuest.State(),
        closes: Bool = true
    ) async throws -> (GuardianOutcome, FakeGuest.State) {
        let guest = try await FakeGuest.start(state, eventLoop: loop)
        let last = words.map { "echo '{\"bye\":\($0)}' >&3" } ?? "kill -9 $$"
        var configuration = Guardian.Configuration(
            qmpPath: guest.path, agentExecutable: "/bin/bash", agentArguments: ["-c", "exec 3>&0; sleep 0.3; " + last])
        configuration.handlesSignals = false
        configuration.claimsGuest = true
        configuration.closesNetworkOnLoss = closes
        let guardian = Guardian(configuration: configuration, eventLoop: loop, log: log)
        let task = Task { await guardian.run() }
        for _ in 0..<200 where !guest.log.contains("query-migrate-parameters") {
            try await Task.sleep(for: .milliseconds(5))
        }
        // The remains were looked for, and the guest's state was taken.
        try await Task.sleep(for: .milliseconds(100))
        if let broken { guest.state.withLock { $0 = broken } }
        let outcome = await task.value
        let left = guest.state.withLock { $0 }
        await guest.stop()
        return (outcome, left)
    }

    private static let lost = #"{"reason":"the link is cut","exit":4,"commit":77}"#

    @Test func aLostSecondaryLeavesGatesAndNoMomentWithoutAFilter() async throws {
        let (outcome, left) = try await end(Self.lost, over: Self.held())
        guard case .agentFailed(_, AgentExit.secondaryLost, let report) = outcome else {
            Issue.record("\(outcome)")
            return
        }
        #expect(report.networkClosed && report.clean && report.guestRunning, "\(report)")
        #expect(left.running && left.opened.isEmpty)
        #expect(left.objects == ["users-rng", "colo-blk-gate-0", "colo-blk-gate-1"])
        #expect(Set(left.netdevs.values) == ["n0", "n1"])
        #expect(left.chardevs == ["serial0", "colo-blk-gate-out-0", "colo-blk-gate-out-1"])
    }

    @Test(
        arguments: [
            // Without the policy; before the first commit; by wish; by a failure that is not the secondary's; killed.
            (lost, false), (#"{"reason":"the link is cut","exit":4}"#, true),
            (#"{"reason":"detached","exit":0,"commit":77}"#, true),
            (#"{"reason":"the mirror broke","exit":2,"commit":77}"#, true), (nil, true),
        ] as [(String?, Bool)])
    func everythingElseOpensTheNetwork(_ words: String?, closes: Bool) async throws {
        let (outcome, left) = try await end(words, over: Self.held(), closes: closes)
        #expect(left.objects == ["users-rng"] && left.chardevs == ["serial0"], "\(outcome)")
        #expect(left.running)
    }

    @Test func aNetworkThatWasFoundClosedStaysClosedWhileTheSecondaryIsAway() async throws {
        for code in [AgentExit.refused, AgentExit.secondaryAway, AgentExit.secondaryRefuses] {
            let words = #"{"reason":"not now","exit":\#(code)}"#
            let (outcome, left) = try await end(words, over: nil, from: Self.gated())
            guard case .agentFailed(_, code, let report) = outcome else {
                Issue.record("\(outcome)")
                return
            }
            #expect(report.networkClosed && left.opened.isEmpty)
            #expect(left.objects == ["colo-blk-gate-0"] && left.chardevs == ["colo-blk-gate-out-0"])
        }
    }

    @Test func anAttachThatDoesNotKnowThePolicyOpensWhatItFinds() async throws {
        let (_, left) = try await end(Self.lost, over: nil, from: Self.gated(), closes: false)
        #expect(left.objects.isEmpty && left.chardevs.isEmpty)
    }

    @Test func theFiltersOfAnAttachThatDiedAltogetherBecomeGates() async throws {
        var state = Self.held()
        (state.running, state.status, state.migration) = (true, "running", "none")
        let (_, left) = try await end(#"{"reason":"not now","exit":5}"#, over: nil, from: state)
        #expect(left.opened.isEmpty)
        #expect(left.objects == ["users-rng", "colo-blk-gate-0", "colo-blk-gate-1"])
    }

    @Test func aNetworkWithAGateAndAFilterKeepsOne() async throws {
        var state = Self.held()
        state.objects.append("colo-blk-gate-0")
        state.netdevs["colo-blk-gate-0"] = "n1"
        state.chardevs.append("colo-blk-gate-out-0")
        let (_, left) = try await end(Self.lost, over: state)
        #expect(left.opened.isEmpty)
        #expect(left.netdevs == ["colo-blk-gate-0": "n1", "colo-blk-gate-1": "n0"])
    }
}
