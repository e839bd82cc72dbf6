/// One disk that a session offers.
public struct NBDExport: Sendable, Equatable {
    /// What a client asks for by name; at most 4,096 bytes of UTF-8. The empty name asks for the first export.
    public let name: String
    /// Words for people who list the exports; at most 4,096 bytes of UTF-8, empty for none.
    public let description: String
    /// Bytes.
    public let size: UInt64
    /// What is offered; `hasFlags` is added by itself.
    public let flags: NBDExportFlags
    /// The unit in bytes that offsets and lengths must be multiples of: a power of two, 1 to 64 KiB, dividing ``size``.
    public let blockMin: UInt32
    /// The unit in bytes that clients are asked to prefer.
    public let blockPreferred: UInt32
    /// The longest read or write in bytes.
    public let blockMax: UInt32
    /// Whether `base:allocation` is offered, so that block status may be asked for.
    public let tellsAllocation: Bool

    /// Describes an export. A `blockMin` that does not divide `size` is lowered to the largest power of two that does,
    /// as the protocol wants it.
    ///
    /// A mirror target should keep 1 or 512: QEMU turns smaller guest writes into read-modify-write of the target.
    /// Traps when a unit is no power of two or the units are not in order.
    public init(
        name: String, size: UInt64, flags: NBDExportFlags = .full, blockMin: UInt32 = 1, blockPreferred: UInt32 = 4096,
        blockMax: UInt32 = 32 << 20, description: String = "", tellsAllocation: Bool = false
    ) {
        precondition(name.utf8.count <= NBDLimits.nameMax)
        precondition(description.utf8.count <= NBDLimits.nameMax)
        precondition(blockMin.nonzeroBitCount == 1 && blockMin <= 1 << 16)
        precondition(blockPreferred.nonzeroBitCount == 1 && blockPreferred >= 512 && blockPreferred >= blockMin)
        precondition(blockMax >= blockPreferred && blockMax % blockMin == 0 && blockMax <= NBDLimits.requestMax)
        self.name = name
        self.description = description
        self.size = size
        self.flags = flags.union(.hasFlags)
        self.blockMin = size == 0 ? blockMin : min(blockMin, 1 << UInt32(min(size.trailingZeroBitCount, 16)))
        self.blockPreferred = blockPreferred
        self.blockMax = blockMax
        self.tellsAllocation = tellsAllocation
    }

    var isReadOnly: Bool { flags.contains(.readOnly) }
}

/// The bounds of a session; what goes beyond ends the connection.
public enum NBDLimits {
    /// The longest option in bytes.
    public static let optionMax = 64 << 10
    /// The longest export name in bytes.
    public static let nameMax = 4096
    /// The longest read or write in bytes.
    public static let requestMax: UInt32 = 32 << 20
    /// The most options before transmission.
    public static let optionsMax = 64
    /// ``NBDServerSession`` stops reading when the caller's output holds so many bytes of replies.
    public static let outputHigh = 256 << 10
    /// The most extents in one answer to block status; what lies behind them is not told.
    public static let extentsMax = 4096
}
