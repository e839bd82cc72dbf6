import Units

/// The secondary's side of the link protocol: what arrived means what, and what may be said. Decides only; the caller
/// performs the actions and calls back with what became of them.
public struct SecondaryProtocol: Sendable, Equatable {
    /// What the caller does next.
    public enum Action: Equatable, Sendable {
        /// Decide about the hello; then call ``welcome(generation:firstEpoch:)`` or ``refuse()``.
        case decide
        /// Keep the identity of the guest with the open store, for the first epoch.
        case keepIdentity
        /// Make room for RAM of this layout.
        case layOutRam(Epoch)
        /// Buffer a disk frame in this epoch.
        case bufferDisk(Epoch)
        /// Stage a RAM batch of this epoch.
        case stageRam(Epoch)
        /// Compare these page digests with the cache once this epoch is in it.
        case keepRamDigests(Epoch)
        /// Remember what the primary's encoder made of this epoch.
        case keepRamFigures(Epoch)
        /// Compare these block digests with the disk as this epoch leaves it, once it is committed.
        case keepDiskCheck(Epoch)
        /// Remember what the primary says of itself.
        case keepPrimaryFigures(Epoch)
        /// Remember whether the guest runs.
        case keepGuestState
        /// `send` has come: the epoch gets no more disk frames; later ones belong to `opened`.
        case boundary(closed: Epoch, opened: Epoch)
        /// This many bytes of device state will come.
        case expectDeviceState(Epoch, bytes: UInt64)
        /// Append a piece of device state.
        case appendDeviceState(Epoch, offset: UInt64, bytes: UInt64)
        /// Verify the tally, make everything of the epoch complete, and commit; then call ``committed(_:)``.
        case commit(Epoch)
        /// Send this command. For `reply`, call ``replied(_:)`` with it.
        case say(Command, Epoch)
        /// Send the heartbeat back unchanged.
        case echo
        /// The peer left in order; close.
        case close
    }

    private enum State: Sendable, Equatable {
        /// Next: deciding, closed.
        case awaitingHello
        /// Next: running, closed.
        case deciding
        /// Next: closed.
        case running(EpochFlow)
        /// Next: none.
        case closed
    }

    private var state = State.awaitingHello

    public init() {}

    public var isClosed: Bool { state == .closed }

    /// The generation of the session, once welcomed.
    public var generation: Generation? { flow?.generation }
    /// The epoch that disk frames belong to now, once welcomed.
    public var openEpoch: Epoch? { flow?.open }
    /// Sealed epochs that are not committed: 0 to 2.
    public var uncommittedSealed: UInt64 { flow?.uncommittedSealed ?? 0 }

    private var flow: EpochFlow? {
        if case .running(let flow) = state { return flow }
        return nil
    }

    /// A frame has arrived whole and verified.
    public mutating func received(_ info: FrameInfo) throws(ProtocolViolation) -> Action {
        if info.frame == .bye, state != .closed {
            state = .closed
            return .close
        }
        switch state {
        case .awaitingHello:
            guard info.frame == .hello else { throw violation(info, "the first frame is hello") }
            state = .deciding
            return .decide
        case .deciding:
            throw violation(info, "nothing may come before welcome was sent")
        case .running(var flow):
            if let wrong = flow.toSecondary(info) { throw violation(info, wrong) }
            state = .running(flow)
            return action(info, flow)
        case .closed:
            throw violation(info, "the session is over")
        }
    }

