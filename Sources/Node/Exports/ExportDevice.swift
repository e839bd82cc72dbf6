import NBD
import NIOCore
import Units

/// Something that an NBD export reads and writes: a file, a view of a checkpoint, memory.
///
/// One method performs everything, a batch at a time, so that a device in memory answers on the caller's thread at once
/// while a device that blocks goes to its own thread once for many requests. The server has judged each request before:
/// ranges lie inside of ``size``, are multiples of ``blockMin`` and not longer than 32 MiB for reads and writes; what the
/// ``capabilities`` do not offer and writes to a read-only device never come here.
///
/// The properties are constant for as long as an ``ExportServer`` has the device. Called from several event loops at a
/// time when it serves several connections: a device does its own locking.
public protocol ExportDevice: AnyObject, Sendable {
    /// Bytes. Any number: neither a multiple of 512 nor of a block.
    var size: UInt64 { get }
    /// Writes, zeroes and trims are refused before they come here.
    var isReadOnly: Bool { get }
    /// What the device can do beyond reading and writing.
    var capabilities: ExportCapabilities { get }
    /// The unit in bytes that offsets and lengths must be multiples of: a power of two, 1 to 64 KiB. 1 when the device
    /// takes everything; it is lowered by itself where it does not divide ``size``.
    var blockMin: UInt32 { get }
    /// The unit in bytes that clients are asked to prefer: a power of two, at least 512.
    var blockPreferred: UInt32 { get }

    /// Performs the requests and answers each exactly once through `batch.replies`: during the call or later, in any
    /// order, from any thread, but all parts of one answer from one thread. Requests of a batch, and of different
    /// batches, have no order among each other: a client that wants one waits for the answer. What was answered before
    /// a flush came is covered by that flush.
    ///
    /// Called on an event loop: it must not block. A device that blocks passes the batch to its own thread, whole.
    /// Not answering holds up the connection's end, and with it ``ExportServer/close()``.
    func perform(_ batch: ExportBatch)
}

extension ExportDevice {
    public var blockMin: UInt32 { 1 }
    public var blockPreferred: UInt32 { 4096 }
}

/// What a device can do beyond reading and, unless it is read-only, writing.
public struct ExportCapabilities: OptionSet, Sendable {
    public let rawValue: UInt8

    public init(rawValue: UInt8) { self.rawValue = rawValue }

    /// Flush requests have a meaning, and so has FUA on writes.
    public static let flush = ExportCapabilities(rawValue: 1 << 0)
    /// The contents of ranges may be given up.
    public static let trim = ExportCapabilities(rawValue: 1 << 1)
    /// Ranges can be made zero without data.
    public static let zero = ExportCapabilities(rawValue: 1 << 2)
    /// A request for zeroes that asks for speed is answered `.notSupported` at once where it would be slow.
    public static let fastZero = ExportCapabilities(rawValue: 1 << 3)
    /// The hint that a range will be read soon is taken.
    public static let cache = ExportCapabilities(rawValue: 1 << 4)
    /// The device knows what is hole and what is data.
    public static let blockStatus = ExportCapabilities(rawValue: 1 << 5)
    /// A flush covers what was answered on every connection, and every connection reads what was answered on another.
    public static let multiConnection = ExportCapabilities(rawValue: 1 << 6)

    /// Everything but fast zeroes.
    public static let usual: ExportCapabilities = [.flush, .trim, .zero, .cache, .blockStatus, .multiConnection]
}

/// Requests that came together, and where to answer them.
public struct ExportBatch: Sendable {
    /// At least one.
    public let requests: [ExportRequest]
    public let replies: ExportReplies
}

/// One request to a device.
public struct ExportRequest: Sendable {
    public enum Operation: Sendable {
        /// Answer with ``ExportReplies/read(_:fill:)`` or one of its kin.
        case read
        /// Take ``ExportRequest/payload``.
        case write
        /// The range must read as zeroes; see ``ExportRequest/mayPunchHole`` and ``ExportRequest/isFast``.
        case zero
        /// The contents of the range no longer matter.
        case trim
        /// Everything answered before must be safe. The range is empty.
        case flush
        /// The range will soon be read; only a hint.
        case cache
        /// Answer with ``ExportReplies/extents(_:_:)``.
        case blockStatus
    }

