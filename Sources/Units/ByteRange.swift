/// A half-open range of bytes on a disk or in a file. The end never overflows.
public struct ByteRange: Hashable, Sendable, CustomStringConvertible {
    /// First byte, from the start of the disk.
    public let offset: UInt64
    /// Number of bytes.
    public let length: UInt64

    /// Traps when `offset + length` does not fit; use ``init(checking:length:)`` for values from outside.
    public init(offset: UInt64, length: UInt64) {
        precondition(offset.addingReportingOverflow(length).overflow == false, "a byte range must not wrap around")
        self.offset = offset
        self.length = length
    }

    /// Returns nil when `offset + length` does not fit in 64 bits.
    public init?(checking offset: UInt64, length: UInt64) {
        guard !offset.addingReportingOverflow(length).overflow else { return nil }
        self.offset = offset
        self.length = length
    }

    /// First byte behind the range.
    public var end: UInt64 { offset + length }

    public var isEmpty: Bool { length == 0 }

    /// Whether the range lies inside a disk of `size` bytes.
    public func fits(in size: UInt64) -> Bool { end <= size }

    public func overlaps(_ other: ByteRange) -> Bool { offset < other.end && other.offset < end }

    public var description: String { "\(offset)+\(length)" }
}
