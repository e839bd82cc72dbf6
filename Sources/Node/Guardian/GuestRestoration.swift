import Logging
import QEMU

/// Puts a guest back to what it was before we came: running, unprotected, without anything of ours.
///
/// The order is the order of harm. First what can hang QEMU itself (our NBD clients, yanked out of band if it does), then
/// what holds packets (net filters), the mirror jobs, what keeps the guest paused (COLO), then the rest. Every step has
/// its own time-out, and a step that fails does not stop the next one. Running twice does no harm.
///
/// Jobs end before COLO is left, and in a way of their own: see `GuestRestoration+Jobs.swift`.
public struct GuestRestoration: Sendable {
    /// What was achieved.
    public struct Report: Sendable, Equatable, CustomStringConvertible {
        /// Whether the guest runs, as far as QEMU says.
        public var guestRunning = false
        /// Time from the start of the restoration until the guest was seen running; nil when it was not.
        public var timeToRunning: Duration?
        /// Nothing of ours is left in the guest and its settings are back.
        public var clean = true
        /// How many things of ours (jobs, nodes, filters, character devices) were removed.
        public var removed = 0
        /// A network of the guest was closed on purpose: nothing leaves it.
        public var networkClosed = false
        /// The monitor's connection ended: there is no guest any more.
        public var guestGone = false
        /// The state of a guest that somebody else had stopped, and that was left so; nil for one that is to run.
        public var leftStopped: String?
        /// What went wrong, in words; at most 32.
        public var problems: [String] = []

        public init() {}

        public var description: String {
            let running =
                leftStopped.map { "the guest was found stopped by somebody else and is left so (\($0))" }
                ?? timeToRunning.map { "the guest runs, seen after \($0)" } ?? "the guest was not seen running"
            return running + (clean ? ", nothing of ours is left" : ", something of ours may be left")
                + (networkClosed ? ", but for filters that keep its network CLOSED" : "")
                + (problems.isEmpty ? "" : ": " + problems.joined(separator: "; "))
        }
    }

    /// Bound of the whole restoration, unless the guest does not run by then.
    public static let budget: Duration = .milliseconds(900)
    /// How long we go on trying to get the guest to run.
    public static let patience: Duration = .seconds(30)

    let qmp: any QMPExecutor
    private let outOfBand: Bool
    private let saved: SavedGuestState?
    let log: Logger
    /// Whether networks that are held stay closed: then no packet leaves until a later attach opens them, or somebody
    /// has them opened. Set for the loss of a secondary under the policy `hold`.
    public var keepsNetworkClosed = false
    /// Whether a guest that is found stopped, and not by what COLO does, stays so: somebody else has stopped it.
    public var keepsStopped = true
    let clock = ContinuousClock()

    /// - Parameters:
    ///   - outOfBand: whether `qmp` may execute out-of-band commands.
    ///   - saved: the guest before the attach; nil when it is not known (the remains of a dead attach): then settings
    ///     other than `x-colo` stay as they are, and a guest that is merely paused is left paused.
    public init(qmp: any QMPExecutor, outOfBand: Bool, saved: SavedGuestState?, log: Logger) {
        self.qmp = qmp
        self.outOfBand = outOfBand
        self.saved = saved
        self.log = log
    }

    /// Removes what an attach that died together with its guardian left in the guest.
    public static func removeRemains(
        _ client: QMPClient, keepsNetworkClosed: Bool = false, log: Logger
    ) async -> Report {
        var restoration = GuestRestoration(qmp: client, outOfBand: client.outOfBand, saved: nil, log: log)
        restoration.keepsNetworkClosed = keepsNetworkClosed
        return await restoration.run(nbdNodes: [])
    }

