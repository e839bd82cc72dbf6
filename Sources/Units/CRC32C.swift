import CKernels

/// CRC-32C (Castagnoli, RFC 3720 appendix B.4): reflected polynomial 0x82F63B78, initial value and final XOR of all
/// ones.
public struct CRC32C: Sendable {
    private var state: UInt32 = 0xFFFF_FFFF

    public init() {}

    /// The checksum of everything given so far.
    public var value: UInt32 { ~state }

    /// By the processor's own instruction where it has one (SSE 4.2), else by tables.
    public mutating func update(_ bytes: UnsafeRawBufferPointer) {
        guard Self.hasInstruction, let base = bytes.baseAddress else { return updateByTables(bytes) }
        state = ckn_crc32c(state, base, bytes.count)
    }

    private static let hasInstruction = ckn_has_crc32c() != 0

    /// The way that any processor has.
    mutating func updateByTables(_ bytes: UnsafeRawBufferPointer) {
        Self.tables.withUnsafeBufferPointer { table in
            var crc = state
            var offset = 0
            let count = bytes.count
            while offset + 16 <= count {
                let first = UInt32(littleEndian: bytes.loadUnaligned(fromByteOffset: offset, as: UInt32.self)) ^ crc
                let second = UInt32(littleEndian: bytes.loadUnaligned(fromByteOffset: offset + 4, as: UInt32.self))
                let third = UInt32(littleEndian: bytes.loadUnaligned(fromByteOffset: offset + 8, as: UInt32.self))
                let fourth = UInt32(littleEndian: bytes.loadUnaligned(fromByteOffset: offset + 12, as: UInt32.self))
                // What does not depend on the bytes before comes first, and is done while they are waited for.
                let late = Self.four(table, 0, fourth) ^ Self.four(table, 4, third)
                let middle = Self.four(table, 8, second)
                let early = Self.four(table, 12, first)
                crc = late ^ middle ^ early
                offset += 16
            }
            while offset + 8 <= count {
                let low = UInt32(littleEndian: bytes.loadUnaligned(fromByteOffset: offset, as: UInt32.self)) ^ crc
                let high = UInt32(littleEndian: bytes.loadUnaligned(fromByteOffset: offset + 4, as: UInt32.self))
                crc = Self.four(table, 4, low) ^ Self.four(table, 0, high)
                offset += 8
            }
            while offset < count {
                crc = table[Int((crc ^ UInt32(bytes[offset])) & 0xFF)] ^ crc >> 8
                offset += 1
            }
            state = crc
        }
    }

    /// What four bytes become by the four tables from `first` on.
    @inline(__always)
    private static func four(_ table: UnsafeBufferPointer<UInt32>, _ first: Int, _ value: UInt32) -> UInt32 {
        let one: UInt32 = table[(first + 3) * 256 + Int(value & 0xFF)]
        let two: UInt32 = table[(first + 2) * 256 + Int(value >> 8 & 0xFF)]
        let three: UInt32 = table[(first + 1) * 256 + Int(value >> 16 & 0xFF)]
        let four: UInt32 = table[first * 256 + Int(value >> 24)]
        return one ^ two ^ three ^ four
    }

    public mutating func update(_ bytes: [UInt8]) {
        bytes.withUnsafeBytes { update($0) }
    }

    public static func checksum(_ bytes: UnsafeRawBufferPointer) -> UInt32 {
        var crc = CRC32C()
        crc.update(bytes)
        return crc.value
    }

    public static func checksum(_ bytes: [UInt8]) -> UInt32 {
        bytes.withUnsafeBytes { checksum($0) }
    }

    /// Sixteen tables of 256 entries, one behind the other ("slicing by sixteen").
    private static let tables: [UInt32] = {
        var tables = [UInt32](repeating: 0, count: 16 * 256)
        for index in 0..<256 {
            var crc = UInt32(index)
            for _ in 0..<8 { crc = crc & 1 == 1 ? crc >> 1 ^ 0x82F6_3B78 : crc >> 1 }
            tables[index] = crc
        }
        for table in 1..<16 {
            for index in 0..<256 {
                let previous = tables[(table - 1) * 256 + index]
                tables[table * 256 + index] = tables[Int(previous & 0xFF)] ^ previous >> 8
            }
        }
        return tables
    }()
}
