import Units

/// Appending of replies to the bytes that go to the client.
enum NBDReply {
    static func append<T: FixedWidthInteger>(_ value: T, to output: inout [UInt8]) {
        withUnsafeBytes(of: value.bigEndian) { output.append(contentsOf: $0) }
    }

    static func option(_ option: UInt32, _ reply: NBDOptionReply, _ data: [UInt8] = [], to output: inout [UInt8]) {
        append(NBDMagic.optionReply, to: &output)
        append(option, to: &output)
        append(reply.rawValue, to: &output)
        append(UInt32(data.count), to: &output)
        output.append(contentsOf: data)
    }

    /// A refusal of an option, with words for the client's log.
    static func refusal(_ option: UInt32, _ reply: NBDOptionReply, _ message: String, to output: inout [UInt8]) {
        Self.option(option, reply, Array(message.utf8), to: &output)
    }

    /// A reply without data to anything but a read over structured replies.
    static func simple(cookie: UInt64, _ error: NBDErrno?, to output: inout [UInt8]) {
        append(NBDMagic.simpleReply, to: &output)
        append(error?.rawValue ?? 0, to: &output)
        append(cookie, to: &output)
    }

    /// The one chunk that refuses a read over structured replies.
    static func structuredError(cookie: UInt64, _ error: NBDErrno, to output: inout [UInt8]) {
        append(NBDMagic.structuredReply, to: &output)
        append(NBDChunk.flagDone, to: &output)
        append(NBDChunk.typeError, to: &output)
        append(cookie, to: &output)
        append(UInt32(6), to: &output)
        append(error.rawValue, to: &output)
        append(UInt16(0), to: &output)
    }

    /// The header before the data of a successful read.
    static func readHeader(
        cookie: UInt64, offset: UInt64, byteCount: UInt32, structured: Bool, to output: inout [UInt8]
    ) {
        guard structured else { return simple(cookie: cookie, nil, to: &output) }
        append(NBDMagic.structuredReply, to: &output)
        append(NBDChunk.flagDone, to: &output)
        append(NBDChunk.typeOffsetData, to: &output)
        append(cookie, to: &output)
        append(byteCount + 8, to: &output)
        append(offset, to: &output)
    }
}
