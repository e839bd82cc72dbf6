import Units

/// The 40 bytes before every payload. Layout: docs/wire-format.md.
public struct FrameHeader: Equatable, Sendable {
    /// Length of an encoded header in bytes.
    public static let length = 40
    /// "CBLK".
    public static let magic: UInt32 = 0x4342_4C4B
    /// What a stream of frames begins with.
    public static let firstByte = UInt8(magic >> 24)
    /// The only version that this side speaks.
    public static let version: UInt8 = 1

    /// Byte offsets of the fields.
    enum Offset {
        static let magic = 0
        static let version = 4
        static let kind = 5
        static let flags = 6
        static let generation = 8
        static let epoch = 16
        static let payloadLength = 24
        static let payloadChecksum = 28
        static let reserved = 32
        static let headerChecksum = 36
    }

    public let kind: FrameKind
    /// Zero before `welcome` has told it.
    public let generation: Generation
    /// The epoch that the frame belongs to; zero for frames outside of every epoch.
    public let epoch: Epoch
    /// Bytes that follow the header.
    public let payloadLength: Int
    /// CRC-32C of the payload; zero for an empty one.
    public let payloadChecksum: UInt32

    /// Describes a frame of our own. Traps when its kind cannot have that length.
    public init(kind: FrameKind, generation: Generation, epoch: Epoch, payloadLength: Int, payloadChecksum: UInt32) {
        precondition(kind.payloadLengths.contains(payloadLength), "\(kind) cannot carry \(payloadLength) bytes")
        self.kind = kind
        self.generation = generation
        self.epoch = epoch
        self.payloadLength = payloadLength
        self.payloadChecksum = payloadChecksum
    }

    /// Describes a frame whose payload is `pieces`, one behind the other; nothing is copied.
    public init(
        kind: FrameKind, generation: Generation, epoch: Epoch, pieces first: UnsafeRawBufferPointer,
        _ second: UnsafeRawBufferPointer = UnsafeRawBufferPointer(start: nil, count: 0)
    ) {
        var crc = CRC32C()
        crc.update(first)
        crc.update(second)
        self.init(
            kind: kind, generation: generation, epoch: epoch, payloadLength: first.count + second.count,
            payloadChecksum: crc.value)
    }

    /// Describes a frame without payload: a command.
    public init(command kind: FrameKind, generation: Generation, epoch: Epoch) {
        self.init(kind: kind, generation: generation, epoch: epoch, payloadLength: 0, payloadChecksum: 0)
    }

    /// Whole frame length in bytes.
    public var frameLength: Int { Self.length + payloadLength }

    /// Appends the 40 bytes.
    public func encode(into writer: inout ByteWriter) {
        withEncoded { writer.write(buffer: $0) }
    }

    /// Lends the 40 encoded bytes without an allocation.
    public func withEncoded<Result>(_ body: (UnsafeRawBufferPointer) -> Result) -> Result {
        withUnsafeTemporaryAllocation(byteCount: Self.length, alignment: 8) { memory in
            func store<T: FixedWidthInteger>(_ value: T, _ offset: Int) {
                memory.storeBytes(of: value.bigEndian, toByteOffset: offset, as: T.self)
            }
            store(Self.magic, Offset.magic)
            store(Self.version, Offset.version)
            store(kind.rawValue, Offset.kind)
            store(UInt16(0), Offset.flags)
            store(generation.rawValue, Offset.generation)
            store(epoch.rawValue, Offset.epoch)
            store(UInt32(payloadLength), Offset.payloadLength)
            store(payloadChecksum, Offset.payloadChecksum)
            store(UInt32(0), Offset.reserved)
            let covered = UnsafeRawBufferPointer(rebasing: memory[..<Offset.headerChecksum])
            store(CRC32C.checksum(covered), Offset.headerChecksum)
            return body(UnsafeRawBufferPointer(memory))
        }
    }

    /// Decodes the first 40 of `bytes`. The order of the checks: magic, checksum, version, kind, flags, length; so that
    /// damage is never taken for another version.
    public static func decode(_ bytes: UnsafeRawBufferPointer) throws(LinkError) -> FrameHeader {
        guard bytes.count >= length else { throw .headerTruncated(bytes.count) }
        func load<T: FixedWidthInteger>(_ offset: Int, as type: T.Type) -> T {
            T(bigEndian: bytes.loadUnaligned(fromByteOffset: offset, as: T.self))
        }
        let magic = load(Offset.magic, as: UInt32.self)
        guard magic == Self.magic else { throw .badMagic(magic) }
        let carried = load(Offset.headerChecksum, as: UInt32.self)
        let computed = CRC32C.checksum(UnsafeRawBufferPointer(rebasing: bytes[..<Offset.headerChecksum]))
        guard computed == carried else { throw .headerChecksum(computed: computed, carried: carried) }
        let version = load(Offset.version, as: UInt8.self)
        guard version == Self.version else { throw .unsupportedVersion(version) }
        let kindValue = load(Offset.kind, as: UInt8.self)
        guard let kind = FrameKind(rawValue: kindValue) else { throw .unknownKind(kindValue) }
        let flags = load(Offset.flags, as: UInt16.self)
        guard flags == 0 else { throw .unknownFlags(flags) }
        let reserved = load(Offset.reserved, as: UInt32.self)
        guard reserved == 0 else { throw .reservedNotZero(reserved) }
        let announced = load(Offset.payloadLength, as: UInt32.self)
        let allowed = kind.payloadLengths
        guard allowed.contains(Int(announced)) else {
            throw .payloadLength(kind, length: announced, allowed: allowed)
        }
        return FrameHeader(
            kind: kind, generation: Generation(load(Offset.generation, as: UInt64.self)),
            epoch: Epoch(load(Offset.epoch, as: UInt64.self)), payloadLength: Int(announced),
            payloadChecksum: load(Offset.payloadChecksum, as: UInt32.self))
    }

    /// Checks the payload against length and checksum of this header.
    public func verify(payload: UnsafeRawBufferPointer) throws(LinkError) {
        guard payload.count == payloadLength else {
            throw .payloadLength(kind, length: UInt32(clamping: payload.count), allowed: payloadLength...payloadLength)
        }
        let computed = CRC32C.checksum(payload)
        guard computed == payloadChecksum else {
            throw .payloadChecksum(kind, computed: computed, carried: payloadChecksum)
        }
    }
}
