import Units

/// How far a cache directory is: the file `applied` beside the cache files, two slots of 64 bytes written alternately.
///
/// ```
///  0  u64  magic 0x434f4c4f524d524b ("COLORMRK")     8  u32  version, 1     12  u32  0
/// 16  16 bytes  session                             32  u64  digest of the RAM layout
/// 40  u64  epoch   48  u64  sequence, grows by 1 with every write   56  u32  state   60  u32  CRC-32C of 0..<60
/// ```
/// The valid slot with the higher sequence counts. Big endian.
public struct RamMarker: Equatable, Sendable {
    public static let magic: UInt64 = 0x434F_4C4F_524D_524B
    public static let version: UInt32 = 1
    /// Bytes of one slot.
    public static let slotBytes = 64

    /// What the cache holds.
    public enum State: UInt32, Sendable {
        /// An epoch is being decoded straight into the cache (initial copy or rebuild): of no use if found. Next: filled.
        case filling = 1
        /// The cache holds the epoch, which was written straight into it; it may not be committed yet. Next: applied.
        case filled = 2
        /// The sealed staging of the epoch is being copied into the cache; copying it again finishes it. Next: applied.
        case applying = 3
        /// The cache holds exactly the epoch. Next: applying.
        case applied = 4
    }

    public var session: Identifier
    public var layoutDigest: UInt64
    public var epoch: Epoch
    public var sequence: UInt64
    public var state: State

    public init(session: Identifier, layoutDigest: UInt64, epoch: Epoch, sequence: UInt64, state: State) {
        self.session = session
        self.layoutDigest = layoutDigest
        self.epoch = epoch
        self.sequence = sequence
        self.state = state
    }

    /// The offset in the file at which this marker belongs.
    public var offset: UInt64 { sequence % 2 * UInt64(Self.slotBytes) }

    /// The bytes of one slot.
    public func encoded() -> [UInt8] {
        var writer = FixedHeader.begin(
            magic: Self.magic, version: Self.version, session: session, layoutDigest: layoutDigest)
        writer.write(epoch.rawValue)
        writer.write(sequence)
        writer.write(state.rawValue)
        return FixedHeader.end(writer, length: Self.slotBytes)
    }

    /// Reads one slot.
    public init(decoding bytes: UnsafeRawBufferPointer) throws(RamFormatError) {
        var header = try FixedHeader.open(bytes, length: Self.slotBytes, magic: Self.magic, version: Self.version)
        do {
            session = header.session
            layoutDigest = header.layoutDigest
            epoch = Epoch(try header.reader.read())
            sequence = try header.reader.read()
            let raw: UInt32 = try header.reader.read()
            guard let state = State(rawValue: raw) else { throw RamFormatError(.state, offset: 56, value: UInt64(raw)) }
            self.state = state
        } catch let error as RamFormatError {
            throw error
        } catch {
            throw RamFormatError(.truncated, offset: 0)
        }
    }

    /// The marker that counts in a file's bytes; nil when neither slot is valid.
    public static func newest(in file: UnsafeRawBufferPointer) -> RamMarker? {
        var newest: RamMarker?
        for start in stride(from: 0, to: 2 * slotBytes, by: slotBytes) where file.count >= start + slotBytes {
            let slot = UnsafeRawBufferPointer(rebasing: file[start..<start + slotBytes])
            guard let marker = try? RamMarker(decoding: slot) else { continue }
            if marker.sequence >= newest?.sequence ?? 0 { newest = marker }
        }
        return newest
    }
}
