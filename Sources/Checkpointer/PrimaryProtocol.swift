import Units

/// The primary's side of the link protocol: tags what it sends with epochs, and says what an answer means. Decides
/// only; the caller performs.
public struct PrimaryProtocol: Sendable, Equatable {
    /// What an arrived frame means.
    public enum Action: Equatable, Sendable {
        /// Read the welcome; then call ``welcomed(generation:firstEpoch:)``.
        case readWelcome
        /// The secondary refused; read why and give up.
        case refused
        /// The epoch is committed: `ready` for the initial copy, `received` later. Packets of it may leave.
        case committed(Epoch)
        /// The secondary's cache holds the epoch.
        case loaded(Epoch)
        /// The secondary has seen the request; nothing is to be done.
        case replied(Epoch)
        /// The secondary takes more.
        case credit
        /// Digests of what the secondary holds, the last ones or not.
        case digests(isLast: Bool)
        /// Digests of what the secondary's RAM cache holds, the last ones or not.
        case known(isLast: Bool)
        /// The secondary asks for page digests of the next checkpoint.
        case verifyRam
        /// The secondary asks about blocks of a disk.
        case verifyDisk
        /// The secondary asks for pages to be sent whole.
        case repairRam
        /// A heartbeat came back.
        case echoed
        /// The secondary left in order; close.
        case close
    }

    private enum State: Sendable, Equatable {
        /// Next: awaitingWelcome, closed.
        case idle
        /// Hello is out. Next: welcomed, closed.
        case awaitingWelcome
        /// Welcome is here and being read. Next: running, closed.
        case readingWelcome
        /// Next: closed.
        case running(EpochFlow)
        /// Next: none.
        case closed
    }

    private var state = State.idle

    public init() {}

    public var isClosed: Bool { state == .closed }
    public var isRunning: Bool { flow != nil }

    /// The generation of the session, once welcomed.
    public var generation: Generation? { flow?.generation }
    /// The epoch that disk frames belong to now, once welcomed.
    public var openEpoch: Epoch? { flow?.open }
    /// The epoch that RAM, device state and seal belong to now.
    public var unsealedEpoch: Epoch? { flow?.unsealed }
    /// The newest epoch that the secondary has committed in this session; nil when none is.
    public var committedEpoch: Epoch? {
        guard let flow, flow.committed >= flow.first else { return nil }
        return flow.committed
    }
    /// Sealed epochs whose commit is not known yet: 0 to 2.
    public var uncommittedSealed: UInt64 { flow?.uncommittedSealed ?? 0 }
    /// Whether `send` was said for an epoch that is not sealed yet.
    public var isTransferring: Bool { flow?.isTransferring ?? false }
    /// Whether the secondary has told what its RAM cache holds, so that RAM batches may be sent.
    public var isRamKnown: Bool { flow?.hasKnown ?? false }
    /// Whether the initial copy is committed, `send` may follow a request, and the number of uncommitted epochs allows
    /// another checkpoint.
    public var mayCheckpoint: Bool {
        guard let flow else { return false }
        return flow.committed >= flow.first && !flow.isTransferring && flow.uncommittedSealed <= 1
    }

    private var flow: EpochFlow? {
        if case .running(let flow) = state { return flow }
        return nil
    }

    // MARK: Sending. Each returns the epoch to put into the frame header.

    /// Hello goes out.
    public mutating func connected() throws(ProtocolViolation) {
        guard state == .idle else { throw ours(.hello, .none, "hello is the first frame") }
        state = .awaitingWelcome
    }

    /// The welcome was read; `generation` and `firstEpoch` are its own.
    public mutating func welcomed(generation: Generation, firstEpoch: Epoch) throws(ProtocolViolation) {
        guard state == .readingWelcome, EpochFlow.canStart(generation, firstEpoch) else {
            state = .closed
            throw ProtocolViolation(
                culprit: .peer, came: .welcome,
                expected: "welcome answers hello, with a generation and a first epoch above 0", epoch: firstEpoch,
                streamOffset: 0)
        }
        state = .running(EpochFlow(generation: generation, first: firstEpoch))
    }

