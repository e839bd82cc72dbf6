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

/// Many small writes whose bytes lie in one piece of memory, which is kept for the next ones. Writes that touch the one
/// before them join it.
public struct FileWrites: Equatable, Sendable {
    /// One write.
    public struct Piece: Equatable, Sendable {
        /// Offset from the start of the file, in bytes.
        public var offset: UInt64
        /// Its place in ``FileWrites/bytes``.
        public var range: Range<Int>
    }

    /// The bytes of all pieces, one after the other.
    public private(set) var bytes: [UInt8] = []
    /// In the order in which they are to be written.
    public private(set) var pieces: [Piece] = []

    public init() {}

    public var isEmpty: Bool { pieces.isEmpty }

    /// The pieces as values of their own.
    public var separate: [FileWrite] {
        pieces.map { FileWrite(offset: $0.offset, bytes: Array(bytes[$0.range])) }
    }

    /// Forgets the writes and keeps the memory.
    public mutating func removeAll() {
        bytes.removeAll(keepingCapacity: true)
        pieces.removeAll(keepingCapacity: true)
    }

    mutating func append<T: FixedWidthInteger>(at offset: UInt64, bigEndian value: T) {
        let start = appendZeroes(at: offset, count: MemoryLayout<T>.size)
        store(bigEndian: value, at: start)
    }

    /// Adds zero bytes; returns where they start in ``bytes``, so that they can be overwritten there.
    mutating func appendZeroes(at offset: UInt64, count: Int) -> Int {
        let start = bytes.count
        bytes.append(contentsOf: repeatElement(0, count: count))
        if let last = pieces.last, last.offset + UInt64(last.range.count) == offset {
            pieces[pieces.count - 1].range = last.range.lowerBound..<bytes.count
        } else {
            pieces.append(Piece(offset: offset, range: start..<bytes.count))
        }
        return start
    }

    @inline(__always)
    mutating func store<T: FixedWidthInteger>(bigEndian value: T, at index: Int) {
        bytes.withUnsafeMutableBytes { $0.storeBytes(of: value.bigEndian, toByteOffset: index, as: T.self) }
    }
}
