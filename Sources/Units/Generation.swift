/// Who may write to a replica: the fencing token. It grows by one at every failover, and a replica refuses every
/// generation but its own for ever.
public struct Generation: Hashable, Comparable, Sendable, CustomStringConvertible {
    public var rawValue: UInt64

    public init(_ rawValue: UInt64) {
        self.rawValue = rawValue
    }

    /// The generation of a replica that has never failed over.
    public static let first = Generation(1)

    public var next: Generation { Generation(rawValue + 1) }

    public static func < (lhs: Generation, rhs: Generation) -> Bool { lhs.rawValue < rhs.rawValue }

    public var description: String { "\(rawValue)" }
}
