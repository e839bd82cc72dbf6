import Units

/// The header of `staging.map`, which says what the slots of `staging.ram` hold. Big endian.
///
/// ```
/// header, 104 bytes at offset 0
///  0  u64  magic 0x434f4c4f52535447 ("COLORSTG")     8  u32  version, 1     12  u32  0
/// 16  16 bytes  session                             32  u64  digest of the RAM layout
/// 40  u64  epoch        48  u64  number of entries  56  u32  CRC-32C of the entries (0 while open)
/// 60  u32  state: 1 open, 2 sealed                  64  u32  batches   68  u64  pages   76  u64  bytes
/// 84  u32  digest of the epoch                      88  12 bytes 0     100  u32  CRC-32C of 0..<100
/// entries at offset 4096, u64 each, in the byte order of the host (the file never leaves it)
///  bits 32-63 page, counted through all blocks; bit 31 the page is zero; bits 0-30 slot (all ones = none)
/// ```
public struct StagingMapHeader: Equatable, Sendable {
    public static let magic: UInt64 = 0x434F_4C4F_5253_5447
    public static let version: UInt32 = 1
    public static let bytes = 104
    /// Where the entries begin in the file, in bytes.
    public static let entriesOffset = 4096

    public enum State: UInt32, Sendable {
        /// Batches are arriving; of no use if found. Next: sealed.
        case open = 1
        /// All of the epoch is there. Next: open, for a later epoch.
        case sealed = 2
    }

    public var session: Identifier
    public var layoutDigest: UInt64
    public var epoch: Epoch
    public var entryCount: UInt64
    public var entryChecksum: UInt32
    public var state: State
    public var batches: UInt32
    public var pages: UInt64
    public var batchBytes: UInt64
    public var digest: UInt32

    public init(session: Identifier, layoutDigest: UInt64, epoch: Epoch) {
        self.session = session
        self.layoutDigest = layoutDigest
        self.epoch = epoch
        entryCount = 0
        entryChecksum = 0
        state = .open
        batches = 0
        pages = 0
        batchBytes = 0
        digest = 0
    }

    /// The bytes of the header.
    public func encoded() -> [UInt8] {
        var writer = FixedHeader.begin(
            magic: Self.magic, version: Self.version, session: session, layoutDigest: layoutDigest)
        writer.write(epoch.rawValue)
        writer.write(entryCount)
        writer.write(entryChecksum)
        writer.write(state.rawValue)
        writer.write(batches)
        writer.write(pages)
        writer.write(batchBytes)
        writer.write(digest)
        return FixedHeader.end(writer, length: Self.bytes)
    }

    /// Reads and checks a header.
    public init(decoding file: UnsafeRawBufferPointer) throws(RamFormatError) {
        var header = try FixedHeader.open(file, length: Self.bytes, magic: Self.magic, version: Self.version)
        do {
            session = header.session
            layoutDigest = header.layoutDigest
            epoch = Epoch(try header.reader.read())
            entryCount = try header.reader.read()
            entryChecksum = try header.reader.read()
            let raw: UInt32 = try header.reader.read()
            guard let state = State(rawValue: raw) else { throw RamFormatError(.state, offset: 60, value: UInt64(raw)) }
            self.state = state
            batches = try header.reader.read()
            pages = try header.reader.read()
            batchBytes = try header.reader.read()
            digest = try header.reader.read()
        } catch let error as RamFormatError {
            throw error
        } catch {
            throw RamFormatError(.truncated, offset: 0)
        }
    }
}

/// One entry of a staging map: which page, and where its contents are.
public struct StagingEntry: Equatable, Sendable {
    /// The value of ``slot`` when there is none.
    public static let noSlot: UInt32 = 0x7FFF_FFFF

    public var rawValue: UInt64

    @inline(__always)
    public init(rawValue: UInt64) { self.rawValue = rawValue }

    @inline(__always)
    public init(page: Int, isZero: Bool, slot: UInt32) {
        rawValue = UInt64(page) << 32 | (isZero ? 1 << 31 : 0) | UInt64(slot)
    }

    /// Page, counted through all blocks.
    @inline(__always)
    public var page: Int { Int(rawValue >> 32) }
    /// Whether the page is zero, whatever its slot holds.
    @inline(__always)
    public var isZero: Bool { rawValue & 1 << 31 != 0 }
    /// Index of the 4096 bytes in `staging.ram`.
    @inline(__always)
    public var slot: UInt32 { UInt32(truncatingIfNeeded: rawValue & 0x7FFF_FFFF) }
}
