/// Bytes that belong at a place in a file. Whoever plans it does no I/O; whoever performs it writes all of it.
public struct FileWrite: Equatable, Sendable {
    /// Offset from the start of the file, in bytes.
    public var offset: UInt64
    public var bytes: [UInt8]

    public init(offset: UInt64, bytes: [UInt8]) {
        self.offset = offset
        self.bytes = bytes
    }

    /// First byte behind the write.
    public var end: UInt64 { offset + UInt64(bytes.count) }
}

/// Collects small writes in rising order; writes that touch become one.
struct FileWriteList {
    private(set) var writes: [FileWrite] = []

    mutating func append<T: FixedWidthInteger>(at offset: UInt64, bigEndian value: T) {
        let end = writes.last?.end
        if end != offset { writes.append(FileWrite(offset: offset, bytes: [])) }
        withUnsafeBytes(of: value.bigEndian) { writes[writes.count - 1].bytes.append(contentsOf: $0) }
    }
}
