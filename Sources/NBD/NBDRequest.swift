import Units

/// One request of a client in transmission, complete with where its data lie, and judged: either it may be performed, or
/// ``refusal`` says what the client must be told.
public struct NBDRequest: Equatable, Sendable {
    /// Bytes of the fixed part on the wire.
    static let length = 28

    /// The flags as they came.
    let flags: UInt16
    /// The command's number as it came.
    let type: UInt16
    /// The client's own mark, which every reply to this request repeats.
    public let cookie: UInt64
    /// First byte of the export that is meant.
    public let offset: UInt64
    /// Bytes of the export that are meant; for a write also the bytes of its data.
    public let byteCount: UInt32
    /// The error to answer with, without having done anything; nil when the request may be performed.
    public internal(set) var refusal: NBDErrno?
    /// Where a good write's data begin, counted in bytes from the start of the bytes that the session was given.
    public internal(set) var payloadOffset = 0
    /// Whether the client has agreed to structured replies.
    public internal(set) var isStructured = false

    /// Decodes the first 28 of `bytes`, which the caller has.
    init(_ bytes: UnsafeRawBufferPointer) throws(NBDError) {
        precondition(bytes.count >= Self.length)
        func load<T: FixedWidthInteger>(_ offset: Int, as type: T.Type) -> T {
            T(bigEndian: bytes.loadUnaligned(fromByteOffset: offset, as: T.self))
        }
        let magic = load(0, as: UInt32.self)
        guard magic == NBDMagic.request else { throw .badRequestMagic(magic) }
        flags = load(4, as: UInt16.self)
        type = load(6, as: UInt16.self)
        cookie = load(8, as: UInt64.self)
        offset = load(16, as: UInt64.self)
        byteCount = load(24, as: UInt32.self)
    }

    /// What is asked for; nil for a number that is not known here, which is always refused.
    public var command: NBDCommand? { NBDCommand(rawValue: type) }

    /// The data must be as safe as after a flush before the reply.
    public var isForced: Bool { has(NBDCommandFlag.fua) }
    /// Zeroes may leave the range without space of its own.
    public var mayPunchHole: Bool { !has(NBDCommandFlag.noHole) }
    /// Zeroes must be refused rather than written slowly.
    public var isFast: Bool { has(NBDCommandFlag.fastZero) }
    /// Block status: the first extent is enough.
    public var wantsOneExtent: Bool { has(NBDCommandFlag.requestOne) }
    /// A read may be answered in several chunks, holes among them.
    public var mayFragment: Bool { isStructured && !has(NBDCommandFlag.doNotFragment) }
    /// The bytes of the export; traps on a refused request that wraps around.
    public var range: ByteRange { ByteRange(offset: offset, length: UInt64(byteCount)) }

    /// Bytes of payload that follow the fixed part.
    var payloadLength: Int { command == .write ? Int(byteCount) : 0 }

    /// What the request costs: bytes that must be held until it is answered.
    public var weight: Int {
        switch command {
        case .read, .write: refusal == nil ? Int(byteCount) : 0
        default: 0
        }
    }

    func has(_ flag: UInt16) -> Bool { flags & flag != 0 }

    /// Decides, before anything is done, whether the request may be performed; the number for the reply when not.
    func validate(for export: NBDExport, structuredReplies: Bool, allocation: Bool) -> NBDErrno? {
        guard let command else { return .invalid }
        guard flags & ~Self.allowedFlags(command, export, structuredReplies) == 0 else { return .invalid }
        switch command {
        case .disconnect: return nil
        case .flush:
            guard export.flags.contains(.flush), offset == 0, byteCount == 0 else { return .invalid }
            return nil
        case .blockStatus:
            guard allocation else { return .invalid }
        case .read: break
        case .cache:
            guard export.flags.contains(.cache) else { return .invalid }
        case .write, .trim, .writeZeroes:
            guard !export.isReadOnly else { return .notPermitted }
            if command == .trim, !export.flags.contains(.trim) { return .invalid }
            if command == .writeZeroes, !export.flags.contains(.writeZeroes) { return .invalid }
        }
        guard byteCount > 0 else { return .invalid }
        let unit = UInt64(export.blockMin)
        guard offset & (unit - 1) == 0, UInt64(byteCount) & (unit - 1) == 0 else { return .invalid }
        if command == .read || command == .write, byteCount > export.blockMax { return .invalid }
        guard let range = ByteRange(checking: offset, length: UInt64(byteCount)), range.fits(in: export.size) else {
            return command == .write || command == .writeZeroes ? .noSpace : .invalid
        }
        return nil
    }

    /// The flags that a command may carry, given what was offered.
    private static func allowedFlags(_ command: NBDCommand, _ export: NBDExport, _ structuredReplies: Bool) -> UInt16 {
        // FUA is allowed on every command once offered, also where it has no meaning.
        var allowed: UInt16 = export.flags.contains(.fua) ? NBDCommandFlag.fua : 0
        switch command {
        case .writeZeroes:
            allowed |= NBDCommandFlag.noHole
            if export.flags.contains(.fastZero) { allowed |= NBDCommandFlag.fastZero }
        case .read:
            if structuredReplies { allowed |= NBDCommandFlag.doNotFragment }
        case .blockStatus:
            allowed |= NBDCommandFlag.requestOne
        case .write, .disconnect, .flush, .trim, .cache: break
        }
        return allowed
    }
}
