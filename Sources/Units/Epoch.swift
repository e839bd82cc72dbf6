/// The guest's execution between two checkpoints, and the name of the checkpoint that ends it.
///
/// Epochs of one replica only grow, across attach sessions too: a new session continues behind the highest epoch
/// that the store has ever seen. The value 0 is reserved for "before the first epoch".
public struct Epoch: Hashable, Comparable, Sendable, CustomStringConvertible {
    public var rawValue: UInt64

    public init(_ rawValue: UInt64) {
        self.rawValue = rawValue
    }

    /// No epoch yet: nothing has been committed.
    public static let none = Epoch(0)

    /// The epoch that follows this one. Traps on overflow, which at 1,000 checkpoints a second takes 500 million years.
    public var next: Epoch { Epoch(rawValue + 1) }

    public static func < (lhs: Epoch, rhs: Epoch) -> Bool { lhs.rawValue < rhs.rawValue }

    public var description: String { "\(rawValue)" }
}
