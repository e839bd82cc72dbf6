/// Why a session ends at once. The connection must be dropped; no reply is owed.
public enum NBDError: Error, Equatable, Sendable, CustomStringConvertible {
    /// The client sent handshake flags that this server did not offer.
    case unknownClientFlags(UInt32)
    /// The client speaks the old handshake, which cannot be refused politely.
    case notFixedNewstyle
    case badOptionMagic(UInt64)
    case optionTooLong(option: UInt32, length: UInt32)
    case tooManyOptions
    /// NBD_OPT_EXPORT_NAME with a name that is not offered has no other answer.
    case unknownExport(String)
    /// NBD_OPT_EXPORT_NAME over a clear connection, where TLS is required, has no other answer.
    case tlsRequired
    /// Bytes came in the clear behind NBD_OPT_STARTTLS, where only a TLS handshake may follow.
    case clearBytesBeforeTLS
    case badRequestMagic(UInt32)
    /// A write announced more data than any buffer here holds.
    case writeTooLong(UInt32)
    /// Bytes were given after the session had ended.
    case finished

    public var description: String {
        switch self {
        case .unknownClientFlags(let flags):
            "nbd: the client sent unknown handshake flags 0x\(String(flags, radix: 16)); connection dropped"
        case .notFixedNewstyle:
            "nbd: the client does not speak the fixed newstyle handshake; connection dropped"
        case .badOptionMagic(let magic):
            "nbd: an option must follow, but 0x\(String(magic, radix: 16)) came; is the client an NBD client?"
        case .optionTooLong(let option, let length):
            "nbd: option \(option) announces \(length) bytes; \(NBDLimits.optionMax) are allowed"
        case .tooManyOptions:
            "nbd: more than \(NBDLimits.optionsMax) options without choosing an export; connection dropped"
        case .unknownExport(let name):
            "nbd: the client asked for export \"\(name)\", which is not offered"
        case .tlsRequired:
            "nbd: the client asked for an export in the clear, but TLS is required here: use nbds://"
        case .clearBytesBeforeTLS:
            "nbd: the client went on in the clear where a TLS handshake must follow; connection dropped"
        case .badRequestMagic(let magic):
            "nbd: a request must follow, but 0x\(String(magic, radix: 16)) came; connection dropped"
        case .writeTooLong(let length):
            "nbd: a write announces \(length) bytes; \(NBDLimits.requestMax) are allowed"
        case .finished:
            "nbd: bytes came after the client had said goodbye"
        }
    }
}
