import Units

/// The checksums of a base image, `ram/base-N.sum`. The image itself, `ram/base-N.ram`, is sparse: the contents of all
/// RAM blocks at the end of epoch N, one behind the other in the order of the layout, nothing else. Big endian.
///
/// ```
/// header, 72 bytes
///  0  u64  magic 0x434f4c4f5253554d ("COLORSUM")     8  u32  version, 1     12  u32  0
/// 16  16 bytes  session                             32  u64  digest of the RAM layout
/// 40  u64  epoch, N      48  u64  number of pages   56  u32  CRC-32C of the table
/// 60  8 bytes 0          68  u32  CRC-32C of 0..<68
/// table: per page u32, CRC-32C of its 4096 bytes (zero pages too)
/// ```
public struct BaseImageSums: Equatable, Sendable {
    public static let magic: UInt64 = 0x434F_4C4F_5253_554D
    public static let version: UInt32 = 1
    public static let headerBytes = 72
    /// CRC-32C of a page of zeroes.
    public static let zeroPage: UInt32 = CRC32C.checksum([UInt8](repeating: 0, count: Sizes.page))

    public let session: Identifier
    public let layoutDigest: UInt64
    public let epoch: Epoch
    /// Per page, counted through all blocks.
    public var pages: [UInt32]

    /// All pages zero.
    public init(session: Identifier, layout: RamLayout, epoch: Epoch) {
        self.session = session
        self.layoutDigest = layout.digest
        self.epoch = epoch
        pages = Array(repeating: Self.zeroPage, count: layout.pageCount)
    }

    /// The length of the file in bytes.
    public static func fileBytes(pageCount: Int) -> UInt64 { UInt64(headerBytes) + UInt64(pageCount) * 4 }

    /// The file's bytes.
    public func encoded() -> [UInt8] {
        var table = [UInt8](repeating: 0, count: pages.count * 4)
        table.withUnsafeMutableBytes { bytes in
            for (index, value) in pages.enumerated() {
                bytes.storeBytes(of: value.bigEndian, toByteOffset: index * 4, as: UInt32.self)
            }
        }
        var writer = FixedHeader.begin(
            magic: Self.magic, version: Self.version, session: session, layoutDigest: layoutDigest)
        writer.write(epoch.rawValue)
        writer.write(UInt64(pages.count))
        writer.write(CRC32C.checksum(table))
        return FixedHeader.end(writer, length: Self.headerBytes) + table
    }

    /// Reads and checks a file for the given session, layout and epoch.
    public init(
        decoding bytes: UnsafeRawBufferPointer, session: Identifier, layout: RamLayout, epoch: Epoch
    ) throws(RamFormatError) {
        var header = try FixedHeader.open(
            bytes, length: Self.headerBytes, magic: Self.magic, version: Self.version)
        guard header.session == session else { throw RamFormatError(.session, offset: 16, value: header.session.high) }
        guard header.layoutDigest == layout.digest else {
            throw RamFormatError(.layout, offset: 32, value: header.layoutDigest)
        }
        let found: UInt64
        let count: UInt64
        let tableChecksum: UInt32
        do {
            found = try header.reader.read()
            count = try header.reader.read()
            tableChecksum = try header.reader.read()
        } catch {
            throw RamFormatError(.truncated, offset: UInt64(error.offset))
        }
        guard found == epoch.rawValue else { throw RamFormatError(.epoch, offset: 40, value: found, epoch: epoch) }
        guard count == UInt64(layout.pageCount) else {
            throw RamFormatError(.pageCount, offset: 48, value: count, epoch: epoch)
        }
        let table = UnsafeRawBufferPointer(rebasing: bytes[Self.headerBytes...])
        guard table.count == layout.pageCount * 4 else {
            throw RamFormatError(.truncated, offset: UInt64(bytes.count), value: UInt64(table.count), epoch: epoch)
        }
        guard CRC32C.checksum(table) == tableChecksum else {
            throw RamFormatError(.tableChecksum, offset: 56, value: UInt64(tableChecksum), epoch: epoch)
        }
        self.session = session
        self.layoutDigest = layout.digest
        self.epoch = epoch
        pages = (0..<layout.pageCount).map { PageBatch.load(table, $0 * 4, UInt32.self) }
    }

    /// CRC-32C of a file's header: what ``RamFileReference/digest`` holds for a base.
    public static func digest(ofFile bytes: UnsafeRawBufferPointer) -> UInt32 {
        CRC32C.checksum(UnsafeRawBufferPointer(rebasing: bytes[0..<min(headerBytes, bytes.count)]))
    }
}
