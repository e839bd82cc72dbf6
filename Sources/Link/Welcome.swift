import Units

/// The secondary's answer to an accepted hello.
public struct Welcome: Equatable, Sendable, LinkPayload {
    /// The generation of the store, which every later frame of the session must carry.
    public var generation: Generation
    /// The epoch of the initial copy: higher than every epoch that the store has seen.
    public var firstEpoch: Epoch
    /// The newest committed epoch; `.none` when nothing was committed yet.
    public var lastCommitted: Epoch
    /// Bytes of frames that may be under way before ``Credit`` is awaited.
    public var creditWindow: UInt64
    /// Release of the secondary, for messages.
    public var serverVersion: String

    public init(
        generation: Generation, firstEpoch: Epoch, lastCommitted: Epoch, creditWindow: UInt64, serverVersion: String
    ) {
        self.generation = generation
        self.firstEpoch = firstEpoch
        self.lastCommitted = lastCommitted
        self.creditWindow = creditWindow
        self.serverVersion = serverVersion
    }

    static let lengths = 33...33 + 255

    public var kind: FrameKind { .welcome }

    public func encode(into writer: inout ByteWriter) {
        writer.write(generation.rawValue)
        writer.write(firstEpoch.rawValue)
        writer.write(lastCommitted.rawValue)
        writer.write(creditWindow)
        writer.write(shortText: serverVersion)
    }

    public static func decode(_ payload: UnsafeRawBufferPointer) throws(LinkError) -> Welcome {
        var reader = PayloadReader(.welcome, payload)
        let generation = Generation(try reader.read())
        let firstEpoch = Epoch(try reader.read())
        let lastCommitted = Epoch(try reader.read())
        guard firstEpoch > lastCommitted else {
            throw reader.bad("first epoch", at: 8, "\(firstEpoch) is not behind the last committed \(lastCommitted)")
        }
        let creditWindow: UInt64 = try reader.read()
        let version = try reader.shortText("server version")
        try reader.finish()
        return Welcome(
            generation: generation, firstEpoch: firstEpoch, lastCommitted: lastCommitted, creditWindow: creditWindow,
            serverVersion: version)
    }
}
