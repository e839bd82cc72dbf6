/// One command for a QMP server.
public struct QMPCommand: Sendable, Equatable {
    public let name: String
    /// An object, or nil for a command without arguments.
    public let arguments: JSONValue?
    /// Comes back with the answer.
    public let id: JSONValue?
    /// Executed at once by the monitor's own thread, past all queued commands and a stuck main loop. Legal only when
    /// the extension "oob" was negotiated and for the few commands that allow it.
    public let outOfBand: Bool

    public init(_ name: String, arguments: JSONValue? = nil, id: JSONValue? = nil, outOfBand: Bool = false) {
        self.name = name
        self.arguments = arguments
        self.id = id
        self.outOfBand = outOfBand
    }

    /// The command as one line, line feed included.
    public func encoded() -> [UInt8] {
        var members: [String: JSONValue] = [outOfBand ? "exec-oob" : "execute": .string(name)]
        if let arguments { members["arguments"] = arguments }
        if let id { members["id"] = id }
        return JSONValue.object(members).encoded() + [UInt8(ascii: "\n")]
    }
}

/// The QMP wire format (docs/interop/qmp-spec of QEMU): JSON objects, one per line. Sans-IO: bytes in, messages out.
public struct QMPCodec: Sendable {
    /// The peer does not speak QMP.
    public enum Failure: Error, Equatable, CustomStringConvertible {
        case framing(JSONFramer.Failure)
        /// Valid JSON that is no QMP message; its first 120 bytes.
        case notQMP(String)

        public var description: String {
            switch self {
            case .framing(let failure): return "not QMP: \(failure)"
            case .notQMP(let text): return "not a QMP message: \(text)"
            }
        }
    }

    private var framer: JSONFramer

    /// - Parameter limit: the longest message in bytes.
    public init(limit: Int = JSONFramer.defaultLimit) {
        framer = JSONFramer(limit: limit)
    }

    /// Appends what was read; take all messages with ``next()`` before the next call.
    public mutating func receive(_ bytes: some Collection<UInt8>) {
        framer.receive(bytes)
    }

    /// The next message, or nil when more bytes are needed. After an error the codec is of no further use.
    public mutating func next() throws(Failure) -> QMPMessage? {
        let json: JSONValue?
        do {
            json = try framer.next()
        } catch {
            throw .framing(error)
        }
        guard let json else { return nil }
        guard let message = QMPMessage(json) else {
            throw .notQMP(String(decoding: json.encoded().prefix(120), as: UTF8.self))
        }
        return message
    }
}
