/// A frame of the link as the protocol machines see it: its kind, without its payload.
public enum SessionFrame: Hashable, Sendable, CustomStringConvertible {
    case command(Command)
    case hello
    case welcome
    case refuse
    case ramLayout
    case diskWrite
    case diskZeroes
    case diskDiscard
    case ramBatch
    case deviceState
    case seal
    case credit
    case heartbeat
    case bye
    case identity
    case diskDigests
    case ramVerify
    case ramDigests
    case ramFigures
    case ramKnown
    case diskVerify
    case diskCheck
    case ramRepair
    case primaryFigures
    case guestState

    /// The kinds behind the commands, with their values on the wire.
    private static let others: [(UInt8, SessionFrame, String)] = [
        (16, .hello, "hello"), (17, .welcome, "welcome"), (18, .refuse, "refuse"), (19, .ramLayout, "ramLayout"),
        (20, .diskWrite, "diskWrite"), (21, .diskZeroes, "diskZeroes"), (22, .diskDiscard, "diskDiscard"),
        (23, .ramBatch, "ramBatch"), (24, .deviceState, "deviceState"), (25, .seal, "seal"), (26, .credit, "credit"),
        (27, .heartbeat, "heartbeat"), (28, .bye, "bye"), (29, .identity, "identity"),
        (30, .diskDigests, "diskDigests"), (31, .ramVerify, "ramVerify"), (32, .ramDigests, "ramDigests"),
        (33, .ramFigures, "ramFigures"), (34, .ramKnown, "ramKnown"),
        (40, .diskVerify, "diskVerify"), (41, .diskCheck, "diskCheck"),
        (42, .ramRepair, "ramRepair"), (43, .primaryFigures, "primaryFigures"),
        (44, .guestState, "guestState"),
    ]

    /// Every kind of frame there is.
    public static let all: [SessionFrame] = Command.allCases.map { .command($0) } + others.map { $0.1 }

    /// The frame of a kind on the wire; nil for a value that is none.
    public init?(wireKind: UInt8) {
        if let command = Command(rawValue: wireKind) {
            self = .command(command)
            return
        }
        guard let known = Self.others.first(where: { $0.0 == wireKind }) else { return nil }
        self = known.1
    }

    /// The kind's value on the wire.
    public var wireKind: UInt8 {
        if case .command(let command) = self { return command.rawValue }
        for (value, frame, _) in Self.others where frame == self { return value }
        preconditionFailure("a frame is missing in the table")
    }

    public var description: String {
        if case .command(let command) = self { return command.description }
        return Self.others.first { $0.1 == self }?.2 ?? "?"
    }

    /// Whether the frame carries data, zeroes or a discard of a disk.
    public var isDisk: Bool { self == .diskWrite || self == .diskZeroes || self == .diskDiscard }
}
