import Units

/// The secondary's judgement of its primary: whether it is lost, and what is to be done. Reads no clock, runs nothing.
///
/// A primary is lost when its connection ends without a farewell, when it is silent, or when it says that the guest has
/// died. It is not when somebody detached it, when the guest was powered off, or when this side ended the session. A
/// loss is told once. The replica becomes the guest by itself only when it was told to, when the last checkpoint is one
/// of the session that was lost, and when a fence command has said that the primary cannot go on.
public struct PrimaryWatch: Sendable, Equatable {
    /// What is done about a loss, beside reporting it.
    public struct Policy: Sendable, Equatable {
        /// A command is run that tells somebody.
        public var tells: Bool
        /// The replica becomes the guest once the primary is fenced.
        public var promotes: Bool

        public init(tells: Bool = false, promotes: Bool = false) {
            self.tells = tells
            self.promotes = promotes
        }
    }

    public enum Loss: String, Sendable, Equatable, CaseIterable {
        case silent
        case disconnected
        case guestDied = "guest-died"
    }

    /// How a session ended.
    public enum Ending: Sendable, Equatable {
        /// In order: somebody wished it, or this side refused to go on.
        case orderly
        case lost(Loss)
    }

    /// Why a replica does not become the guest by itself.
    public enum Reason: Sendable, Equatable, CaseIterable {
        /// The checkpoint is older than the session that was lost: the guest has run unprotected since.
        case stale
        /// The primary may go on.
        case notFenced
    }

    public enum Action: Sendable, Equatable {
        /// Say so in the log, the events and the status.
        case report(Loss)
        /// Run the command for losses.
        case tell(Loss)
        /// Run the fence command; then call ``fenced(_:)``.
        case fence(Loss)
        /// Start the guest; then call ``promoted(_:)``.
        case promote
        /// Say why the guest is not started.
        case stay(Reason)
        /// Say that the primary is there again.
        case welcomeBack
    }

    private enum State: Sendable, Equatable {
        /// No primary is connected, and none was lost. Next: present.
        case alone
        /// Next: alone, lost, fencing.
        case present
        /// Next: present, alone.
        case lost(Loss)
        /// Next: lost, promoting.
        case fencing(Loss)
        /// Next: lost, alone.
        case promoting(Loss)
    }

    public let policy: Policy
    private var state = State.alone
    /// A checkpoint of this session is committed.
    private var isCurrent = false

    public init(policy: Policy) {
        self.policy = policy
    }

    /// Why the primary counts as lost; nil when it does not.
    public var loss: Loss? {
        switch state {
        case .alone, .present: nil
        case .lost(let loss), .fencing(let loss), .promoting(let loss): loss
        }
    }

    /// Whether a primary may be let in now: not while another is being fenced off.
    public var mayConnect: Bool {
        switch state {
        case .alone, .present, .lost: true
        case .fencing, .promoting: false
        }
    }

    /// A primary was let in. Traps when it must not be.
    public mutating func connected() {
        precondition(mayConnect, "no primary is let in while one is being fenced")
        state = .present
        isCurrent = false
    }

    /// A checkpoint of the session was committed.
    public mutating func committed() { isCurrent = true }

    /// The primary has not been heard for ``Heartbeats/silentMax`` beats, see ``Silence``.
    ///
    /// - Parameter hasCheckpoint: whether there is anything that a failover could start.
    public mutating func fellSilent(hasCheckpoint: Bool) -> [Action] { lost(.silent, hasCheckpoint) }

    /// A primary that was silent has spoken again, on the same link.
    public mutating func heard() -> [Action] {
        guard case .lost = state else { return [] }
        state = .present
        return [.welcomeBack]
    }

    /// The session is over.
    public mutating func ended(_ ending: Ending, hasCheckpoint: Bool) -> [Action] {
        switch (state, ending) {
        case (.alone, _), (.fencing, _), (.promoting, _): return []
        case (.present, .orderly):
            state = .alone
            return []
        case (.lost, .orderly):
            state = .alone
            return [.welcomeBack]
        case (.present, .lost(let loss)), (.lost, .lost(let loss)):
            return lost(loss, hasCheckpoint)
        }
    }

    private mutating func lost(_ loss: Loss, _ hasCheckpoint: Bool) -> [Action] {
        guard state == .present else { return [] }
        // Nothing is lost with a primary that never came as far as a checkpoint.
        guard hasCheckpoint else {
            if loss != .silent { state = .alone }
            return []
        }
        var actions = [Action.report(loss)]
        if policy.tells { actions.append(.tell(loss)) }
        if policy.promotes, isCurrent {
            state = .fencing(loss)
            actions.append(.fence(loss))
        } else {
            state = .lost(loss)
            if policy.promotes { actions.append(.stay(.stale)) }
        }
        return actions
    }

    /// The fence command has ended; `success` when it said that the primary is off.
    public mutating func fenced(_ success: Bool) -> [Action] {
        guard case .fencing(let loss) = state else { return [] }
        state = success ? .promoting(loss) : .lost(loss)
        return [success ? .promote : .stay(.notFenced)]
    }

    /// The guest was started here, or could not be.
    public mutating func promoted(_ success: Bool) {
        guard case .promoting(let loss) = state else { return }
        state = success ? .alone : .lost(loss)
    }

    /// Somebody started the guest here by hand.
    public mutating func failedOver() { state = .alone }
}