    let wire: NBDRequest
    public let operation: Operation
    /// The data of a write, ``range`` long; nil otherwise. A slice of what came from the socket: keeping it keeps up to
    /// 256 KiB around it alive, or the whole of a long write. Not aligned.
    public let payload: ByteBuffer?

    /// First byte that is meant.
    public var offset: UInt64 { wire.offset }
    /// Bytes that are meant.
    public var byteCount: Int { Int(wire.byteCount) }
    public var range: ByteRange { wire.range }
    /// Writes, zeroes, trims: safe as after a flush before the answer.
    public var isForced: Bool { wire.isForced }
    /// Zeroes: the range may stay without space.
    public var mayPunchHole: Bool { wire.mayPunchHole }
    /// Zeroes: answer `.notSupported`, with nothing done, rather than write zeroes.
    public var isFast: Bool { wire.isFast }
    /// Block status: the first extent is enough.
    public var wantsOneExtent: Bool { wire.wantsOneExtent }
    /// Reads: the answer may come in parts, holes among them; see ``ExportReplies/part(_:offset:byteCount:fill:)``.
    public var mayFragment: Bool { wire.mayFragment }

    /// Lends the data of a write; traps on anything else.
    public func withPayload<Value>(_ body: (UnsafeRawBufferPointer) throws -> Value) rethrows -> Value {
        guard let payload else { preconditionFailure("only a write has a payload") }
        return try payload.withUnsafeReadableBytes(body)
    }

    init?(_ wire: NBDRequest, payload: ByteBuffer?) {
        switch wire.command {
        case .read: operation = .read
        case .write: operation = .write
        case .writeZeroes: operation = .zero
        case .trim: operation = .trim
        case .flush: operation = .flush
        case .cache: operation = .cache
        case .blockStatus: operation = .blockStatus
        case .disconnect, nil: return nil
        }
        self.wire = wire
        self.payload = payload
    }
}

/// A run of bytes of one kind on a device.
public struct ExportExtent: Equatable, Sendable {
    /// Bytes; more than 0.
    public let byteCount: UInt64
    /// No space is taken for it.
    public let isHole: Bool
    /// It is known to read as zeroes.
    public let isZero: Bool

    public init(byteCount: UInt64, isHole: Bool, isZero: Bool) {
        self.byteCount = byteCount
        self.isHole = isHole
        self.isZero = isZero
    }

    public static func data(_ byteCount: UInt64) -> ExportExtent {
        ExportExtent(byteCount: byteCount, isHole: false, isZero: false)
    }

    /// Space was never taken, or given back.
    public static func hole(_ byteCount: UInt64) -> ExportExtent {
        ExportExtent(byteCount: byteCount, isHole: true, isZero: true)
    }
}

extension NBDExport {
    /// How a device is offered to clients.
    init(_ name: String, _ device: any ExportDevice, description: String) {
        var flags: NBDExportFlags = []
        let can = device.capabilities
        if can.contains(.flush) { flags.formUnion([.flush, .fua]) }
        if can.contains(.multiConnection) { flags.insert(.multiConnection) }
        if can.contains(.cache) { flags.insert(.cache) }
        if device.isReadOnly {
            flags.insert(.readOnly)
        } else {
            if can.contains(.trim) { flags.insert(.trim) }
            if can.contains(.zero) { flags.insert(.writeZeroes) }
            if can.contains([.zero, .fastZero]) { flags.insert(.fastZero) }
        }
        self.init(
            name: name, size: device.size, flags: flags, blockMin: device.blockMin,
            blockPreferred: max(device.blockPreferred, device.blockMin), description: description,
            tellsAllocation: can.contains(.blockStatus))
    }
}
