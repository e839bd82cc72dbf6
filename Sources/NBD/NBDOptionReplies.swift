import Units

/// Appending of answers to options to the bytes that go to the client.
extension [UInt8] {
    mutating func appendOption(_ option: UInt32, _ reply: NBDOptionReply, _ data: [UInt8] = []) {
        appendBigEndian(NBDMagic.optionReply)
        appendBigEndian(option)
        appendBigEndian(reply.rawValue)
        appendBigEndian(UInt32(data.count))
        append(contentsOf: data)
    }

    /// A refusal of an option, with words for the client's log.
    mutating func appendRefusal(_ option: UInt32, _ reply: NBDOptionReply, _ message: String) {
        appendOption(option, reply, Array(message.utf8))
    }
}
