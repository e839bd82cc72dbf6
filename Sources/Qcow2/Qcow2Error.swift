/// Why a qcow2 image is refused, or cannot be made or extended.
public enum Qcow2Error: Error, Equatable, Sendable, CustomStringConvertible {
    /// The bytes end before the structure does.
    case truncated(what: String, needed: Int, available: Int)
    /// The file does not start with the letters QFI and 0xFB.
    case notQcow2(magic: UInt32)
    /// A version other than 3.
    case unsupportedVersion(UInt32)
    /// A feature that these overlays never have.
    case unsupportedFeature(String)
    /// A header field outside its range.
    case badField(name: String, value: UInt64, allowed: String)
    /// A table entry that points nowhere sensible. `offset` is the entry's place in the file, in bytes.
    case badEntry(table: String, offset: UInt64, value: UInt64, reason: String)
    /// The disk cannot be described with this cluster size.
    case diskTooLarge(size: UInt64, limit: UInt64)
    /// A disk's size must be a multiple of 512 bytes and more than nothing.
    case badDiskSize(UInt64)
    /// The backing file's name does not fit.
    case backingNameTooLong(bytes: Int, limit: Int)
    /// The file has grown to what its refcount table can count.
    case imageFull(clusters: UInt64, limit: UInt64)

    public var description: String {
        switch self {
        case .truncated(let what, let needed, let available):
            "\(what) is cut: \(needed) bytes are needed, \(available) are there. The file is damaged."
        case .notQcow2(let magic):
            "not a qcow2 image: it starts with 0x\(String(magic, radix: 16)). Check which file this is."
        case .unsupportedVersion(let version):
            "qcow2 version \(version) is not supported, only 3. Convert it with qemu-img amend -o compat=1.1."
        case .unsupportedFeature(let name):
            "the image uses \(name), which an overlay of a replica never has. It was not made by this program."
        case .badField(let name, let value, let allowed):
            "header field \(name) is \(value), allowed is \(allowed). The file is damaged or hostile."
        case .badEntry(let table, let offset, let value, let reason):
            "\(table) entry at byte \(offset) is 0x\(String(value, radix: 16)): \(reason). The file is damaged."
        case .diskTooLarge(let size, let limit):
            "a disk of \(size) bytes is too large: the limit is \(limit) bytes. Split the disk."
        case .badDiskSize(let size):
            "a disk of \(size) bytes cannot be replicated: the size must be a multiple of 512 and more than 0."
        case .backingNameTooLong(let bytes, let limit):
            "the backing file's name has \(bytes) bytes, the limit is \(limit). Use a shorter path."
        case .imageFull(let clusters, let limit):
            "the overlay would need \(clusters) clusters, its refcount table ends at \(limit). Commit sooner."
        }
    }
}