    /// Does it all.
    /// - Parameters:
    ///   - nbdNodes: names of NBD nodes known to be ours, beside those that QEMU itself lists.
    ///   - mirrorsAreAnswered: whether our NBD server still answers.
    public func run(nbdNodes: Set<String>, mirrorsAreAnswered: Bool = false) async -> Report {
        let start = clock.now
        var report = Report()
        await unhang(nbdNodes)
        let stop = await foundStopped(&report)
        // A network that stays closed is closed already: the agent lets nothing pass, or is gone.
        if !keepsNetworkClosed { await removeFilters(&report) }
        let hasStopped = await endJobs(nbdNodes, answered: mirrorsAreAnswered, &report)
        // What failed now is done again below.
        report.clean = true
        var deadline = start + Self.budget
        while true {
            let wasColo = await leaveMigration(since: start, until: deadline, stop, &report)
            if let stop { await stopAgain(stop, wasColo: wasColo, &report) }
            let mustRun = stop == nil && (saved?.wasRunning ?? (wasColo || hasStopped))
            report.guestRunning = await resume(mustRun: mustRun, until: deadline, &report)
            if report.guestRunning || report.guestGone || !mustRun { break }
            if clock.now >= start + Self.patience { break }
            guard clock.now >= deadline else { continue }
            // A guest that stands still is worse than a restoration that takes long.
            log.error("the guest does not run yet; trying on", metadata: ["problems": "\(report.problems.suffix(3))"])
            await yank(nbdNodes)
            deadline = clock.now + .seconds(1)
        }
        if report.guestRunning { report.timeToRunning = clock.now - start }
        guard !report.guestGone else { return report }
        let rest = max(deadline, clock.now + .milliseconds(200))
        if await !cancelJobs(force: true, until: rest, &report) {
            report.clean = false
            report.problems.append("block jobs of ours do not end")
        }
        await removeExports(&report)
        await removeNodes(&report, until: rest)
        await removeFilters(&report)
        await removeChardevs(&report)
        await restoreSettings(&report)
        if let status = await attempt("query-status", nil, &report) {
            report.guestRunning = status["running"]?.boolValue ?? report.guestRunning
            if stop != nil, !report.guestRunning { report.leftStopped = status["status"]?.stringValue ?? stop }
        }
        return report
    }

    // MARK: Steps

    /// Cuts the connections of our NBD clients, so that requests which nobody answers fail now.
    func yank(_ known: Set<String>) async {
        var names = known
        let listed = try? await qmp.execute(
            "query-yank", arguments: nil, oob: outOfBand, timeout: .milliseconds(100))
        for instance in listed?.arrayValue ?? [] {
            guard let name = instance["node-name"]?.stringValue, GuestNames.isOurs(name) else { continue }
            names.insert(name)
        }
        for name in names.sorted() {
            let instance: JSONValue = ["type": "block-node", "node-name": .string(name)]
            do {
                _ = try await qmp.execute(
                    "yank", arguments: ["instances": [instance]], oob: outOfBand, timeout: .milliseconds(100))
                log.debug("yanked", metadata: ["node": "\(name)"])
            } catch {
                // A node that is already gone is refused here; all the better.
                log.debug("yank", metadata: ["node": "\(name)", "error": "\(error)"])
            }
        }
    }

    /// A filter whose character device is gone drops every packet: filters go before anything that takes time. Where
    /// the network is to stay closed a gate is put in first, so that there is no moment in which packets pass.
    private func removeFilters(_ report: inout Report) async {
        guard let objects = await attempt("qom-list", ["path": "/objects"], &report)?.arrayValue else {
            report.clean = false
            return
        }
        var closed: Set<String> = []
        if keepsNetworkClosed {
            guard let stays = await closeNetworks(&report) else { return }
            closed = stays
        }
        for entry in objects {
            guard let name = entry["name"]?.stringValue, GuestNames.isOurs(name), !closed.contains(name) else {
                continue
            }
            if await attempt("object-del", ["id": .string(name)], &report) != nil {
                report.removed += 1
            } else {
                report.clean = false
            }
        }
    }

