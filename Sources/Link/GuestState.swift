import Units

/// Whether the protected guest runs. While it does not no checkpoint comes, which is no fault of anybody's.
public struct GuestState: Equatable, Sendable, LinkPayload {
    /// Values as on the wire.
    public enum Code: UInt16, Sendable, CaseIterable {
        case running = 0
        /// Stopped, or asleep, and not by a checkpoint.
        case halted = 1
    }

    public var code: Code
    /// For a person: why it does not run; cut at 4,096 bytes.
    public var message: String

    public init(code: Code, message: String = "") {
        self.code = code
        self.message = message
    }

    static let lengths = 4...4 + LinkLimits.messageMax

    public var kind: FrameKind { .guestState }

    public func encode(into writer: inout ByteWriter) {
        writer.write(code.rawValue)
        writer.write(message: message)
    }

    public static func decode(_ payload: UnsafeRawBufferPointer) throws(LinkError) -> GuestState {
        var reader = PayloadReader(.guestState, payload)
        let code = try reader.value("code", of: Code.self)
        let message = try reader.message("message")
        try reader.finish()
        return GuestState(code: code, message: message)
    }
}
