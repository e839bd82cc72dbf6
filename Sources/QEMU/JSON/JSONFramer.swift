/// Cuts a stream of bytes into JSON objects.
///
/// An object ends where its braces balance, so that one object per line, several on one line and pretty-printed objects
/// are all read. Nothing but white space may stand between objects. The framer is sans-IO; after an error it must be
/// thrown away together with the connection, since the place of the next object is unknown.
public struct JSONFramer: Sendable {
    /// Bytes of one object, the braces included. QEMU's largest answer (its schema) has about 200 KiB.
    public static let defaultLimit = 16 << 20
    /// Arrays and objects inside each other. QEMU itself refuses more than 1024; its answers stay below 20.
    public static let nestingLimit = 128

    /// Why the stream cannot be understood any more.
    public enum Failure: Error, Equatable, CustomStringConvertible {
        /// The object had no end within the limit of bytes.
        case tooLong(limit: Int)
        /// More than ``JSONFramer/nestingLimit`` levels.
        case tooDeep(offset: UInt64)
        /// A byte between objects that is neither white space nor `{`; offset from the start of the stream.
        case unexpected(byte: UInt8, offset: UInt64)
        /// Braces balanced, but the object is not JSON.
        case malformed(detail: String, offset: UInt64)

        public var description: String {
            switch self {
            case .tooLong(let limit): return "a JSON object is longer than \(limit) bytes"
            case .tooDeep(let offset):
                return "JSON at byte \(offset) is nested deeper than \(JSONFramer.nestingLimit) levels"
            case .unexpected(let byte, let offset):
                return "byte 0x\(String(byte, radix: 16)) at \(offset), where a JSON object should begin"
            case .malformed(let detail, let offset): return "bad JSON object that begins at byte \(offset): \(detail)"
            }
        }
    }

    private let limit: Int
    /// Bytes not yet given out; `scanned` of them have been looked at.
    private var buffer: [UInt8] = []
    private var scanned = 0
    /// Offset of `buffer`'s first byte from the start of the stream.
    private var base: UInt64 = 0
    private var depth = 0
    private var inString = false
    private var escaped = false

    /// - Parameter limit: the longest object in bytes.
    public init(limit: Int = JSONFramer.defaultLimit) {
        precondition(limit >= 2)
        self.limit = limit
    }

    /// Bytes held for an object whose end has not come yet.
    public var pendingCount: Int { buffer.count }

    /// Appends what was read from the peer. Call ``next()`` until it returns nil before the next call: that is what
    /// keeps the memory within the limit plus one read.
    public mutating func receive(_ bytes: some Collection<UInt8>) {
        buffer.append(contentsOf: bytes)
    }

    /// The next complete object, or nil when more bytes are needed.
    public mutating func next() throws(Failure) -> JSONValue? {
        if depth == 0 { try skipBlanks() }
        while scanned < buffer.count {
            let byte = buffer[scanned]
            scanned += 1
            try step(byte)
            guard scanned <= limit else { throw .tooLong(limit: limit) }
            if depth == 0 { return try take() }
        }
        return nil
    }

    private mutating func step(_ byte: UInt8) throws(Failure) {
        if inString {
            if escaped {
                escaped = false
            } else if byte == UInt8(ascii: "\\") {
                escaped = true
            } else if byte == UInt8(ascii: "\"") {
                inString = false
            }
            return
        }
        switch byte {
        case UInt8(ascii: "\""): inString = true
        case UInt8(ascii: "{"), UInt8(ascii: "["):
            depth += 1
            guard depth <= Self.nestingLimit else { throw .tooDeep(offset: base + UInt64(scanned - 1)) }
        case UInt8(ascii: "}"), UInt8(ascii: "]"): depth -= 1
        default: break
        }
    }

    /// Drops white space; what follows must be an object.
    private mutating func skipBlanks() throws(Failure) {
        let start = buffer.firstIndex { !Self.isBlank($0) } ?? buffer.count
        if start > 0 {
            buffer.removeSubrange(0..<start)
            base += UInt64(start)
        }
        scanned = 0
        if let first = buffer.first, first != UInt8(ascii: "{") { throw .unexpected(byte: first, offset: base) }
    }

    private mutating func take() throws(Failure) -> JSONValue {
        let bytes = Array(buffer[0..<scanned])
        let offset = base
        buffer.removeSubrange(0..<scanned)
        base += UInt64(scanned)
        scanned = 0
        do {
            return try JSONValue.parse(bytes)
        } catch {
            throw .malformed(detail: error.detail, offset: offset)
        }
    }

    private static func isBlank(_ byte: UInt8) -> Bool {
        byte == UInt8(ascii: " ") || byte == UInt8(ascii: "\n") || byte == UInt8(ascii: "\r")
            || byte == UInt8(ascii: "\t")
    }
}
