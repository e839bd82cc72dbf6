import Units

/// Replies in transmission, as bytes. Each function writes one header to the start of memory that the caller has and
/// returns its length; nothing here is longer than ``longest`` bytes. What follows a header is the caller's to send.
public enum NBDReply {
    /// The longest header that is written here, in bytes.
    public static let longest = 32
    private static let chunkHeader = 20

    /// The whole reply to a request without data, or, before the data, of a read without structured replies.
    @inline(__always)
    public static func simple(cookie: UInt64, _ error: NBDErrno?, into memory: UnsafeMutableRawBufferPointer) -> Int {
        put(NBDMagic.simpleReply, memory, 0)
        put(error?.rawValue ?? 0, memory, 4)
        put(cookie, memory, 8)
        return 16
    }

    @inline(__always)
    private static func chunk(
        cookie: UInt64, type: UInt16, isLast: Bool, length: UInt32, _ memory: UnsafeMutableRawBufferPointer
    ) {
        put(NBDMagic.structuredReply, memory, 0)
        put(isLast ? NBDChunk.flagDone : 0, memory, 4)
        put(type, memory, 6)
        put(cookie, memory, 8)
        put(length, memory, 16)
    }

    /// The chunk that ends a reply and says nothing else.
    public static func end(cookie: UInt64, into memory: UnsafeMutableRawBufferPointer) -> Int {
        chunk(cookie: cookie, type: NBDChunk.typeNone, isLast: true, length: 0, memory)
        return chunkHeader
    }

    /// What goes before `byteCount` bytes of data from `offset` on, at most 32 MiB.
    @inline(__always)
    public static func data(
        cookie: UInt64, offset: UInt64, byteCount: UInt32, isLast: Bool, into memory: UnsafeMutableRawBufferPointer
    ) -> Int {
        chunk(cookie: cookie, type: NBDChunk.typeOffsetData, isLast: isLast, length: byteCount + 8, memory)
        put(offset, memory, chunkHeader)
        return chunkHeader + 8
    }

    /// The whole chunk that says: these bytes are zeroes.
    public static func hole(
        cookie: UInt64, offset: UInt64, byteCount: UInt32, isLast: Bool, into memory: UnsafeMutableRawBufferPointer
    ) -> Int {
        chunk(cookie: cookie, type: NBDChunk.typeOffsetHole, isLast: isLast, length: 12, memory)
        put(offset, memory, chunkHeader)
        put(byteCount, memory, chunkHeader + 8)
        return chunkHeader + 12
    }

    /// The chunk that ends a reply with an error, at a byte of the export where one is known.
    public static func failure(
        cookie: UInt64, _ error: NBDErrno, at offset: UInt64?, into memory: UnsafeMutableRawBufferPointer
    ) -> Int {
        let type = offset == nil ? NBDChunk.typeError : NBDChunk.typeErrorOffset
        chunk(cookie: cookie, type: type, isLast: true, length: offset == nil ? 6 : 14, memory)
        put(error.rawValue, memory, chunkHeader)
        put(UInt16(0), memory, chunkHeader + 4)
        guard let offset else { return chunkHeader + 6 }
        put(offset, memory, chunkHeader + 6)
        return chunkHeader + 14
    }

    /// What goes before `count` descriptors of 8 bytes, which ``NBDExtent/put(into:)`` writes.
    public static func blockStatus(cookie: UInt64, count: Int, into memory: UnsafeMutableRawBufferPointer) -> Int {
        chunk(
            cookie: cookie, type: NBDChunk.typeBlockStatus, isLast: true, length: UInt32(4 + count * NBDExtent.length),
            memory)
        put(NBDAllocation.id, memory, chunkHeader)
        return chunkHeader + 4
    }

    /// The whole reply to a request that failed, in the form that its client and its command want.
    public static func failure(
        of request: NBDRequest, _ error: NBDErrno, at offset: UInt64? = nil,
        into memory: UnsafeMutableRawBufferPointer
    ) -> Int {
        guard request.isStructured, request.command == .read || request.command == .blockStatus else {
            return simple(cookie: request.cookie, error, into: memory)
        }
        return failure(cookie: request.cookie, error, at: offset, into: memory)
    }

    /// What goes before the whole of a read's data, in the form that its client wants.
    @inline(__always)
    public static func readHeader(of request: NBDRequest, into memory: UnsafeMutableRawBufferPointer) -> Int {
        guard request.isStructured else { return simple(cookie: request.cookie, nil, into: memory) }
        return data(
            cookie: request.cookie, offset: request.offset, byteCount: request.byteCount, isLast: true, into: memory)
    }

    @inline(__always)
    static func put<T: FixedWidthInteger>(_ value: T, _ memory: UnsafeMutableRawBufferPointer, _ offset: Int) {
        memory.storeBytes(of: value.bigEndian, toByteOffset: offset, as: T.self)
    }
}

/// A run of bytes of one kind, as block status tells it for `base:allocation`.
public struct NBDExtent: Equatable, Sendable {
    /// Bytes of one descriptor on the wire.
    public static let length = 8

    /// Bytes; never 0.
    public var byteCount: UInt32
    /// No space is taken for it.
    public let isHole: Bool
    /// It reads as zeroes.
    public let isZero: Bool

    public init(byteCount: UInt32, isHole: Bool, isZero: Bool) {
        self.byteCount = byteCount
        self.isHole = isHole
        self.isZero = isZero
    }

    /// Writes the descriptor to the first 8 bytes of `memory`.
    public func put(into memory: UnsafeMutableRawBufferPointer) {
        NBDReply.put(byteCount, memory, 0)
        NBDReply.put((isHole ? 1 : 0) | (isZero ? 2 : 0) as UInt32, memory, 4)
    }
}

extension [UInt8] {
    /// Appends what `write` puts into memory of ``NBDReply/longest`` bytes; `write` returns how much that was.
    mutating func appendReply(_ write: (UnsafeMutableRawBufferPointer) -> Int) {
        withUnsafeTemporaryAllocation(byteCount: NBDReply.longest, alignment: 8) { memory in
            let length = write(memory)
            append(contentsOf: UnsafeRawBufferPointer(rebasing: memory[..<length]))
        }
    }

    mutating func appendBigEndian<T: FixedWidthInteger>(_ value: T) {
        Swift.withUnsafeBytes(of: value.bigEndian) { append(contentsOf: $0) }
    }
}
