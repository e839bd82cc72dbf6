import Units

/// The fixed part of a request in transmission, as it came.
struct NBDRequest: Equatable {
    /// Bytes on the wire.
    static let length = 28

    let flags: UInt16
    let type: UInt16
    let cookie: UInt64
    let offset: UInt64
    let byteCount: UInt32

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

    var command: NBDCommand? { NBDCommand(rawValue: type) }

    /// Bytes of payload that follow the fixed part.
    var payloadLength: Int { command == .write ? Int(byteCount) : 0 }

    func has(_ flag: UInt16) -> Bool { flags & flag != 0 }

    /// Decides, before anything is done, whether the request may be performed; the number for the reply when not.
    func validate(for export: NBDExport, structuredReplies: Bool) -> NBDErrno? {
        guard let command else { return .invalid }
        guard flags & ~Self.allowedFlags(command, export, structuredReplies) == 0 else { return .invalid }
        switch command {
        case .disconnect: return nil
        case .flush:
            guard export.flags.contains(.flush), offset == 0, byteCount == 0 else { return .invalid }
            return nil
        case .blockStatus: return .invalid
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
        guard offset % unit == 0, UInt64(byteCount) % unit == 0 else { return .invalid }
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
        if command == .writeZeroes {
            allowed |= NBDCommandFlag.noHole
            if export.flags.contains(.fastZero) { allowed |= NBDCommandFlag.fastZero }
        }
        if command == .read, structuredReplies { allowed |= NBDCommandFlag.doNotFragment }
        return allowed
    }

    /// The range; only after ``validate(for:structuredReplies:)`` found no fault.
    var range: ByteRange { ByteRange(offset: offset, length: UInt64(byteCount)) }
}
