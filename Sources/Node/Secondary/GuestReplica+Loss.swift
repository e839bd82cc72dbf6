import Checkpointer
import Link
import Logging
import Units

/// What is done when the primary is lost. ``PrimaryWatch`` decides.
extension GuestReplica {
    /// Whether there is anything that a failover could start.
    private var hasCheckpoint: Bool { store.record != nil && store.damage == nil && !store.isPromoted }

    /// A session's primary has not been heard for some beats.
    func primaryFellSilent(_ source: LinkSession) {
        guard session === source else { return }
        perform(watch.fellSilent(hasCheckpoint: hasCheckpoint))
    }

    /// A primary that was silent has spoken.
    func primaryHeard(_ source: LinkSession) {
        guard session === source else { return }
        perform(watch.heard())
    }

    /// A session is over, and was counted out already.
    func sessionEnded(_ ending: PrimaryWatch.Ending) {
        perform(watch.ended(parting ?? ending, hasCheckpoint: hasCheckpoint))
        parting = nil
    }

    private func perform(_ actions: [PrimaryWatch.Action]) {
        for action in actions {
            switch action {
            case .report(let loss):
                lossWords = words(loss)
                log.error("primary lost", metadata: ["guest": "\(name)", "reason": "\(loss.rawValue)"])
                noteState()
            case .welcomeBack:
                lossWords = nil
                log.notice("the primary is there again", metadata: ["guest": "\(name)"])
                noteState()
            case .tell(let loss):
                runOnLoss(loss)
            case .fence(let loss):
                Task { await fence(loss) }
            case .promote:
                Task { await promoteItself() }
            case .stay(let reason):
                say(.failover, "not started by itself: \(words(reason))", isError: true)
            }
        }
    }

    private func words(_ loss: PrimaryWatch.Loss) -> String {
        let what =
            switch loss {
            case .silent: "it is silent"
            case .disconnected: "the link has ended without a farewell"
            case .guestDied: "its QEMU has died"
            }
        return "the primary is lost: \(what). Make sure that it is off (fence it), then 'colo-blk failover \(name)'"
    }

    private func words(_ reason: PrimaryWatch.Reason) -> String {
        switch reason {
        case .stale:
            "the primary was lost while it resynced, so that the last checkpoint is of before; 'colo-blk failover "
                + "\(name)' starts it all the same"
        case .notFenced:
            "the fence command failed, so that the primary may still run; when it is off, 'colo-blk failover \(name)'"
        }
    }

    // MARK: Commands

    /// Facts for a command, see docs/operations.md. Values that come from the primary are cut to what a shell shows as
    /// one word or line, and are never part of the command's text.
    private func facts(_ event: String, _ reason: String) -> [String: String] {
        [
            "COLO_BLK_EVENT": event, "COLO_BLK_GUEST": name, "COLO_BLK_STORE": store.directory,
            "COLO_BLK_EPOCH": "\(store.committed)", "COLO_BLK_GENERATION": "\(store.generation)",
            "COLO_BLK_REASON": reason, "COLO_BLK_PRIMARY": String(primaryLabel.prefix(128)),
        ]
    }

    private func runOnLoss(_ loss: PrimaryWatch.Loss) {
        guard let text = settings.onLoss else { return }
        guard !isTelling else {
            return say(.command, "--on-loss is not run: it is still at the last loss", isError: true)
        }
        isTelling = true
        let facts = facts("loss", loss.rawValue)
        Task {
            let outcome = await HookCommand(text: text).run(environment: facts)
            isTelling = false
            say(.command, "--on-loss has run: \(outcome)", isError: !outcome.isSuccess)
        }
    }

    /// Runs a fence command; true when it says that the primary cannot go on.
    private func runFence(_ text: String, reason: String) async -> HookCommand.Outcome {
        log.notice("fencing the primary", metadata: ["guest": "\(name)"])
        let outcome = await HookCommand(text: text).run(environment: facts("fence", reason))
        say(.command, "the fence command has run: \(outcome)", isError: !outcome.isSuccess)
        return outcome
    }

    /// For a failover that somebody asked for. Throws when the primary may still run.
    func fenceFirst(_ text: String) async throws {
        let outcome = await runFence(text, reason: watch.loss?.rawValue ?? "asked")
        guard outcome.isSuccess else {
            throw GuestStore.Failed(
                description: "the fence command failed (\(outcome)), so that the primary may still run: '\(name)' was "
                    + "not started")
        }
    }

    private func fence(_ loss: PrimaryWatch.Loss) async {
        guard let text = settings.fenceCommand else { return perform(watch.fenced(false)) }
        perform(watch.fenced(await runFence(text, reason: loss.rawValue).isSuccess))
    }

    private func promoteItself() async {
        do {
            // One that its operator had stopped is not started against that wish.
            let options = FailoverOptions(paused: haltWords != nil, force: true)
            let report = try await failover(options, isByItself: true)
            watch.promoted(true)
            log.notice(
                "failed over by itself", metadata: ["guest": "\(name)", "qmp": "\(report.qmpSocket ?? "-")"])
        } catch {
            watch.promoted(false)
            log.error("the failover failed", metadata: ["guest": "\(name)", "reason": "\(error)"])
        }
    }

    private func say(_ kind: GuestEvent.Kind, _ message: String, isError: Bool) {
        if isError { log.error("\(message)", metadata: ["guest": "\(name)"]) }
        tell(kind, message)
    }
}
