import Units

/// A client of an NBD server, as far as reading one export needs it: bytes to be sent, and what came back read. The caller
/// moves the bytes. Fixed newstyle, simple replies only.
///
/// Order: ``greetingLength`` bytes come, ``checkGreeting(_:)``, ``hello(export:)`` goes out; then replies of
/// ``optionReplyLength`` bytes and their payload, until ``OptionReply/ready``; then a request and its reply, in turns.
public enum NBDClient {
    /// The server's first bytes.
    public static let greetingLength = 18
    public static let optionReplyLength = 20
    /// Head of a reply; the data that were asked for follow when it is no error.
    public static let replyLength = 16
    /// The longest payload of an option's reply that is read.
    public static let optionPayloadMax = 65536

    /// What one reply to the option means.
    public enum OptionReply: Equatable, Sendable {
        /// So many bytes follow; hand them to ``size(inInfo:)``.
        case info(Int)
        /// Transmission begins.
        case ready
        case refused(code: UInt32, bytes: Int)
    }

    /// The server broke the protocol, or does not offer what is needed.
    public struct Fault: Error, Equatable, Sendable, CustomStringConvertible {
        public let description: String
    }

    /// Throws unless the bytes are the greeting of a server that speaks fixed newstyle.
    public static func checkGreeting(_ bytes: [UInt8]) throws(Fault) {
        guard number(bytes, 0, UInt64.self) == NBDMagic.greeting, number(bytes, 8, UInt64.self) == NBDMagic.option,
            let flags = number(bytes, 16, UInt16.self), flags & NBDHandshakeFlag.fixedNewstyle != 0
        else { throw Fault(description: "the server does not greet as an NBD server (fixed newstyle) does") }
    }

    /// The client's flags, and the wish for an export.
    public static func hello(export: String) -> [UInt8] {
        let name = Array(export.utf8)
        var bytes: [UInt8] = []
        bytes.appendBigEndian(UInt32(NBDHandshakeFlag.fixedNewstyle | NBDHandshakeFlag.noZeroes))
        bytes.appendBigEndian(NBDMagic.option)
        bytes.appendBigEndian(NBDOption.go.rawValue)
        bytes.appendBigEndian(UInt32(4 + name.count + 2))
        bytes.appendBigEndian(UInt32(name.count))
        bytes += name
        // No information is asked for; the size comes by itself.
        bytes.appendBigEndian(UInt16(0))
        return bytes
    }

    /// Reads the head of a reply to the option.
    public static func optionReply(_ bytes: [UInt8]) throws(Fault) -> OptionReply {
        guard number(bytes, 0, UInt64.self) == NBDMagic.optionReply,
            number(bytes, 8, UInt32.self) == NBDOption.go.rawValue, let type = number(bytes, 12, UInt32.self),
            let length = number(bytes, 16, UInt32.self)
        else { throw Fault(description: "the server does not answer the wish for an export") }
        guard length <= UInt32(optionPayloadMax) else {
            throw Fault(description: "the server announces \(length) bytes of answer")
        }
        switch NBDOptionReply(rawValue: type) {
        case .ack: return .ready
        case .info: return .info(Int(length))
        default: return .refused(code: type, bytes: Int(length))
        }
    }

    /// The size of the export, when this is the piece of information that holds it.
    public static func size(inInfo bytes: [UInt8]) -> UInt64? {
        guard number(bytes, 0, UInt16.self) == NBDInfo.export else { return nil }
        return number(bytes, 2, UInt64.self)
    }

    /// Asks for bytes of the export.
    public static func readRequest(handle: UInt64, range: ByteRange) -> [UInt8] {
        var bytes: [UInt8] = []
        bytes.appendBigEndian(NBDMagic.request)
        bytes.appendBigEndian(UInt16(0))
        bytes.appendBigEndian(NBDCommand.read.rawValue)
        bytes.appendBigEndian(handle)
        bytes.appendBigEndian(range.offset)
        bytes.appendBigEndian(UInt32(range.length))
        return bytes
    }

    /// Reads the head of the reply; throws when there will be no data.
    public static func checkReply(_ bytes: [UInt8], handle: UInt64) throws(Fault) {
        guard number(bytes, 0, UInt32.self) == NBDMagic.simpleReply, number(bytes, 8, UInt64.self) == handle,
            let error = number(bytes, 4, UInt32.self)
        else { throw Fault(description: "the server's reply is not one to our request") }
        guard error == 0 else { throw Fault(description: "the server reports error \(error)") }
    }

    private static func number<T: FixedWidthInteger>(_ bytes: [UInt8], _ offset: Int, _ type: T.Type) -> T? {
        let end = offset + T.bitWidth / 8
        guard end <= bytes.count else { return nil }
        return bytes[offset..<end].reduce(0) { $0 << 8 | T($1) }
    }
}
