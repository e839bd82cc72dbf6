import Units

/// `STORE/store.info`: three lines of text that say what the folder is.
public struct StoreDescription: Equatable, Sendable {
    /// Name of the file in the store's folder.
    public static let fileName = "store.info"
    /// The only format that this release reads and writes.
    public static let format = 1
    /// Longer files are refused unread, in bytes.
    public static let lengthMax = 4096

    private static let title = "colo-blk store"

    public let id: Identifier

    public init(id: Identifier) {
        self.id = id
    }

    /// Why the file does not describe a store.
    public enum Fault: Error, Equatable, Sendable, CustomStringConvertible {
        case notAStore
        case newerFormat(Int)
        case badLine(Int)

        public var description: String {
            switch self {
            case .notAStore: "store.info: this folder is no colo-blk store"
            case .newerFormat(let format):
                "store.info: the store has format \(format), this release reads format \(StoreDescription.format);"
                    + " use the release that made it"
            case .badLine(let line): "store.info: line \(line) is damaged; restore the file from a backup"
            }
        }
    }

    public func encode() -> [UInt8] {
        Array("\(Self.title)\nformat: \(Self.format)\nid: \(id.hex)\n".utf8)
    }

    /// Parses the file strictly: nothing may be missing, added or moved.
    public static func decode(_ bytes: [UInt8]) throws(Fault) -> StoreDescription {
        guard bytes.count <= lengthMax, let text = String(validating: bytes, as: UTF8.self) else { throw .notAStore }
        let lines = text.split(separator: "\n", omittingEmptySubsequences: false)
        guard lines.first == Substring(title) else { throw .notAStore }
        guard lines.count >= 2, lines[1].hasPrefix("format: "), let format = Int(lines[1].dropFirst(8)), format > 0,
            lines[1] == "format: \(format)"
        else { throw .badLine(2) }
        guard format <= Self.format else { throw .newerFormat(format) }
        guard lines.count >= 3, lines[2].hasPrefix("id: "), let id = Identifier(hex: lines[2].dropFirst(4)) else {
            throw .badLine(3)
        }
        guard lines.count == 4, lines[3].isEmpty else { throw .badLine(4) }
        return StoreDescription(id: id)
    }
}
