import Units

/// The order of one established session, as both sides see it: which frames of which epoch are legal next.
///
/// Each side runs its own copy: the primary before it sends (`toSecondary`) and on what arrives (`toPrimary`), the
/// secondary the other way round. The sides see the two directions merged differently; the rules are such that a frame
/// which is legal where it was sent is legal where it arrives.
///
/// First the secondary tells what its disks hold (digests), and when it has the layout what its RAM cache holds. Then,
/// per epoch: disk frames while it is open; `request`, `reply`; `send` ends it for disk frames; RAM batches, digests and
/// figures; `size`; device state; `seal`; then `received` (or `ready` after the initial copy) and `loaded`.
struct EpochFlow: Equatable {
    /// How far the content of the newest epoch that is not sealed has got.
    enum Phase: Equatable {
        /// Only disk frames (in the initial copy also identity, layout and RAM). Next: ram.
        case open
        /// `send` was said; RAM batches. Next: device.
        case ram
        /// `size` was said; pieces of device state until nothing is left, then `seal`. Next: open (of the next epoch).
        case device(left: UInt64, offset: UInt64)
    }

    /// Longest device state in bytes.
    static let deviceStateMax: UInt64 = 256 << 20

    let generation: Generation
    let first: Epoch
    /// The epoch that disk frames belong to now.
    private(set) var open: Epoch
    /// The oldest epoch that is not sealed: `open`, or the one before when `send` was said and `seal` was not.
    private(set) var unsealed: Epoch
    private(set) var phase = Phase.open
    /// Whether the secondary has told what all of its disks hold. Until then it must not be changed by disk frames.
    private(set) var hasDigests = false
    private var hasIdentity = false
    private var hasLayout = false
    /// Whether the secondary has told what its RAM cache holds. Until then it must not get pages.
    private(set) var hasKnown = false
    /// By command: the newest epoch for which it was said; before the first time, the epoch before its first.
    private var said: [Epoch]

    /// Whether a session may have this generation and first epoch: neither is 0, which both mean "none", and epochs
    /// cannot run out.
    static func canStart(_ generation: Generation, _ first: Epoch) -> Bool {
        generation > Generation(0) && first > .none && first.rawValue < 1 << 62
    }

    /// Traps unless ``canStart(_:_:)``.
    init(generation: Generation, first: Epoch) {
        precondition(Self.canStart(generation, first), "no session has generation \(generation), epoch \(first)")
        let before = Epoch(first.rawValue - 1)
        self.generation = generation
        self.first = first
        open = first
        unsealed = first
        said = Command.allCases.map { $0.rule.scope == .later ? first : before }
    }

    /// The newest epoch for which `command` was said.
    func newest(_ command: Command) -> Epoch { said[Int(command.rawValue)] }

    /// The newest epoch that is committed; the one before the first when none is.
    var committed: Epoch { newest(.ready) < first ? newest(.ready) : newest(.received) }

    /// The newest epoch that is loaded; follows `committed`. `ready` says both.
    var loaded: Epoch { newest(.ready) < first ? newest(.ready) : newest(.loaded) }

    /// Sealed epochs that are not committed.
    var uncommittedSealed: UInt64 { unsealed.rawValue - 1 - committed.rawValue }

    /// Whether `send` was said for an epoch that is not sealed yet.
    var isTransferring: Bool { phase != .open }

    // MARK: Towards the secondary

    /// Checks a frame of the primary and takes it in. Returns what is wrong, or nil.
    mutating func toSecondary(_ info: FrameInfo) -> String? {
        if let wrong = checkGeneration(info) { return wrong }
        switch info.frame {
        case .diskWrite, .diskZeroes, .diskDiscard:
            guard hasDigests else { return "the last diskDigests comes before the first disk frame" }
            return info.epoch == open ? nil : "disk frames belong to epoch \(open) now"
        case .identity:
            guard info.epoch == first, unsealed == first, !hasIdentity else {
                return "identity comes once, within epoch \(first)"
            }
            hasIdentity = true
        case .ramLayout:
            guard info.epoch == first, unsealed == first, !hasLayout, !isInDevicePhase else {
                return "ramLayout comes once, before the RAM of epoch \(first)"
            }
            hasLayout = true
        case .ramBatch: return ramBatch(info)
        case .ramDigests, .ramFigures, .diskCheck, .primaryFigures: return behindRam(info)
        case .deviceState: return deviceState(info)
        case .seal: return seal(info)
        case .command(let command): return forward(command, info)
        case .heartbeat, .guestState: return outsideEpochs(info)
        case .hello, .welcome, .refuse, .credit, .bye, .diskDigests, .ramVerify, .diskVerify, .ramRepair, .ramKnown:
            return "a primary does not send this within a session"
        }
        return nil
    }

    private var isInDevicePhase: Bool {
        if case .device = phase { return true }
        return false
    }

    private func checkGeneration(_ info: FrameInfo) -> String? {
        info.generation == generation
            ? nil : "generation \(info.generation) was fenced off, the session has \(generation)"
    }

    private func outsideEpochs(_ info: FrameInfo) -> String? {
        info.epoch == .none ? nil : "this frame belongs to no epoch and must carry 0"
    }

