import Units

/// A piece of the guest's disk about which one image says one thing.
public struct ImageExtent: Equatable, Sendable {
    public enum Content: Equatable, Sendable {
        /// Nothing: look into the file below; without one it is zero. The place in the file that is reserved for it, if
        /// one is.
        case unallocated(UInt64?)
        /// Zeroes, and the place in the file that is reserved for them, if one is.
        case zero(UInt64?)
        /// Data at this offset of the file, in bytes.
        case data(UInt64)
        /// Part of one cluster that is compressed; these bytes of the file give the whole cluster.
        case compressed(ByteRange)
    }

    /// Bytes of the disk.
    public var range: ByteRange
    public var content: Content

    public init(range: ByteRange, content: Content) {
        self.range = range
        self.content = content
    }
}

/// A few entries of a table that a lookup needs. Read ``range`` of the file and give the bytes to
/// ``ImageReader/resume(_:bytes:)``.
public struct ImageTablePiece: Equatable, Sendable {
    enum Level: Equatable, Sendable {
        case l1
        /// `table` is the place of the whole table in the file.
        case l2(table: UInt64)
    }

    let level: Level
    /// Bytes of the file, at most ``ImageReader/pieceBytes``.
    public let range: ByteRange
    /// Index of the piece's first entry in its table.
    let firstEntry: UInt64
    /// Byte of the disk that is asked about.
    let guestOffset: UInt64
    /// Byte of the disk behind the last that matters.
    let guestEnd: UInt64
}

/// What a lookup needs or has found.
public enum ImagePlan: Equatable, Sendable {
    case read(ImageTablePiece)
    case found(ImageExtent)
}
