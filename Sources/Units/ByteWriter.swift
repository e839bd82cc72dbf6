/// Appends big-endian values to bytes of its own.
public struct ByteWriter: Sendable {
    public private(set) var bytes: [UInt8]

    public init(reservingCapacity capacity: Int = 64) {
        bytes = []
        bytes.reserveCapacity(capacity)
    }

    public var count: Int { bytes.count }

    @inline(__always)
    public mutating func write<T: FixedWidthInteger>(_ value: T) {
        withUnsafeBytes(of: value.bigEndian) { bytes.append(contentsOf: $0) }
    }

    public mutating func write(bytes other: some Sequence<UInt8>) {
        bytes.append(contentsOf: other)
    }

    public mutating func write(buffer: UnsafeRawBufferPointer) {
        bytes.append(contentsOf: buffer)
    }

    public mutating func write(utf8 text: String) {
        bytes.append(contentsOf: text.utf8)
    }

    public mutating func writeZeroes(_ length: Int) {
        bytes.append(contentsOf: repeatElement(0, count: length))
    }

    /// Replaces a value that was written before. Traps when it does not lie inside the bytes.
    public mutating func overwrite<T: FixedWidthInteger>(at offset: Int, _ value: T) {
        precondition(offset >= 0 && offset + MemoryLayout<T>.size <= bytes.count)
        withUnsafeBytes(of: value.bigEndian) { source in
            for (index, byte) in source.enumerated() { bytes[offset + index] = byte }
        }
    }
}
