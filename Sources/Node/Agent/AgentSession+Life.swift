import Checkpointer
import Logging
import NIOCore
import QEMU
import Synchronization
import Units

/// What QEMU tells while it is protected, and what the core asks of it.
extension AgentSession {
    func watchEvents(_ core: NIOLoopBound<AgentCore>, _ guest: ProtectedGuest) async throws {
        let events = relay.events
        try await loop.submit { [self] in
            core.value.guest = GuestDoors(
                ask: { [self] in askGuestState(core) },
                stop: { [relay] in Task { _ = try? await relay.execute("stop") } },
                compareMachine: { [self] words in compareMachineSoon(guest, words) },
                checkMigration: { [self] in checkMigration() },
                say: { [progress] in progress.say($0) })
        }.get()
        Task { [self] in
            for await event in events {
                log.debug("\(event.name) \(event.data)")
                if let happening = GuestLife.Happening(event) {
                    if case .shutDown(let cause) = happening { shutdownSeen.withLock { $0 = cause } }
                    loop.execute { core.value.happened(happening) }
                } else {
                    watchOurs(event)
                }
            }
        }
        askGuestState(core)
    }

    /// Events of what we have put into the guest.
    private func watchOurs(_ event: QMPEvent) {
        switch event.name {
        case "BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED", "BLOCK_JOB_ERROR":
            guard let job = event.data["device"]?.stringValue, GuestNames.isOurs(job) else { return }
            let detail = event.data["error"]?.stringValue.map { ": \($0)" } ?? ""
            end.yield(.mirrorLost("the mirror job \(job) ended (\(event.name))\(detail)"))
        case "COLO_EXIT":
            let reason = event.data["reason"]?.stringValue ?? "unknown"
            end.yield(.migrationEnded("QEMU left COLO (\(reason))"))
        default: break
        }
    }

    private func askGuestState(_ core: NIOLoopBound<AgentCore>) {
        Task { [relay, loop] in
            guard let state = try? await relay.execute("query-status")["status"]?.stringValue else { return }
            loop.execute { core.value.found(state) }
        }
    }

    /// QEMU is not asked for checkpoints by anybody but us. Where it has left COLO without telling, as it does when
    /// somebody tries to migrate the guest (7.2.22 seen), no checkpoint will ever come.
    private func checkMigration() {
        Task { [relay, end] in
            guard let state = try? await relay.execute("query-migrate")["status"]?.stringValue, state != "colo" else {
                return
            }
            end.yield(
                .migrationEnded(
                    "QEMU takes no more checkpoints, since its migration is '\(state)': somebody has tried to migrate "
                        + "the guest, or to cancel our migration. Leave that while it is protected; if attach finds a "
                        + "migration that never ends, only a new QEMU can be protected"))
        }
    }

    /// Whether the guest stands still by somebody's wish, as far as is known.
    var guestIsHalted: Bool {
        get async {
            guard let core = core.withLock({ $0 }) else { return false }
            return (try? await loop.submit { core.value.life.isHalted }.get()) ?? false
        }
    }

    // MARK: The machine

    /// Waits while the guest does not run: the copy of its RAM would end with QEMU starting it.
    func waitUntilItRuns(_ core: NIOLoopBound<AgentCore>) async throws {
        while let words = try await loop.submit({ core.value.life.isHalted ? core.value.haltWords ?? "" : nil }).get() {
            progress.show(words)
            try await Task.sleep(for: .milliseconds(50))
            try Task.checkCancellation()
        }
    }

    /// While disks are copied QEMU still lets devices be plugged; from the migration's start on it does not.
    func expectSameMachine(_ guest: ProtectedGuest) async throws {
        let shape = GuestShape(try await GuestAnswers.survey(relay))
        guard let change = shape.change(since: guest.shape) else { return }
        throw Refused(
            description: "the guest's machine was changed while its disks were copied (\(change)): attach again")
    }

    /// A drive that is changed is opened and closed: what counts is what is found when it has come to rest.
    private func compareMachineSoon(_ guest: ProtectedGuest, _ words: String) {
        let mine = comparisons.withLock { count in
            count += 1
            return count
        }
        Task { [self] in
            try? await Task.sleep(for: .milliseconds(300))
            guard comparisons.withLock({ $0 == mine }) else { return }
            do {
                let shape = GuestShape(try await GuestAnswers.survey(relay))
                guard let change = shape.change(since: guest.shape) else { return }
                end.yield(
                    .guestChanged(
                        "\(words) (\(change)), so that the replica would start another machine: the guest is described "
                            + "anew"))
            } catch {
                log.warning("the machine could not be compared with the replica's", metadata: ["error": "\(error)"])
            }
        }
    }
}

extension GuestLife.Happening {
    /// Nil for an event that is none of the guest's life.
    init?(_ event: QMPEvent) {
        switch event.name {
        case "STOP":
            let seconds = UInt64(clamping: event.seconds), microseconds = UInt64(clamping: event.microseconds)
            let (whole, overflow) = seconds.multipliedReportingOverflow(by: 1_000_000_000)
            self = .stopped(at: overflow ? .max : whole &+ microseconds &* 1000)
        case "RESUME": self = .resumed
        case "SUSPEND": self = .suspended
        case "WAKEUP": self = .woke
        case "RESET": self = .reset(byGuest: event.data["guest"]?.boolValue ?? false)
        case "GUEST_PANICKED": self = .panicked
        case "SHUTDOWN": self = .shutDown(GuestLife.Cause(event.data["reason"]?.stringValue ?? ""))
        case "DEVICE_TRAY_MOVED":
            let names = [event.data["id"], event.data["device"]].compactMap { $0?.stringValue }
            self = .mediumMoved(drive: names.first { !$0.isEmpty } ?? "?")
        case "DEVICE_DELETED":
            guard let device = (event.data["device"] ?? event.data["path"])?.stringValue else { return nil }
            // The back ends of devices are told too.
            self = .deviceRemoved(device)
        default: return nil
        }
    }
}
