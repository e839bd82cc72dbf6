import Units

/// The secondary's refusal, of a hello or of a session that went wrong.
public struct Refuse: Error, Equatable, Sendable, LinkPayload, CustomStringConvertible {
    /// Why; values as on the wire.
    public enum Code: UInt16, Sendable, CaseIterable {
        /// Protocol versions differ.
        case version = 1
        /// The guest's name is not one that the store takes.
        case name = 2
        /// The primary's generation is older than the store's.
        case generation = 3
        /// Another session protects this guest now.
        case alreadyProtected = 4
        case storeFull = 5
        case diskTooLarge = 6
        /// The store's guest of that name is another machine.
        case identityMismatch = 7
        /// The secondary has no room for another guest now.
        case busy = 8
        /// The replica has been started; the old primary must never write again.
        case failedOver = 9
        /// The secondary itself failed.
        case `internal` = 10
        /// The primary broke the protocol.
        case `protocol` = 11
    }

    public var code: Code
    /// For a person: what and what to do; cut at 4,096 bytes.
    public var message: String

    public init(code: Code, message: String) {
        self.code = code
        self.message = message
    }

    static let lengths = 4...4 + LinkLimits.messageMax

    public var kind: FrameKind { .refuse }

    public func encode(into writer: inout ByteWriter) {
        writer.write(code.rawValue)
        writer.write(message: message)
    }

    public static func decode(_ payload: UnsafeRawBufferPointer) throws(LinkError) -> Refuse {
        var reader = PayloadReader(.refuse, payload)
        let code = try reader.value("code", of: Code.self)
        let message = try reader.message("message")
        try reader.finish()
        return Refuse(code: code, message: message)
    }

    public var description: String { "refused (\(code)): \(message)" }
}