    private func action(_ info: FrameInfo, _ flow: EpochFlow) -> Action {
        switch info.frame {
        case .identity: .keepIdentity
        case .ramLayout: .layOutRam(info.epoch)
        case .diskWrite, .diskZeroes, .diskDiscard: .bufferDisk(info.epoch)
        case .ramBatch: .stageRam(info.epoch)
        case .ramDigests: .keepRamDigests(info.epoch)
        case .ramFigures: .keepRamFigures(info.epoch)
        case .diskCheck: .keepDiskCheck(info.epoch)
        case .primaryFigures: .keepPrimaryFigures(info.epoch)
        case .guestState: .keepGuestState
        case .deviceState: .appendDeviceState(info.epoch, offset: info.value, bytes: info.length)
        case .seal: .commit(info.epoch)
        case .command(.request): .say(.reply, info.epoch)
        case .command(.send): .boundary(closed: info.epoch, opened: flow.open)
        case .command(.size): .expectDeviceState(info.epoch, bytes: info.value)
        case .heartbeat: .echo
        case .command, .hello, .welcome, .refuse, .credit, .bye, .diskDigests, .ramVerify,
            .diskVerify, .ramRepair, .ramKnown:
            preconditionFailure("\(info.frame) is never legal in the flow of a secondary")
        }
    }

    /// The hello was accepted and `welcome` goes out. `firstEpoch` is higher than any that the store has seen.
    public mutating func welcome(generation: Generation, firstEpoch: Epoch) throws(ProtocolViolation) {
        guard state == .deciding, EpochFlow.canStart(generation, firstEpoch) else {
            throw ours(.welcome, firstEpoch, "welcome answers hello, with a generation and a first epoch above 0")
        }
        state = .running(EpochFlow(generation: generation, first: firstEpoch))
    }

    /// Digests of what the disks hold go out. Disk frames are refused until `isLast` was said.
    public mutating func sendDigests(isLast: Bool) throws(ProtocolViolation) {
        try describe(.diskDigests, isLast)
    }

    /// Digests of what the RAM cache holds go out, in answer to the layout. RAM batches are refused until `isLast` was said.
    public mutating func sendKnown(isLast: Bool) throws(ProtocolViolation) {
        try describe(.ramKnown, isLast)
    }

    private mutating func describe(_ frame: SessionFrame, _ isLast: Bool) throws(ProtocolViolation) {
        guard case .running(var flow) = state else { throw ours(frame, .none, "no session is running") }
        let info = FrameInfo(frame, generation: flow.generation, value: isLast ? 1 : 0)
        if let wrong = flow.toPrimary(info) { throw ours(frame, .none, wrong) }
        state = .running(flow)
    }

    /// `refuse` goes out, to a hello or within a session; the session is over.
    public mutating func refuse() { state = .closed }

    /// The connection is gone.
    public mutating func disconnected() { state = .closed }

    /// `reply` was asked for by an action and goes out now.
    public mutating func replied(_ epoch: Epoch) throws(ProtocolViolation) {
        _ = try say(.reply, epoch)
    }

    /// The commit record of a sealed epoch is as durable as promised: `ready` or `received` goes out.
    public mutating func committed(_ epoch: Epoch) throws(ProtocolViolation) -> Action {
        try say(epoch == flow?.first ? .ready : .received, epoch)
    }

    /// The cache holds the committed epoch: `loaded` goes out. Not called for the first epoch, where `ready` says both.
    public mutating func applied(_ epoch: Epoch) throws(ProtocolViolation) -> Action {
        try say(.loaded, epoch)
    }

    private mutating func say(_ command: Command, _ epoch: Epoch) throws(ProtocolViolation) -> Action {
        guard case .running(var flow) = state else {
            throw ours(.command(command), epoch, "no session is running")
        }
        let info = FrameInfo(.command(command), generation: flow.generation, epoch: epoch)
        if let wrong = flow.toPrimary(info) { throw ours(.command(command), epoch, wrong) }
        state = .running(flow)
        return .say(command, epoch)
    }

    /// Records that the peer broke the order; the session is over.
    private mutating func violation(_ info: FrameInfo, _ expected: String) -> ProtocolViolation {
        state = .closed
        return ProtocolViolation(
            culprit: .peer, came: info.frame, expected: expected, epoch: info.epoch, streamOffset: info.streamOffset)
    }

    private func ours(_ frame: SessionFrame, _ epoch: Epoch, _ expected: String) -> ProtocolViolation {
        ProtocolViolation(culprit: .ourselves, came: frame, expected: expected, epoch: epoch, streamOffset: 0)
    }
}
