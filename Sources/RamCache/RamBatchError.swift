/// Why a page batch is refused. Offsets below ``PageBatch/headerBytes`` lie in the header; offsets of entries are
/// counted in the raw payload, from its first byte.
public struct RamBatchError: Error, Equatable, CustomStringConvertible {
    /// What is wrong.
    public enum Fault: String, Sendable {
        case truncatedHeader = "is shorter than its header"
        case magic = "has the wrong magic"
        case version = "has an unknown version"
        case codec = "has an unknown codec"
        case reserved = "has a reserved field that is not zero"
        case pageCount = "has a number of pages that is not 1 to 64"
        case rawLength = "has a raw length out of range"
        case encodedLength = "has an encoded length that does not agree with its bytes"
        case checksum = "does not match its CRC-32C"
        case decompression = "cannot be decompressed to its raw length"
        case truncatedEntry = "ends inside an entry"
        case tag = "has an entry with an invalid tag"
        case block = "names a RAM block that does not exist"
        case page = "names a page behind the end of its RAM block"
        case delta = "has an invalid page delta"
        case trailingBytes = "has bytes behind its last entry"
    }

    public let fault: Fault
    /// Byte at which the fault was found.
    public let offset: Int
    /// The offending value.
    public let value: UInt64

    init(_ fault: Fault, offset: Int, value: UInt64) {
        self.fault = fault
        self.offset = offset
        self.value = value
    }

    public var description: String {
        "RAM batch \(fault.rawValue) (byte \(offset), value \(value)); nothing of it was applied"
    }
}