    /// Puts a gate beside each of our filters that has none. Returns what must stay: gates, and filters without one, which
    /// let nothing pass either once their agent is gone. Nil: everything must stay.
    private func closeNetworks(_ report: inout Report) async -> Set<String>? {
        do {
            let filters = try await NetworkGate.filters(in: qmp, timeout: stepTimeout)
            var gates = filters.filter { GuestNames.isGate($0.name) }
            var stays = Set(gates.map(\.name))
            for filter in filters where !GuestNames.isGate(filter.name) {
                guard !gates.contains(where: { $0.netdev == filter.netdev }) else { continue }
                let index = (0...).first { index in !gates.contains { $0.name == GuestNames.netGate(index) } } ?? 0
                do {
                    try await NetworkGate.add(index, filter.netdev, qmp, timeout: stepTimeout)
                    gates.append(NetworkGate(name: GuestNames.netGate(index), netdev: filter.netdev))
                    stays.insert(GuestNames.netGate(index))
                } catch {
                    report.problems.append("no gate for network '\(filter.netdev)': \(error)")
                    report.clean = false
                    stays.insert(filter.name)
                }
            }
            report.networkClosed = !stays.isEmpty
            return stays
        } catch {
            report.problems.append("\(error)")
            report.clean = false
            report.networkClosed = true
            return nil
        }
    }

    /// Ends COLO or the initial copy. Returns whether the guest was in COLO.
    private func leaveMigration(
        since start: ContinuousClock.Instant, until deadline: ContinuousClock.Instant, _ stop: String?,
        _ report: inout Report
    ) async -> Bool {
        var leftColo = false
        var lastHeartbeat = start
        var cancelled = false
        while clock.now < deadline {
            guard let answer = await attempt("query-migrate", nil, &report) else {
                if report.guestGone { return leftColo }
                continue
            }
            let waited = clock.now - start
            switch answer["status"]?.stringValue ?? "none" {
            case "colo" where stop == "internal-error":
                // QEMU would abort.
                report.clean = false
                report.problems.append(
                    "QEMU has stopped the guest for an error, and cannot leave COLO: 'system_reset' it, then "
                        + "'colo-blk detach --recover'")
                return false
            case "colo":
                // Takes effect within a millisecond or two; refused while it does.
                if !leftColo || clock.now - lastHeartbeat > .milliseconds(50) {
                    lastHeartbeat = clock.now
                    await attemptQuietly("x-colo-lost-heartbeat")
                }
                leftColo = true
            case "cancelling":
                // A cancel that fell into COLO: only this ends it. Refused, and harmless, in all other cases.
                if waited > .milliseconds(300) { await attemptQuietly("x-colo-lost-heartbeat") }
            case "setup", "active", "device", "pre-switchover", "wait-unplug", "postcopy-active", "postcopy-paused",
                "postcopy-recover":
                // With the agent's socket closed it fails by itself. A cancel could fall into COLO, so it comes late.
                if waited > .milliseconds(150), !cancelled {
                    cancelled = true
                    _ = await attempt("migrate_cancel", nil, &report)
                }
            default:
                return leftColo
            }
            try? await clock.sleep(for: .milliseconds(4))
        }
        return leftColo
    }

    /// Continues the guest when it was running before and our migration stopped it.
    private func resume(
        mustRun: Bool, until deadline: ContinuousClock.Instant, _ report: inout Report
    ) async -> Bool {
        // Once at least: what came before may have taken all the time, and the guest may run.
        repeat {
            guard let answer = await attempt("query-status", nil, &report) else {
                if report.guestGone { return false }
                continue
            }
            if answer["running"]?.boolValue == true { return true }
            guard mustRun else { return false }
            switch answer["status"]?.stringValue ?? "" {
            case "paused", "postmigrate", "finish-migrate", "colo", "prelaunch":
                _ = await attempt("cont", nil, &report)
            case "shutdown", "guest-panicked", "internal-error", "io-error", "watchdog", "inmigrate":
                report.problems.append("the guest is \(answer["status"]?.stringValue ?? ""), which is not our doing")
                return false
            default: break
            }
            try? await clock.sleep(for: .milliseconds(4))
        } while clock.now < deadline
        return false
    }

