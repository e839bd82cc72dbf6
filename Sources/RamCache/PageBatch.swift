import Units

/// The unit in which RAM travels from the primary to the secondary and into the delta log: up to 64 changed pages.
///
/// Everything is big endian.
/// ```
/// header, 24 bytes
///  0  u32  magic 0x43524231 ("CRB1")
///  4  u8   version, 1
///  5  u8   codec of the payload: 0 none, 1 zstd (one or more frames whose contents are the raw payload)
///  6  u16  reserved, 0
///  8  u16  number of entries, 1...64
/// 10  u16  reserved, 0
/// 12  u32  raw length: bytes of the payload before compression, 1...262592
/// 16  u32  encoded length: bytes that follow the header (equal to the raw length when the codec is 0)
/// 20  u32  CRC-32C of bytes 0..<20 and of the encoded payload
/// raw payload: the entries, one behind the other, nothing behind the last
///  u8      tag: bits 0-1 kind (0 zero page, 1 raw page, 2 delta; 3 is invalid)
///               bit 2    a u16 block index follows; without it the block of the entry before
///               bits 3-7 page: 0...29 = page of the entry before + 1 + this value (same block only),
///                        30 = a u24 page index follows, 31 = a u32 page index follows
///  u16     block index, when bit 2 is set
///  u24/u32 page index inside the block, when the page field is 30 or 31
///  zero page: nothing; raw page: 4096 bytes; delta: see docs/ram-format.md ("LM8")
/// ```
/// The first entry carries its block and its page. A page may occur more than once; entries count in order.
/// Deltas refer to the page as it is after everything before them: earlier batches and earlier entries.
public enum PageBatch {
    /// "CRB1".
    public static let magic: UInt32 = 0x4352_4231
    public static let version: UInt8 = 1
    /// Bytes of the header.
    public static let headerBytes = 24
    /// The most entries in a batch.
    public static let maximumPages = 64
    /// The longest raw payload in bytes: 64 raw pages, each with the longest address.
    public static let maximumRawBytes = maximumPages * (Sizes.page + maximumAddressBytes)
    /// The longest batch in bytes, header included. Nothing longer needs to be received.
    public static let maximumBytes = headerBytes + maximumRawBytes

    static let maximumAddressBytes = 7

    /// How the payload is carried.
    enum Codec: UInt8 {
        case none = 0
        case zstd = 1
    }

    /// What an entry says about its page.
    enum Kind: UInt8 {
        case zero = 0
        case raw = 1
        case delta = 2
    }

    enum Tag {
        static let kindMask: UInt8 = 0b11
        static let hasBlock: UInt8 = 0b100
        static let pageShift: UInt8 = 3
        static let largestGap: UInt8 = 29
        static let page24: UInt8 = 30
        static let page32: UInt8 = 31
    }

    /// The fixed part of a batch.
    struct Header: Equatable {
        var codec: Codec
        var pageCount: Int
        var rawLength: Int
        var encodedLength: Int
        var checksum: UInt32

        /// Reads and checks the header alone; the payload must fill the rest of `batch` exactly.
        init(_ batch: UnsafeRawBufferPointer) throws(RamBatchError) {
            guard batch.count >= PageBatch.headerBytes else {
                throw RamBatchError(.truncatedHeader, offset: 0, value: UInt64(batch.count))
            }
            let magic = PageBatch.load(batch, 0, UInt32.self)
            guard magic == PageBatch.magic else { throw RamBatchError(.magic, offset: 0, value: UInt64(magic)) }
            guard batch[4] == PageBatch.version else {
                throw RamBatchError(.version, offset: 4, value: UInt64(batch[4]))
            }
            guard let codec = Codec(rawValue: batch[5]) else {
                throw RamBatchError(.codec, offset: 5, value: UInt64(batch[5]))
            }
            for offset in [6, 10] {
                let reserved = PageBatch.load(batch, offset, UInt16.self)
                guard reserved == 0 else { throw RamBatchError(.reserved, offset: offset, value: UInt64(reserved)) }
            }
            let pages = Int(PageBatch.load(batch, 8, UInt16.self))
            guard (1...PageBatch.maximumPages).contains(pages) else {
                throw RamBatchError(.pageCount, offset: 8, value: UInt64(pages))
            }
            let raw = Int(PageBatch.load(batch, 12, UInt32.self))
            guard (1...PageBatch.maximumRawBytes).contains(raw) else {
                throw RamBatchError(.rawLength, offset: 12, value: UInt64(raw))
            }
            let encoded = Int(PageBatch.load(batch, 16, UInt32.self))
            guard encoded == batch.count - PageBatch.headerBytes, codec == .zstd ? encoded < raw : encoded == raw else {
                throw RamBatchError(.encodedLength, offset: 16, value: UInt64(encoded))
            }
            self.codec = codec
            self.pageCount = pages
            self.rawLength = raw
            self.encodedLength = encoded
            self.checksum = PageBatch.load(batch, 20, UInt32.self)
        }
    }

    /// Checks header and checksum of a batch without looking at its entries.
    ///
    /// - Returns: the number of entries.
    @discardableResult
    public static func verify(_ batch: UnsafeRawBufferPointer) throws(RamBatchError) -> Int {
        try verifiedHeader(batch).pageCount
    }

    static func verifiedHeader(_ batch: UnsafeRawBufferPointer) throws(RamBatchError) -> Header {
        let header = try Header(batch)
        let checksum = checksum(of: batch)
        guard checksum == header.checksum else {
            throw RamBatchError(.checksum, offset: 20, value: UInt64(header.checksum))
        }
        return header
    }

    /// The checksum that belongs at offset 20.
    static func checksum(of batch: UnsafeRawBufferPointer) -> UInt32 {
        var crc = CRC32C()
        crc.update(UnsafeRawBufferPointer(rebasing: batch[0..<20]))
        crc.update(UnsafeRawBufferPointer(rebasing: batch[headerBytes...]))
        return crc.value
    }

    @inline(__always)
    static func load<T: FixedWidthInteger>(_ bytes: UnsafeRawBufferPointer, _ offset: Int, _ type: T.Type) -> T {
        T(bigEndian: bytes.loadUnaligned(fromByteOffset: offset, as: T.self))
    }
}