    public mutating func sendIdentity() throws(ProtocolViolation) -> Epoch { try send(.identity, \.first) }
    public mutating func sendRamLayout() throws(ProtocolViolation) -> Epoch { try send(.ramLayout, \.first) }
    /// Data, zeroes or a discard of a disk; not before the last digests have come.
    public mutating func sendDisk() throws(ProtocolViolation) -> Epoch { try send(.diskWrite, \.open) }
    public mutating func sendRamBatch() throws(ProtocolViolation) -> Epoch { try send(.ramBatch, \.unsealed) }
    public mutating func sendRamDigests() throws(ProtocolViolation) -> Epoch { try send(.ramDigests, \.unsealed) }
    public mutating func sendRamFigures() throws(ProtocolViolation) -> Epoch { try send(.ramFigures, \.unsealed) }
    public mutating func sendDiskCheck() throws(ProtocolViolation) -> Epoch { try send(.diskCheck, \.unsealed) }
    public mutating func sendPrimaryFigures() throws(ProtocolViolation) -> Epoch {
        try send(.primaryFigures, \.unsealed)
    }
    /// Whether the guest runs; belongs to no epoch.
    public mutating func sendGuestState() throws(ProtocolViolation) { _ = try send(.guestState, { _ in .none }) }
    /// QEMU has asked for a checkpoint.
    public mutating func sendRequest() throws(ProtocolViolation) -> Epoch { try send(.command(.request), \.open) }
    /// The guest is stopped and its disks are drained: disk frames from now on belong to the next epoch.
    /// Returns the epoch that ended. Every epoch has one, the initial copy too.
    public mutating func sendBoundary() throws(ProtocolViolation) -> Epoch { try send(.command(.send), \.open) }
    /// All RAM of the epoch is out; `bytes` of device state follow.
    public mutating func sendSize(bytes: UInt64) throws(ProtocolViolation) -> Epoch {
        try send(.command(.size), \.unsealed, value: bytes)
    }
    public mutating func sendDeviceState(offset: UInt64, bytes: UInt64) throws(ProtocolViolation) -> Epoch {
        try send(.deviceState, \.unsealed, value: offset, length: bytes)
    }
    public mutating func sendSeal() throws(ProtocolViolation) -> Epoch { try send(.seal, \.unsealed) }

    /// Bye goes out, or the connection is gone.
    public mutating func closed() { state = .closed }

    private mutating func send(
        _ frame: SessionFrame, _ epochOf: (EpochFlow) -> Epoch, value: UInt64 = 0, length: UInt64 = 0
    ) throws(ProtocolViolation) -> Epoch {
        guard case .running(var flow) = state else { throw ours(frame, .none, "no session is running") }
        let epoch = epochOf(flow)
        let info = FrameInfo(frame, generation: flow.generation, epoch: epoch, value: value, length: length)
        if let wrong = flow.toSecondary(info) { throw ours(frame, epoch, wrong) }
        state = .running(flow)
        return epoch
    }

    // MARK: Receiving

    /// A frame has arrived whole and verified.
    public mutating func received(_ info: FrameInfo) throws(ProtocolViolation) -> Action {
        switch (info.frame, state) {
        case (_, .closed):
            throw violation(info, "the session is over")
        case (_, .idle):
            throw violation(info, "a secondary does not speak before hello")
        case (.bye, _):
            state = .closed
            return .close
        case (.refuse, _):
            state = .closed
            return .refused
        case (.welcome, .awaitingWelcome):
            state = .readingWelcome
            return .readWelcome
        case (_, .awaitingWelcome), (_, .readingWelcome):
            throw violation(info, "one welcome, or refuse, answers hello")
        case (_, .running(var flow)):
            if let wrong = flow.toPrimary(info) { throw violation(info, wrong) }
            state = .running(flow)
            return action(info)
        }
    }

    private func action(_ info: FrameInfo) -> Action {
        switch info.frame {
        case .command(.ready), .command(.received): .committed(info.epoch)
        case .command(.loaded): .loaded(info.epoch)
        case .command(.reply): .replied(info.epoch)
        case .credit: .credit
        case .ramVerify: .verifyRam
        case .diskVerify: .verifyDisk
        case .ramRepair: .repairRam
        case .heartbeat: .echoed
        case .diskDigests: .digests(isLast: info.value == 1)
        case .ramKnown: .known(isLast: info.value == 1)
        default: preconditionFailure("\(info.frame) is never legal in the flow of a primary")
        }
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
