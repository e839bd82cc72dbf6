/// Why an image of somebody else cannot be read. Every case says at which byte of the file, and what is wrong there.
public enum ImageError: Error, Equatable, Sendable, CustomStringConvertible {
    /// The file ends before the structure does. `offset` is where the structure starts.
    case truncated(what: String, offset: UInt64, needed: UInt64, available: UInt64)
    /// The file does not start with the letters QFI and 0xFB.
    case notQcow2(magic: UInt32)
    /// A version other than 2 and 3.
    case unsupportedVersion(UInt32)
    /// Something that this reader cannot do. `offset` is the place in the header that asks for it.
    case unsupported(feature: String, offset: UInt64, remedy: String)
    /// A field of the header, or of a header extension, outside its range.
    case badField(name: String, offset: UInt64, value: UInt64, allowed: String)
    /// A table entry that cannot be right. `offset` is the entry's place in the file.
    case badEntry(table: String, offset: UInt64, value: UInt64, reason: String)
    /// Compressed bytes that do not give a whole cluster. `offset` is their place in the file.
    case badCompression(offset: UInt64, length: UInt64, reason: String)

    public var description: String {
        switch self {
        case .truncated(let what, let offset, let needed, let available):
            "\(what) at byte \(offset) is cut: \(needed) bytes are needed, \(available) are there. The file is damaged."
        case .notQcow2(let magic):
            "not a qcow2 image: it starts with 0x\(String(magic, radix: 16)). Check which file this is."
        case .unsupportedVersion(let version):
            "version \(version) at byte 4 is not supported, only 2 and 3. Convert the image with its own program."
        case .unsupported(let feature, let offset, let remedy):
            "the image uses \(feature) (byte \(offset)), which cannot be read here. \(remedy)"
        case .badField(let name, let offset, let value, let allowed):
            "\(name) at byte \(offset) is \(value), allowed is \(allowed). The file is damaged or hostile."
        case .badEntry(let table, let offset, let value, let reason):
            "\(table) entry at byte \(offset) is 0x\(String(value, radix: 16)): \(reason). The file is damaged."
        case .badCompression(let offset, let length, let reason):
            "the compressed cluster at byte \(offset) (\(length) bytes) cannot be unpacked: \(reason). "
                + "The file is damaged."
        }
    }
}
