import Units

/// Reads the fields of one payload; every fault names the kind, the field and its offset.
struct PayloadReader {
    let kind: FrameKind
    private var reader: ByteReader

    init(_ kind: FrameKind, _ payload: UnsafeRawBufferPointer) {
        self.kind = kind
        self.reader = ByteReader(payload)
    }

    var offset: Int { reader.offset }
    var remaining: Int { reader.remaining }

    mutating func read<T: FixedWidthInteger>(_ type: T.Type = T.self) throws(LinkError) -> T {
        do { return try reader.read(T.self) } catch { throw .payloadTruncated(kind, offset: error.offset) }
    }

    mutating func bytes(_ length: Int) throws(LinkError) -> UnsafeRawBufferPointer {
        do { return try reader.readBytes(length) } catch { throw .payloadTruncated(kind, offset: error.offset) }
    }

    /// Everything that is left.
    mutating func rest() throws(LinkError) -> UnsafeRawBufferPointer { try bytes(remaining) }

    mutating func identifier() throws(LinkError) -> Identifier {
        Identifier(high: try read(), low: try read())
    }

    /// Text of at most `lengthMax` bytes behind a length of one byte.
    mutating func shortText(_ field: String) throws(LinkError) -> String {
        try text(field, length: Int(try read(UInt8.self)))
    }

    /// Text of at most `LinkLimits.messageMax` bytes behind a length of two bytes.
    /// The next field, one of the values of a type.
    mutating func value<Code: RawRepresentable<UInt16>>(_ field: String, of _: Code.Type) throws(LinkError) -> Code {
        let start = offset
        let value: UInt16 = try read()
        guard let code = Code(rawValue: value) else { throw bad(field, at: start, "has the unknown value \(value)") }
        return code
    }

    mutating func message(_ field: String) throws(LinkError) -> String {
        let start = offset
        let length = Int(try read(UInt16.self))
        guard length <= LinkLimits.messageMax else {
            throw bad(field, at: start, "has \(length) bytes; \(LinkLimits.messageMax) are allowed")
        }
        return try text(field, length: length)
    }

    /// A name that may become a file name.
    mutating func fileSafeName(_ field: String) throws(LinkError) -> String {
        let start = offset
        let name = try shortText(field)
        guard FileSafeName.isValid(name) else { throw bad(field, at: start, "must be \(FileSafeName.rule)") }
        return name
    }

    private mutating func text(_ field: String, length: Int) throws(LinkError) -> String {
        let start = offset
        let slice = try bytes(length)
        guard let text = String(validating: slice, as: UTF8.self) else { throw bad(field, at: start, "is not UTF-8") }
        return text
    }

    func bad(_ field: String, at offset: Int, _ reason: String) -> LinkError {
        .badField(kind, offset: offset, field: field, reason: reason)
    }

    /// Every payload must end with its last field.
    func finish() throws(LinkError) {
        guard remaining == 0 else { throw .payloadTrailing(kind, offset: offset, extra: remaining) }
    }
}

extension ByteWriter {
    /// Text behind a length of one byte, cut at a character when longer than 255 bytes.
    mutating func write(shortText text: String) {
        let cut = text.utf8Prefix(255)
        write(UInt8(cut.utf8.count))
        write(utf8: cut)
    }

    /// Text behind a length of two bytes, cut at a character when longer than ``LinkLimits/messageMax`` bytes.
    mutating func write(message text: String) {
        let cut = text.utf8Prefix(LinkLimits.messageMax)
        write(UInt16(cut.utf8.count))
        write(utf8: cut)
    }

    /// A name that the peer will use as a file name. Traps when it is none.
    mutating func write(fileSafeName name: String) {
        precondition(FileSafeName.isValid(name), "\(name) is no name for a file: \(FileSafeName.rule)")
        write(shortText: name)
    }

    mutating func write(_ identifier: Identifier) {
        write(identifier.high)
        write(identifier.low)
    }
}

extension String {
    /// The longest prefix of whole characters that fits in `limit` bytes.
    fileprivate func utf8Prefix(_ limit: Int) -> String {
        guard utf8.count > limit else { return self }
        var end = startIndex
        var used = 0
        for index in indices {
            let width = self[index].utf8.count
            guard used + width <= limit else { break }
            used += width
            end = self.index(after: index)
        }
        return String(self[..<end])
    }
}
