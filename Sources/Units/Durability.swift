/// What "committed" promises.
public enum Durability: UInt8, Sendable, CaseIterable, CustomStringConvertible {
    /// Complete in the memory of the secondary: survives the loss of either host, not of both.
    case memory = 0
    /// Synced to the secondary's disk: survives the power loss of both hosts.
    case disk = 1

    public var description: String {
        switch self {
        case .memory: "memory"
        case .disk: "disk"
        }
    }
}
