/// Reads big-endian values from bytes that somebody else owns, checking every bound.
///
/// The memory must stay valid for the reader's life; keep readers inside the closure that lends the bytes.
public struct ByteReader {
    /// The bytes ended before the value did.
    public struct Truncated: Error, Equatable, CustomStringConvertible {
        /// Offset of the value that did not fit, from the start of the bytes.
        public let offset: Int
        /// Bytes that the value needs.
        public let needed: Int
        /// Bytes that were left.
        public let available: Int

        public var description: String {
            "truncated at byte \(offset): \(needed) bytes are needed, \(available) are there"
        }
    }

    private let bytes: UnsafeRawBufferPointer
    /// Offset of the next byte to read.
    public private(set) var offset: Int

    public init(_ bytes: UnsafeRawBufferPointer) {
        self.bytes = bytes
        self.offset = 0
    }

    public var count: Int { bytes.count }
    public var remaining: Int { bytes.count - offset }

    @inline(__always)
    private func check(_ needed: Int) throws(Truncated) {
        guard needed >= 0, needed <= remaining else {
            throw Truncated(offset: offset, needed: needed, available: remaining)
        }
    }

    @inline(__always)
    public mutating func read<T: FixedWidthInteger>(_ type: T.Type = T.self) throws(Truncated) -> T {
        try check(MemoryLayout<T>.size)
        let value = T(bigEndian: bytes.loadUnaligned(fromByteOffset: offset, as: T.self))
        offset += MemoryLayout<T>.size
        return value
    }

    /// Lends the next `length` bytes without copying them.
    public mutating func readBytes(_ length: Int) throws(Truncated) -> UnsafeRawBufferPointer {
        try check(length)
        let slice = UnsafeRawBufferPointer(rebasing: bytes[offset..<offset + length])
        offset += length
        return slice
    }

    /// The next `length` bytes as text; nil when they are not UTF-8.
    public mutating func readString(_ length: Int) throws(Truncated) -> String? {
        let slice = try readBytes(length)
        return String(validating: slice, as: UTF8.self)
    }

    public mutating func skip(_ length: Int) throws(Truncated) {
        try check(length)
        offset += length
    }
}
