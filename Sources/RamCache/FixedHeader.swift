import Units

/// The common shape of every header of the RAM store's files: magic, version, session, layout, then fields of its own,
/// and a CRC-32C of everything before it in the last four bytes.
enum FixedHeader {
    /// Begins a header.
    static func begin(magic: UInt64, version: UInt32, session: Identifier, layoutDigest: UInt64) -> ByteWriter {
        var writer = ByteWriter(reservingCapacity: 128)
        writer.write(magic)
        writer.write(version)
        writer.write(UInt32(0))
        writer.write(session.high)
        writer.write(session.low)
        writer.write(layoutDigest)
        return writer
    }

    /// Pads with zeroes to `length` bytes and puts the checksum at the end.
    static func end(_ writer: consuming ByteWriter, length: Int) -> [UInt8] {
        var writer = writer
        precondition(writer.count <= length - 4)
        writer.writeZeroes(length - 4 - writer.count)
        writer.write(CRC32C.checksum(writer.bytes))
        return writer.bytes
    }

    /// Checks everything but the fields of its own; returns a reader that stands at the first of those.
    static func open(
        _ bytes: UnsafeRawBufferPointer, length: Int, magic: UInt64, version: UInt32
    ) throws(RamFormatError) -> (reader: ByteReader, session: Identifier, layoutDigest: UInt64) {
        guard bytes.count >= length else {
            throw RamFormatError(.truncated, offset: 0, value: UInt64(bytes.count))
        }
        let header = UnsafeRawBufferPointer(rebasing: bytes[0..<length])
        let foundMagic = PageBatch.load(header, 0, UInt64.self)
        guard foundMagic == magic else { throw RamFormatError(.magic, offset: 0, value: foundMagic) }
        let foundVersion = PageBatch.load(header, 8, UInt32.self)
        guard foundVersion == version else { throw RamFormatError(.version, offset: 8, value: UInt64(foundVersion)) }
        let stored = PageBatch.load(header, length - 4, UInt32.self)
        guard stored == CRC32C.checksum(UnsafeRawBufferPointer(rebasing: header[0..<length - 4])) else {
            throw RamFormatError(.headerChecksum, offset: UInt64(length - 4), value: UInt64(stored))
        }
        var reader = ByteReader(header)
        do {
            try reader.skip(16)
            let session = Identifier(high: try reader.read(), low: try reader.read())
            let layoutDigest: UInt64 = try reader.read()
            return (reader, session, layoutDigest)
        } catch {
            throw RamFormatError(.truncated, offset: UInt64(error.offset))
        }
    }
}
