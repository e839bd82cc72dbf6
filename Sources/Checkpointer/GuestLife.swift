/// The life that a protected guest leads besides its checkpoints: what its QEMU tells of stops, resets and its end, and
/// what follows for the protection. Reads no clock, asks nobody.
///
/// One rule keeps guests safe: **QEMU is not let into a checkpoint while the guest does not run.** A checkpoint ends with
/// QEMU starting the guest, whoever had stopped it; it wakes a sleeping guest half; and from some states, such as the
/// panicked one, or the one behind a reset while stopped, QEMU aborts instead (7.2.22 seen). So checkpoints wait until the
/// guest runs again.
///
/// QEMU's own stop of each checkpoint is told by the same event as an operator's. They are told apart by time: a stop that
/// was stamped before we answered QEMU's request, or while no request was answered, is not the checkpoint's.
public struct GuestLife: Sendable, Equatable {
    /// What QEMU tells. Times are nanoseconds of the host's wall clock, with which QEMU stamps its events.
    public enum Happening: Sendable, Equatable {
        case stopped(at: UInt64)
        case resumed
        /// The guest sleeps (ACPI S3).
        case suspended
        case woke
        /// The machine was reset, by the guest itself or from outside.
        case reset(byGuest: Bool)
        /// The guest's kernel says that it cannot go on. What QEMU does then comes as an event of its own.
        case panicked
        /// QEMU ends, or keeps a guest that is off.
        case shutDown(Cause)
        /// A drive was opened or closed.
        case mediumMoved(drive: String)
        /// A device is gone.
        case deviceRemoved(String)
    }

    /// Why QEMU ends, as its SHUTDOWN event says.
    public enum Cause: Sendable, Equatable {
        case guestPoweredOff, guestReset, guestPanicked
        case quit, signal, window, hostReset
        /// QEMU cannot go on.
        case error
        case unknown(String)

        public init(_ reason: String) {
            self =
                switch reason {
                case "guest-shutdown": .guestPoweredOff
                case "guest-reset": .guestReset
                case "guest-panic": .guestPanicked
                case "host-qmp-quit": .quit
                case "host-signal": .signal
                case "host-ui": .window
                case "host-qmp-system-reset": .hostReset
                case "host-error": .error
                default: .unknown(reason)
                }
        }

        /// Whether somebody wished it: then there is nothing to fail over.
        public var isOrderly: Bool { self != .error }

        /// For people.
        public var words: String {
            switch self {
            case .guestPoweredOff: "the guest was powered off by its user"
            case .guestReset: "the guest was restarted by its user, and its QEMU ends then (-no-reboot)"
            case .guestPanicked:
                "the guest's kernel has panicked, and its QEMU ends then; the last checkpoint is of shortly before"
            case .quit: "the guest's QEMU was told to quit"
            case .signal: "the guest's QEMU was ended by a signal"
            case .window: "the window of the guest's QEMU was closed"
            case .hostReset: "the guest was reset from outside, and its QEMU ends then (-no-reboot)"
            case .error: "the guest's QEMU has failed and cannot go on"
            case .unknown(let reason): "the guest was shut down (\(reason))"
            }
        }
    }

    public enum Action: Sendable, Equatable {
        /// Ask QEMU what state the guest is in, and tell it with ``found(_:)``.
        case ask
        /// The guest does not run: no checkpoint until ``goOn``. The words say why, and what to do; they may be told anew.
        case halt(String)
        /// It runs again.
        case goOn
        /// A checkpoint that was under way has started a guest that somebody had stopped: stop it again.
        case stopAgain
        /// Worth a line for people; protection goes on.
        case say(String)
        /// The machine may have changed: compare it with what the replica has.
        case compareMachine(String)
        case end(Ending)
    }

    /// Why the protection is over.
    public enum Ending: Sendable, Equatable {
        /// The guest is off, or its QEMU ends, as somebody wished.
        case shutOff(String)
        /// QEMU ends, and nobody wished it.
        case died(String)
        /// What QEMU would do next is not what the guest's operator wishes.
        case refused(String)
    }

    private enum Phase: Sendable, Equatable {
        /// QEMU only mirrors disks; it never stops the guest. Next: entering.
        case copying
        /// The first copy of RAM, at the end of which QEMU stops the guest. Next: protected.
        case entering
        case protected
    }

    /// A request of QEMU that was answered: it stops the guest, if it runs, and starts it again.
    private struct Checkpoint: Sendable, Equatable {
        let repliedAt: UInt64
        /// Its stop was told, or will not be.
        var isStopTold = false
    }

    private var phase = Phase.copying
    private var underWay: [Checkpoint] = []
    /// Somebody else than a checkpoint has stopped the guest.
    private var isStopped = false
    private var isAsleep = false
    private var hasPanicked = false
    /// What was told last of a guest that does not run.
    private var told: String?

    public init() {}