    private func ramBatch(_ info: FrameInfo) -> String? {
        guard info.epoch == unsealed else { return "RAM batches belong to epoch \(unsealed) now" }
        guard hasLayout else { return "ramLayout comes before the first RAM batch" }
        guard hasKnown else { return "the last ramKnown comes before the first RAM batch" }
        switch phase {
        case .open: return unsealed == first ? nil : "RAM batches come after send(\(unsealed))"
        case .ram: return nil
        case .device: return "no RAM batch may follow size(\(unsealed))"
        }
    }

    /// Digests and figures: behind the RAM that they, or most of them, speak of.
    private func behindRam(_ info: FrameInfo) -> String? {
        guard info.epoch == unsealed, phase == .ram, hasLayout else {
            return "\(info.frame) comes between send(\(unsealed)) and size(\(unsealed))"
        }
        let isDigests = info.frame == .ramDigests || info.frame == .diskCheck
        return isDigests && info.epoch == first ? "\(info.frame) does not belong to the initial copy" : nil
    }

    private mutating func deviceState(_ info: FrameInfo) -> String? {
        guard info.epoch == unsealed, case .device(let left, let offset) = phase else {
            return "device state comes after size(\(unsealed))"
        }
        guard info.value == offset, info.length > 0, info.length <= left else {
            return "the next piece of device state starts at \(offset) and has 1 to \(left) bytes"
        }
        phase = .device(left: left - info.length, offset: offset + info.length)
        return nil
    }

    private mutating func seal(_ info: FrameInfo) -> String? {
        guard info.epoch == unsealed, case .device(let left, _) = phase else {
            return "seal comes after size(\(unsealed)) and its device state"
        }
        guard left == 0 else { return "\(left) bytes of the device state of epoch \(unsealed) are missing" }
        guard hasIdentity else { return "identity comes before seal(\(first))" }
        phase = .open
        unsealed = unsealed.next
        return nil
    }

    private mutating func forward(_ command: Command, _ info: FrameInfo) -> String? {
        if let wrong = checkRule(command, info.epoch, direction: .toSecondary) { return wrong }
        switch command {
        case .request:
            guard info.epoch == open else { return "only the open epoch \(open) can be requested" }
            guard committed >= first else { return "ready(\(first)) comes before the first request" }
        case .send:
            guard info.epoch == open, !isTransferring else {
                return "send comes for the open epoch \(open), once every earlier epoch is sealed"
            }
            guard uncommittedSealed <= 1 else {
                return "two sealed epochs wait for their commit; received(\(committed.next)) comes before send(\(open))"
            }
            phase = .ram
            open = open.next
        case .size:
            guard info.epoch == unsealed, phase == .ram else { return "size comes once, after send(\(unsealed))" }
            guard hasLayout else { return "ramLayout comes before size(\(first))" }
            guard hasKnown else { return "the last ramKnown comes before size(\(first))" }
            guard info.value > 0, info.value <= Self.deviceStateMax else {
                return "device state has 1 to \(Self.deviceStateMax) bytes"
            }
            phase = .device(left: info.value, offset: 0)
        case .ready, .reply, .received, .loaded:
            preconditionFailure("the direction was checked")
        }
        said[Int(command.rawValue)] = info.epoch
        return nil
    }

    /// What the table of commands says, whatever the rest of the state: direction, scope, once per epoch without gaps,
    /// and behind its predecessor.
    private func checkRule(_ command: Command, _ epoch: Epoch, direction: Command.Direction) -> String? {
        let rule = command.rule
        guard rule.direction == direction else {
            return rule.direction == .toPrimary ? "only a secondary says \(command)" : "only a primary says \(command)"
        }
        switch rule.scope {
        case .every: break
        case .first:
            guard epoch == first else { return "\(command) belongs to epoch \(first) only" }
        case .later:
            guard epoch > first else { return "\(command) does not belong to the initial copy" }
        }
        let next = newest(command).next
        guard epoch == next else { return "\(command)(\(next)) would be next of its kind" }
        guard let predecessor = rule.predecessor else { return nil }
        if epoch == first, predecessor.rule.scope == .later { return nil }
        return newest(predecessor) >= epoch ? nil : "\(predecessor)(\(epoch)) comes before \(command)(\(epoch))"
    }

    // MARK: Towards the primary

    /// Checks a frame of the secondary and takes it in. Returns what is wrong, or nil.
    mutating func toPrimary(_ info: FrameInfo) -> String? {
        if let wrong = checkGeneration(info) { return wrong }
        switch info.frame {
        case .credit, .heartbeat, .ramVerify, .diskVerify, .ramRepair:
            return outsideEpochs(info)
        case .diskDigests:
            guard !hasDigests else { return "diskDigests come once, and their last frame was here" }
            if let wrong = outsideEpochs(info) { return wrong }
            hasDigests = info.value == 1
        case .ramKnown:
            guard hasLayout, !hasKnown else { return "ramKnown answers ramLayout, up to the last one" }
            if let wrong = outsideEpochs(info) { return wrong }
            hasKnown = info.value == 1
        case .command(let command):
            return backward(command, info)
        default:
            return "a secondary does not send this within a session"
        }
        return nil
    }

    private mutating func backward(_ command: Command, _ info: FrameInfo) -> String? {
        if let wrong = checkRule(command, info.epoch, direction: .toPrimary) { return wrong }
        if command == .ready || command == .received {
            guard info.epoch < unsealed else { return "epoch \(info.epoch) is not sealed, so it cannot be committed" }
            guard loaded == committed else { return "loaded(\(committed)) comes before \(command)(\(info.epoch))" }
        }
        said[Int(command.rawValue)] = info.epoch
        return nil
    }
}
