import Units

/// The append-only file of sealed epochs, `ram/delta-N.log`. Everything is big endian.
///
/// ```
/// file header, 64 bytes
///  0  u64  magic 0x434f4c4f524c4f47 ("COLORLOG")     8  u32  version, 1     12  u32  0
/// 16  16 bytes  session                             32  u64  digest of the RAM layout
/// 40  u64  first epoch, N      48  u32  1 = the session begins here, from zeroes; 0 = a base or a log comes before
/// 52  8 bytes 0               60  u32  CRC-32C of 0..<60
/// batch record: header of 32 bytes, then the batch as it came (PageBatch)
///  0  u32  0x43524c42 ("CRLB")   4  u32  bytes of the batch   8  u64  epoch   16  u32  index in the epoch, from 0
/// 20  u32  digest of the epoch up to and with this batch     24  u32  0      28  u32  CRC-32C of 0..<28
/// seal record, 48 bytes: ends an epoch
///  0  u32  0x43524c53 ("CRLS")   4  u32  batches   8  u64  epoch   16  u64  bytes of the batches   24  u64  pages
/// 32  u32  digest of the epoch  36  u32  chain   40  u32  0   44  u32  CRC-32C of 0..<44
/// ```
/// chain = CRC-32C over u32 chain of the seal before (0 in front of the first), u64 epoch, u32 batches, u64 bytes,
/// u64 pages, u32 digest: it covers every byte of every epoch of the file.
public enum DeltaLog {
    public static let magic: UInt64 = 0x434F_4C4F_524C_4F47
    public static let version: UInt32 = 1
    public static let headerBytes = 64
    public static let batchHeaderBytes = 32
    public static let sealBytes = 48
    static let batchMagic: UInt32 = 0x4352_4C42
    static let sealMagic: UInt32 = 0x4352_4C53

    /// The file header.
    ///
    /// - Parameter beginsSession: the log starts from RAM that is all zero.
    public static func header(
        session: Identifier, layoutDigest: UInt64, firstEpoch: Epoch, beginsSession: Bool
    ) -> [UInt8] {
        var writer = FixedHeader.begin(magic: magic, version: version, session: session, layoutDigest: layoutDigest)
        writer.write(firstEpoch.rawValue)
        writer.write(UInt32(beginsSession ? 1 : 0))
        return FixedHeader.end(writer, length: headerBytes)
    }

    /// The header in front of a batch.
    ///
    /// - Parameter digest: of the epoch, this batch included.
    public static func batchHeader(epoch: Epoch, index: UInt32, length: Int, digest: UInt32) -> [UInt8] {
        var writer = ByteWriter(reservingCapacity: batchHeaderBytes)
        writer.write(batchMagic)
        writer.write(UInt32(length))
        writer.write(epoch.rawValue)
        writer.write(index)
        writer.write(digest)
        return FixedHeader.end(writer, length: batchHeaderBytes)
    }

    /// The record that ends an epoch.
    public static func seal(epoch: Epoch, digest: RamEpochDigest, chain: UInt32) -> [UInt8] {
        var writer = ByteWriter(reservingCapacity: sealBytes)
        writer.write(sealMagic)
        writer.write(digest.batches)
        writer.write(epoch.rawValue)
        writer.write(digest.bytes)
        writer.write(digest.pages)
        writer.write(digest.value)
        writer.write(chain)
        return FixedHeader.end(writer, length: sealBytes)
    }

    /// The chain value of an epoch's seal.
    public static func chain(after previous: UInt32, epoch: Epoch, digest: RamEpochDigest) -> UInt32 {
        var writer = ByteWriter(reservingCapacity: 36)
        writer.write(previous)
        writer.write(epoch.rawValue)
        writer.write(digest.batches)
        writer.write(digest.bytes)
        writer.write(digest.pages)
        writer.write(digest.value)
        return CRC32C.checksum(writer.bytes)
    }
}

/// Reads a delta log through a window of its bytes, checking every byte of what it returns but the inside of the
/// batches (``PageBatch/verify(_:)`` or the decoder does that).
public struct DeltaLogReader {
    /// One record.
    public enum Record {
        /// A batch as it came; lent by the window.
        case batch(UnsafeRawBufferPointer, epoch: Epoch)
        /// The epoch is complete. `end` is the offset behind the seal.
        case seal(epoch: Epoch, digest: RamEpochDigest, chain: UInt32, end: UInt64)
    }

    /// The longest record in bytes.
    public static let maximumRecordBytes = DeltaLog.batchHeaderBytes + PageBatch.maximumBytes

    /// The first epoch of the file.
    public let firstEpoch: Epoch
    /// Whether the file starts from RAM that is all zero; otherwise a base or another log comes before it.
    public let beginsSession: Bool
    /// Where the next record begins, in bytes from the start of the file.
    public private(set) var offset: UInt64
    /// The epoch whose records come next.
    public private(set) var epoch: Epoch
    /// The chain value of the last seal read; 0 before the first.
    public private(set) var chain: UInt32 = 0
    private var digest = RamEpochDigest()
    /// Whether the last record was a seal, or none was read yet.
    public var isSealed: Bool { digest.batches == 0 }

