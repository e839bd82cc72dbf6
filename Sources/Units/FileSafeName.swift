/// The names that may become a file or folder of a store: guests, disks, files.
///
/// A name comes from a peer or from a record, so it must never be able to leave its folder or hide in it.
public enum FileSafeName {
    /// The longest name in bytes.
    public static let lengthMax = 64

    /// What a name must look like, for messages.
    public static let rule = "1 to 64 of A-Z a-z 0-9 . _ - with a letter, digit or _ first"

    /// Whether `name` may be used as a single path component.
    public static func isValid(_ name: some StringProtocol) -> Bool {
        let bytes = name.utf8
        guard let first = bytes.first, bytes.count <= lengthMax else { return false }
        guard first != UInt8(ascii: "."), first != UInt8(ascii: "-") else { return false }
        return bytes.allSatisfy { byte in
            switch byte {
            case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"),
                UInt8(ascii: "0")...UInt8(ascii: "9"), UInt8(ascii: "."), UInt8(ascii: "_"), UInt8(ascii: "-"):
                true
            default: false
            }
        }
    }
}