    /// Exports through which we read the guest's disks, and QEMU's NBD server, which we have started for them.
    private func removeExports(_ report: inout Report) async {
        // A QEMU that does not know the question has no exports of ours.
        let answer = try? await qmp.execute("query-block-exports", timeout: stepTimeout)
        let ours = (answer?.arrayValue ?? []).compactMap { $0["id"]?.stringValue }.filter(GuestNames.isOurs)
        guard !ours.isEmpty else { return }
        for id in ours {
            // Refused when the export has just ended; then the server's end is all that is wanted.
            let done = try? await qmp.execute(
                "block-export-del", ["id": .string(id), "mode": "hard"], timeout: stepTimeout)
            if done != nil { report.removed += 1 }
        }
        if await attempt("nbd-server-stop", nil, &report) == nil { report.clean = false }
    }

    private func removeNodes(_ report: inout Report, until deadline: ContinuousClock.Instant) async {
        while true {
            guard let nodes = await attempt("query-named-block-nodes", ["flat": true], &report)?.arrayValue else {
                report.clean = false
                return
            }
            let ours = nodes.compactMap { $0["node-name"]?.stringValue }.filter(GuestNames.isOurs)
            guard !ours.isEmpty else { return }
            guard clock.now < deadline else {
                report.clean = false
                report.problems.append("block nodes of ours cannot be removed: \(ours.joined(separator: ", "))")
                return
            }
            for node in ours {
                // Refused while its job winds up, and for the filter, which goes with its job: tried again.
                let done = try? await qmp.execute("blockdev-del", ["node-name": .string(node)], timeout: stepTimeout)
                if done != nil { report.removed += 1 }
            }
            try? await clock.sleep(for: .milliseconds(5))
        }
    }

    private func removeChardevs(_ report: inout Report) async {
        guard let chardevs = await attempt("query-chardev", nil, &report)?.arrayValue else {
            report.clean = false
            return
        }
        for entry in chardevs {
            guard let label = entry["label"]?.stringValue, GuestNames.isOurs(label) else { continue }
            if keepsNetworkClosed, GuestNames.isGate(label) { continue }
            if await attempt("chardev-remove", ["id": .string(label)], &report) != nil {
                report.removed += 1
            } else {
                report.clean = false
            }
        }
    }

    private func restoreSettings(_ report: inout Report) async {
        guard let answer = await attempt("query-migrate-capabilities", nil, &report) else {
            report.clean = false
            return
        }
        let wanted = saved?.capabilities ?? ["x-colo": false]
        let now = SavedGuestState.table(answer)
        let changes = wanted.filter { now[$0.key] != nil && now[$0.key] != $0.value }.sorted { $0.key < $1.key }
        if !changes.isEmpty {
            let list = changes.map { JSONValue.object(["capability": .string($0.key), "state": .bool($0.value)]) }
            if await attempt("migrate-set-capabilities", ["capabilities": .array(list)], &report) == nil {
                report.clean = false
            }
        }
        guard let parameters = saved?.parameters, !parameters.isEmpty else { return }
        let arguments = JSONValue.object(parameters.mapValues(JSONValue.whole))
        if await attempt("migrate-set-parameters", arguments, &report) == nil { report.clean = false }
    }

    // MARK: Helpers

    var stepTimeout: Duration { .milliseconds(250) }

    /// Executes one command; an error is logged and noted, once per wording.
    @discardableResult
    func attempt(_ name: String, _ arguments: JSONValue?, _ report: inout Report) async -> JSONValue? {
        do {
            return try await qmp.execute(name, arguments, timeout: stepTimeout)
        } catch {
            let text = "\(error)"
            if case .closed = error { report.guestGone = true }
            if report.problems.last != text, report.problems.count < 32 { report.problems.append(text) }
            log.warning("restoration step failed", metadata: ["error": "\(text)"])
            return nil
        }
    }

    /// Executes a command that may well be refused; whether it helped is seen by the state that follows.
    private func attemptQuietly(_ name: String) async {
        do {
            try await qmp.execute(name, timeout: stepTimeout)
        } catch {
            log.debug("restoration step", metadata: ["error": "\(error)"])
        }
    }
}
