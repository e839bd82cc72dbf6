/// What a frame carries. 0 to 6 are QEMU's seven COLO commands with QEMU's own values and meaning; docs/wire-format.md
/// holds the same table, and a test compares the two.
public enum FrameKind: UInt8, Sendable, CaseIterable, CustomStringConvertible {
    case ready = 0
    case request = 1
    case reply = 2
    case send = 3
    case size = 4
    case received = 5
    case loaded = 6

    case hello = 16
    case welcome = 17
    case refuse = 18
    case ramLayout = 19
    case diskWrite = 20
    case diskZeroes = 21
    case diskDiscard = 22
    case ramBatch = 23
    case deviceState = 24
    case seal = 25
    case credit = 26
    case heartbeat = 27
    case bye = 28
    case identity = 29
    case diskDigests = 30
    case ramVerify = 31
    case ramDigests = 32
    case ramFigures = 33
    case ramKnown = 34
    case diskVerify = 40
    case diskCheck = 41
    case ramRepair = 42
    case primaryFigures = 43
    case guestState = 44

    /// The name that the document and messages use.
    public var name: String {
        switch self {
        case .ready: "ready"
        case .request: "request"
        case .reply: "reply"
        case .send: "send"
        case .size: "size"
        case .received: "received"
        case .loaded: "loaded"
        case .hello: "hello"
        case .welcome: "welcome"
        case .refuse: "refuse"
        case .ramLayout: "ramLayout"
        case .diskWrite: "diskWrite"
        case .diskZeroes: "diskZeroes"
        case .diskDiscard: "diskDiscard"
        case .ramBatch: "ramBatch"
        case .deviceState: "deviceState"
        case .seal: "seal"
        case .credit: "credit"
        case .heartbeat: "heartbeat"
        case .bye: "bye"
        case .identity: "identity"
        case .diskDigests: "diskDigests"
        case .ramVerify: "ramVerify"
        case .ramDigests: "ramDigests"
        case .ramFigures: "ramFigures"
        case .ramKnown: "ramKnown"
        case .diskVerify: "diskVerify"
        case .diskCheck: "diskCheck"
        case .ramRepair: "ramRepair"
        case .primaryFigures: "primaryFigures"
        case .guestState: "guestState"
        }
    }

    public var description: String { name }

    /// The lengths in bytes that a payload of this kind may have; checked with the header, before anything is buffered.
    public var payloadLengths: ClosedRange<Int> {
        switch self {
        case .ready, .request, .reply, .send, .received, .loaded: 0...0
        case .size: Size.length...Size.length
        case .hello: Hello.lengths
        case .welcome: Welcome.lengths
        case .refuse: Refuse.lengths
        case .ramLayout: RamLayoutPayload.lengths
        case .diskWrite: DiskWrite.prefixLength + 1...DiskWrite.prefixLength + LinkLimits.diskDataMax
        case .diskZeroes, .diskDiscard: DiskExtent.length...DiskExtent.length
        case .ramBatch: 1...LinkLimits.payloadMax
        case .deviceState: DeviceState.prefixLength + 1...DeviceState.prefixLength + LinkLimits.deviceChunkMax
        case .seal: Seal.length...Seal.length
        case .credit: Credit.length...Credit.length
        case .heartbeat: Heartbeat.length...Heartbeat.length
        case .bye: Bye.lengths
        case .identity: 1...LinkLimits.identityMax
        case .diskDigests: DiskDigests.lengths
        case .ramVerify: RamVerify.length...RamVerify.length
        case .ramDigests: RamDigests.lengths
        case .ramFigures: RamFigures.length...RamFigures.length
        case .ramKnown: RamKnown.lengths
        case .diskVerify: DiskVerify.length...DiskVerify.length
        case .diskCheck: DiskCheck.lengths
        case .ramRepair: RamRepair.lengths
        case .primaryFigures: PrimaryFigures.length...PrimaryFigures.length
        case .guestState: GuestState.lengths
        }
    }

    /// Whether a frame of this kind is content of its epoch: counted and digested by ``EpochTally``.
    public var isEpochContent: Bool {
        switch self {
        case .identity, .ramLayout, .diskWrite, .diskZeroes, .diskDiscard, .ramBatch, .ramDigests, .ramFigures,
            .diskCheck,
            .primaryFigures, .size, .deviceState:
            true
        default: false
        }
    }
}