    /// Checks the file header, the first ``DeltaLog/headerBytes`` bytes of a file.
    public init(
        header bytes: UnsafeRawBufferPointer, session: Identifier, layoutDigest: UInt64
    ) throws(RamFormatError) {
        var header = try FixedHeader.open(
            bytes, length: DeltaLog.headerBytes, magic: DeltaLog.magic, version: DeltaLog.version)
        guard header.session == session else { throw RamFormatError(.session, offset: 16, value: header.session.high) }
        guard header.layoutDigest == layoutDigest else {
            throw RamFormatError(.layout, offset: 32, value: header.layoutDigest)
        }
        do {
            firstEpoch = Epoch(try header.reader.read())
            let flag: UInt32 = try header.reader.read()
            beginsSession = flag == 1
        } catch {
            throw RamFormatError(.truncated, offset: UInt64(error.offset))
        }
        epoch = firstEpoch
        offset = UInt64(DeltaLog.headerBytes)
    }

    /// The next record; nil at the exact end of the file. Any error is a torn or damaged record at ``offset``.
    ///
    /// - Parameter window: the file's bytes from ``offset`` on: ``maximumRecordBytes`` of them or all that are left.
    public mutating func next(_ window: UnsafeRawBufferPointer) throws(RamFormatError) -> Record? {
        if window.isEmpty { return nil }
        guard window.count >= DeltaLog.batchHeaderBytes else { throw fault(.truncated, value: UInt64(window.count)) }
        let magic = PageBatch.load(window, 0, UInt32.self)
        switch magic {
        case DeltaLog.batchMagic: return try nextBatch(window)
        case DeltaLog.sealMagic: return try nextSeal(window)
        default: throw fault(.recordKind, value: UInt64(magic))
        }
    }

    private mutating func nextBatch(_ record: UnsafeRawBufferPointer) throws(RamFormatError) -> Record {
        try checkHeader(record, length: DeltaLog.batchHeaderBytes)
        let length = Int(PageBatch.load(record, 4, UInt32.self))
        guard (PageBatch.headerBytes + 1...PageBatch.maximumBytes).contains(length) else {
            throw fault(.recordLength, value: UInt64(length))
        }
        let end = DeltaLog.batchHeaderBytes + length
        guard record.count >= end else { throw fault(.truncated, value: UInt64(record.count)) }
        let index = PageBatch.load(record, 16, UInt32.self)
        guard index == digest.batches else { throw fault(.index, value: UInt64(index)) }
        let batch = UnsafeRawBufferPointer(rebasing: record[DeltaLog.batchHeaderBytes..<end])
        var next = digest
        next.add(batch)
        let stored = PageBatch.load(record, 20, UInt32.self)
        guard stored == next.value else { throw fault(.batch, value: UInt64(stored)) }
        digest = next
        offset += UInt64(end)
        return .batch(batch, epoch: epoch)
    }

    private mutating func nextSeal(_ record: UnsafeRawBufferPointer) throws(RamFormatError) -> Record {
        guard record.count >= DeltaLog.sealBytes else { throw fault(.truncated, value: UInt64(record.count)) }
        try checkHeader(record, length: DeltaLog.sealBytes)
        guard PageBatch.load(record, 4, UInt32.self) == digest.batches,
            PageBatch.load(record, 16, UInt64.self) == digest.bytes,
            PageBatch.load(record, 24, UInt64.self) == digest.pages,
            PageBatch.load(record, 32, UInt32.self) == digest.value
        else { throw fault(.seal, value: UInt64(digest.batches)) }
        let stored = PageBatch.load(record, 36, UInt32.self)
        guard stored == DeltaLog.chain(after: chain, epoch: epoch, digest: digest) else {
            throw fault(.chain, value: UInt64(stored))
        }
        chain = stored
        offset += UInt64(DeltaLog.sealBytes)
        let sealed = Record.seal(epoch: epoch, digest: digest, chain: chain, end: offset)
        digest = RamEpochDigest()
        epoch = epoch.next
        return sealed
    }

    /// Checksum and epoch, which both kinds of records have.
    private func checkHeader(_ record: UnsafeRawBufferPointer, length: Int) throws(RamFormatError) {
        let stored = PageBatch.load(record, length - 4, UInt32.self)
        guard stored == CRC32C.checksum(UnsafeRawBufferPointer(rebasing: record[0..<length - 4])) else {
            throw fault(.recordChecksum, value: UInt64(stored))
        }
        let found = PageBatch.load(record, 8, UInt64.self)
        guard found == epoch.rawValue else { throw fault(.epoch, value: found) }
        let reserved = PageBatch.load(record, length - 8, UInt32.self)
        guard reserved == 0 else { throw fault(.reserved, value: UInt64(reserved)) }
    }

    private func fault(_ fault: RamFormatError.Fault, value: UInt64) -> RamFormatError {
        RamFormatError(fault, offset: offset, value: value, epoch: epoch)
    }
}
