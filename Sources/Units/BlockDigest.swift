/// The first 16 bytes of the SHA-256 of a block: two blocks with the same digest are taken for equal.
public struct BlockDigest: Hashable, Sendable {
    /// Length in bytes.
    public static let length = 16

    public let high: UInt64
    public let low: UInt64

    public init(high: UInt64, low: UInt64) {
        self.high = high
        self.low = low
    }
}
