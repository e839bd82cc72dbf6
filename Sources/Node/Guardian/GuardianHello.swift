import QEMU

/// What the guardian tells the agent first.
public struct GuardianHello: Sendable, Equatable, Codable {
    /// The monitor's socket, for an agent that outlives its guardian.
    public var qmpPath: String
    /// The process that runs the guest; nil when it cannot be read, with the reason in `processProblem`.
    public var process: GuestProcess?
    public var processProblem: String?
    public var version: QEMUVersion
    public var outOfBand: Bool
    /// The guest before the attach.
    public var saved: SavedGuestState

    public init(
        qmpPath: String, process: GuestProcess? = nil, processProblem: String? = nil, version: QEMUVersion,
        outOfBand: Bool, saved: SavedGuestState
    ) {
        self.qmpPath = qmpPath
        self.process = process
        self.processProblem = processProblem
        self.version = version
        self.outOfBand = outOfBand
        self.saved = saved
    }
}