    /// Whether no checkpoint may begin.
    public var isHalted: Bool { isStopped || isAsleep }

    // MARK: What we do

    /// The copy of RAM begins, at this time.
    public mutating func entering(at time: UInt64) {
        phase = .entering
        underWay = [Checkpoint(repliedAt: time)]
    }

    /// The copy of RAM is complete, and QEMU was told to go on.
    public mutating func entered() { phase = .protected }

    /// QEMU was told to take a checkpoint, at this time.
    public mutating func replied(at time: UInt64) {
        // Each one ends before the next is asked for; more would mean that QEMU's events are not told.
        if underWay.count == Self.underWayMax { underWay.removeFirst() }
        underWay.append(Checkpoint(repliedAt: time))
    }

    private static let underWayMax = 8

    // MARK: What QEMU tells

    public mutating func happened(_ happening: Happening) -> [Action] {
        switch happening {
        case .stopped(let time): return stopped(time)
        case .resumed: return resumed()
        case .suspended:
            isAsleep = true
            return halt("asleep")
        case .woke:
            isAsleep = false
            return isHalted ? [] : runs()
        case .reset(let byGuest):
            hasPanicked = false
            let who = byGuest ? "the guest has restarted" : "the guest was reset"
            return [.say("\(who); protection goes on")] + (isHalted ? [.ask] : [])
        case .panicked:
            hasPanicked = true
            return [.say("the guest's kernel has panicked")]
        case .shutDown(let cause):
            return [.end(cause.isOrderly ? .shutOff(cause.words) : .died(cause.words))]
        case .mediumMoved(let drive): return [.compareMachine("the medium of the drive '\(drive)' was changed")]
        case .deviceRemoved(let device): return [.compareMachine("the device '\(device)' was removed")]
        }
    }

    private mutating func stopped(_ time: UInt64) -> [Action] {
        if let index = underWay.firstIndex(where: { !$0.isStopTold && $0.repliedAt <= time }) {
            underWay[index].isStopTold = true
            // At the end of the first copy QEMU stops the guest by itself; before, somebody else does.
            return phase == .entering ? [.ask] : []
        }
        // A checkpoint that was let in a moment later finds the guest stopped, and tells no stop of its own.
        for index in underWay.indices { underWay[index].isStopTold = true }
        isStopped = true
        return halt("paused") + [.ask]
    }

    private mutating func resumed() -> [Action] {
        if underWay.isEmpty {
            isStopped = false
            return isHalted ? [] : runs()
        }
        underWay.removeFirst()
        return isStopped ? [.stopAgain] : []
    }

    /// QEMU's answer to ``Action/ask``, which was asked after the event: a state of `query-status`.
    public mutating func found(_ state: String) -> [Action] {
        switch phase {
        case .entering:
            guard !["running", "finish-migrate", "colo", "postmigrate"].contains(state) else { return [] }
            return [
                .end(
                    .refused(
                        "the guest was stopped (\(state)) while its memory was copied, and QEMU would start it at the "
                            + "end of the copy: resume it ('cont'), then attach"))
            ]
        case .copying where !isHalted && state != "running":
            // It was stopped before anybody listened.
            isStopped = true
            return halt(state)
        case .copying, .protected:
            guard isHalted, underWay.isEmpty else { return [] }
            if state == "running" {
                isStopped = false
                isAsleep = false
                return runs()
            }
            // "colo" is a checkpoint's: one that began a moment ago.
            return state == "colo" ? [] : halt(state)
        }
    }

    private mutating func runs() -> [Action] {
        guard told != nil else { return [] }
        told = nil
        return [.goOn]
    }

    private mutating func halt(_ state: String) -> [Action] {
        let words = haltWords(state)
        guard words != told else { return [] }
        told = words
        return [.halt(words)]
    }

    private func haltWords(_ state: String) -> String {
        let what =
            switch state {
            case "paused": "the guest is paused; 'cont' resumes it"
            case "asleep", "suspended": "the guest sleeps; 'system_wakeup' wakes it"
            case "prelaunch": "the guest was reset while it was stopped; 'cont' starts it"
            case "guest-panicked":
                "the guest's kernel has panicked, and QEMU has stopped it; 'system_reset' and 'cont' "
                    + "restart it"
            case "io-error": "QEMU has stopped the guest for an error of its disk; mend that, then 'cont'"
            case "watchdog": "the guest's watchdog has stopped it; 'cont' or 'system_reset'"
            case "internal-error":
                "QEMU has stopped the guest, which met an error; 'system_reset' and 'cont' restart it"
            case "restore-vm": "a 'loadvm' has failed and left the guest stopped; 'cont' resumes it"
            default: "the guest is stopped (\(state)); 'cont' resumes it"
            }
        let panic = hasPanicked && state == "paused" ? " (its kernel has panicked)" : ""
        return "\(what)\(panic). Checkpoints wait until it runs"
    }
}
