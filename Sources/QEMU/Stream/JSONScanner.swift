/// Walks over JSON text without building values: enough to find a few of them in QEMU's device description.
///
/// Strict as to structure and control characters, with a bound on nesting; numbers are checked loosely. Each method
/// returns whether (or what) it has read; after a failure the position means nothing.
struct JSONScanner {
    private static let maxDepth = 64

    private let bytes: UnsafeRawBufferPointer
    private var offset = 0

    init(_ bytes: UnsafeRawBufferPointer) {
        self.bytes = bytes
    }

    var isAtEnd: Bool { offset == bytes.count }

    private mutating func skipBlanks() {
        while offset < bytes.count {
            switch bytes[offset] {
            case 0x20, 0x09, 0x0A, 0x0D: offset += 1
            default: return
            }
        }
    }

    /// The next byte behind blanks.
    private mutating func peek() -> UInt8? {
        skipBlanks()
        return offset < bytes.count ? bytes[offset] : nil
    }

    private mutating func take(_ byte: UInt8) -> Bool {
        guard peek() == byte else { return false }
        offset += 1
        return true
    }

    /// Reads an object; `member` reads the value that belongs to the key.
    mutating func object(_ member: (inout JSONScanner, String) -> Bool) -> Bool {
        guard take(UInt8(ascii: "{")) else { return false }
        if take(UInt8(ascii: "}")) { return true }
        while true {
            guard peek() == UInt8(ascii: "\""), let key = string(), take(UInt8(ascii: ":")), member(&self, key) else {
                return false
            }
            if take(UInt8(ascii: "}")) { return true }
            guard take(UInt8(ascii: ",")) else { return false }
        }
    }

    /// Reads an array; `element` reads each of its values.
    mutating func array(_ element: (inout JSONScanner) -> Bool) -> Bool {
        guard take(UInt8(ascii: "[")) else { return false }
        if take(UInt8(ascii: "]")) { return true }
        while true {
            guard element(&self) else { return false }
            if take(UInt8(ascii: "]")) { return true }
            guard take(UInt8(ascii: ",")) else { return false }
        }
    }

    /// Reads a string, its escapes resolved; nil when it is none, or not UTF-8.
    mutating func string() -> String? {
        guard let range = rawString() else { return nil }
        let raw = bytes[range]
        guard raw.contains(UInt8(ascii: "\\")) else { return String(validating: raw, as: UTF8.self) }
        return Self.unescaped(raw)
    }

    /// Passes over a string and returns where its contents are.
    private mutating func rawString() -> Range<Int>? {
        guard take(UInt8(ascii: "\"")) else { return nil }
        let start = offset
        while offset < bytes.count {
            switch bytes[offset] {
            case UInt8(ascii: "\""):
                offset += 1
                return start..<offset - 1
            case UInt8(ascii: "\\"): offset += 2
            case 0..<0x20: return nil
            default: offset += 1
            }
        }
        return nil
    }

    private static func unescaped(_ raw: Slice<UnsafeRawBufferPointer>) -> String? {
        var text = ""
        var rest = raw
        while let byte = rest.first {
            let run = rest.prefix { $0 != UInt8(ascii: "\\") }
            if !run.isEmpty {
                guard let piece = String(validating: run, as: UTF8.self) else { return nil }
                text += piece
                rest = rest.dropFirst(run.count)
                continue
            }
            precondition(byte == UInt8(ascii: "\\"))
            rest = rest.dropFirst()
            switch rest.popFirst() {
            case UInt8(ascii: "n"): text += "\n"
            case UInt8(ascii: "t"): text += "\t"
            case UInt8(ascii: "r"): text += "\r"
            case UInt8(ascii: "b"): text += "\u{8}"
            case UInt8(ascii: "f"): text += "\u{C}"
            case UInt8(ascii: "u"):
                // Surrogate pairs do not occur in QEMU's names.
                guard let digits = String(validating: rest.prefix(4), as: UTF8.self), digits.utf8.count == 4,
                    let value = UInt32(digits, radix: 16), let scalar = Unicode.Scalar(value)
                else { return nil }
                text.unicodeScalars.append(scalar)
                rest = rest.dropFirst(4)
            case let other?:
                guard other == UInt8(ascii: "\"") || other == UInt8(ascii: "\\") || other == UInt8(ascii: "/") else {
                    return nil
                }
                text.unicodeScalars.append(Unicode.Scalar(other))
            case nil: return nil
            }
        }
        return text
    }

    /// Reads a whole number that fits in 64 bits.
    mutating func integer() -> Int64? {
        _ = peek()
        let start = offset
        while offset < bytes.count, bytes[offset] == UInt8(ascii: "-") || (0x30...0x39).contains(bytes[offset]) {
            offset += 1
        }
        return String(validating: bytes[start..<offset], as: UTF8.self).flatMap { Int64($0) }
    }

    /// Passes over a value of any kind.
    mutating func skipValue(depth: Int) -> Bool {
        guard depth < Self.maxDepth, let first = peek() else { return false }
        switch first {
        case UInt8(ascii: "{"): return skipObject(depth: depth)
        case UInt8(ascii: "["): return array { $0.skipValue(depth: depth + 1) }
        case UInt8(ascii: "\""): return rawString() != nil
        case UInt8(ascii: "t"): return skip(word: "true")
        case UInt8(ascii: "f"): return skip(word: "false")
        case UInt8(ascii: "n"): return skip(word: "null")
        case UInt8(ascii: "-"), 0x30...0x39: return skipNumber()
        default: return false
        }
    }

    private mutating func skipObject(depth: Int) -> Bool {
        guard take(UInt8(ascii: "{")) else { return false }
        if take(UInt8(ascii: "}")) { return true }
        while true {
            guard rawString() != nil, take(UInt8(ascii: ":")), skipValue(depth: depth + 1) else { return false }
            if take(UInt8(ascii: "}")) { return true }
            guard take(UInt8(ascii: ",")) else { return false }
        }
    }

    private mutating func skip(word: StaticString) -> Bool {
        let count = word.utf8CodeUnitCount
        guard bytes.count - offset >= count else { return false }
        for index in 0..<count where bytes[offset + index] != word.utf8Start[index] { return false }
        offset += count
        return true
    }

    private mutating func skipNumber() -> Bool {
        let start = offset
        while offset < bytes.count {
            switch bytes[offset] {
            case 0x30...0x39, UInt8(ascii: "-"), UInt8(ascii: "+"), UInt8(ascii: "."), UInt8(ascii: "e"),
                UInt8(ascii: "E"):
                offset += 1
            default: return offset > start
            }
        }
        return offset > start
    }
}
