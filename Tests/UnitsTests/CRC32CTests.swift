import Testing

@testable import Units

@Suite("CRC-32C")
struct CRC32CTests {
    @Test("gives the values of RFC 3720, appendix B.4")
    func vectors() {
        #expect(CRC32C.checksum([UInt8](repeating: 0, count: 32)) == 0x8A91_36AA)
        #expect(CRC32C.checksum([UInt8](repeating: 0xFF, count: 32)) == 0x62A8_AB43)
        #expect(CRC32C.checksum(Array(0..<32)) == 0x46DD_794E)
        #expect(CRC32C.checksum(Array((0..<32).reversed())) == 0x113F_DB5C)
        #expect(CRC32C.checksum(Array("123456789".utf8)) == 0xE306_9283)
        #expect(CRC32C.checksum([UInt8]()) == 0)
    }

    @Test("is the same in pieces as at once, whatever the cut")
    func pieces() {
        let bytes = (0..<100).map { UInt8(truncatingIfNeeded: $0 &* 37 &+ 11) }
        let whole = CRC32C.checksum(bytes)
        for first in 0...100 {
            for second in stride(from: first, through: 100, by: 7) {
                var crc = CRC32C()
                crc.update(Array(bytes[..<first]))
                crc.update(Array(bytes[first..<second]))
                crc.update(Array(bytes[second...]))
                #expect(crc.value == whole, "cuts at \(first), \(second)")
            }
        }
    }

    @Test("agrees with the bit-by-bit definition at every length and alignment")
    func definition() {
        func bitwise(_ bytes: ArraySlice<UInt8>) -> UInt32 {
            var crc: UInt32 = .max
            for byte in bytes {
                crc ^= UInt32(byte)
                for _ in 0..<8 { crc = crc & 1 == 1 ? crc >> 1 ^ 0x82F6_3B78 : crc >> 1 }
            }
            return ~crc
        }
        let bytes = (0..<64).map { UInt8(truncatingIfNeeded: $0 &* 91 &+ 5) }
        for start in 0..<16 {
            for end in start...64 {
                let sum = bytes.withUnsafeBytes { CRC32C.checksum(UnsafeRawBufferPointer(rebasing: $0[start..<end])) }
                #expect(sum == bitwise(bytes[start..<end]), "\(start)..<\(end)")
                var slow = CRC32C()
                bytes.withUnsafeBytes { slow.updateByTables(UnsafeRawBufferPointer(rebasing: $0[start..<end])) }
                #expect(slow.value == sum, "by tables, \(start)..<\(end)")
            }
        }
    }
}
