import Testing
import Units

@Suite("Byte reader and writer")
struct ByteReaderTests {
    @Test("reads what the writer wrote, big endian and at any alignment")
    func roundTrip() throws {
        var writer = ByteWriter()
        writer.write(UInt8(1))
        writer.write(UInt16(0x0203))
        writer.write(UInt32(0x0405_0607))
        writer.write(UInt64(0x0809_0A0B_0C0D_0E0F))
        writer.write(utf8: "ö")
        writer.writeZeroes(2)
        #expect(writer.bytes == Array(1...15) + [0xC3, 0xB6, 0, 0])
        try writer.bytes.withUnsafeBytes { raw in
            var reader = ByteReader(raw)
            #expect(try reader.read(UInt8.self) == 1)
            #expect(try reader.read(UInt16.self) == 0x0203)
            #expect(try reader.read(UInt32.self) == 0x0405_0607)
            #expect(try reader.read(UInt64.self) == 0x0809_0A0B_0C0D_0E0F)
            #expect(try reader.readString(2) == "ö")
            try reader.skip(1)
            #expect(reader.offset == 18)
            #expect(reader.remaining == 1)
            #expect(Array(try reader.readBytes(1)) == [0])
            #expect(reader.count == 19)
        }
    }

    /// What a read ended in: the fault, or nil, and where the reader stands then.
    private static func fault(
        _ bytes: [UInt8], _ read: (inout ByteReader) throws(ByteReader.Truncated) -> Void
    ) -> (fault: ByteReader.Truncated?, offset: Int) {
        bytes.withUnsafeBytes { raw in
            var reader = ByteReader(raw)
            do throws(ByteReader.Truncated) {
                try read(&reader)
                return (nil, reader.offset)
            } catch {
                return (error, reader.offset)
            }
        }
    }

    @Test("refuses every read beyond the end, says where, and stays where it was")
    func bounds() {
        for count in 0..<8 {
            let bytes = [UInt8](repeating: 7, count: count)
            let number = Self.fault(bytes) { (reader) throws(ByteReader.Truncated) in _ = try reader.read(UInt64.self) }
            #expect(number.fault?.offset == 0 && number.fault?.needed == 8 && number.fault?.available == count)
            #expect(number.offset == 0)
            for length in [count + 1, .max, -1] {
                let skip = Self.fault(bytes) { (reader) throws(ByteReader.Truncated) in try reader.skip(length) }
                #expect(skip.fault?.needed == length && skip.offset == 0)
                let slice = Self.fault(bytes) { (reader) throws(ByteReader.Truncated) in
                    _ = try reader.readBytes(length)
                }
                #expect(slice.fault?.needed == length && slice.offset == 0)
            }
            let exact = Self.fault(bytes) { (reader) throws(ByteReader.Truncated) in try reader.skip(count) }
            #expect(exact.fault == nil && exact.offset == count)
        }
    }

    @Test("takes bytes that are not UTF-8 for no text")
    func text() throws {
        let bytes: [UInt8] = [0xC3, 0x28]
        let text = try bytes.withUnsafeBytes { raw in
            var reader = ByteReader(raw)
            return try reader.readString(2)
        }
        #expect(text == nil)
    }

    @Test("overwrites a value that was written before")
    func overwrite() {
        var writer = ByteWriter()
        writer.writeZeroes(6)
        writer.overwrite(at: 2, UInt32(0x0102_0304))
        #expect(writer.bytes == [0, 0, 1, 2, 3, 4])
    }
}
