import NIOCore

/// What stands between a link's socket and those who understand its frames.
enum LinkPipeline {
    /// The secondary's end of an accepted connection.
    static func secondary(_ channel: any Channel, tls: LinkTLS?) throws {
        let pipeline = channel.pipeline.syncOperations
        try pipeline.addHandler(LinkDoor(takesTLS: tls != nil), name: LinkDoor.name)
        if let tls { try pipeline.addHandlers(tls.handlers()) }
        try pipeline.addHandler(LinkPulse())
        try pipeline.addHandler(ByteToMessageHandler(LinkFrameDecoder()))
    }

    /// The primary's end.
    static func primary(_ channel: any Channel, tls: LinkTLS?) throws {
        let pipeline = channel.pipeline.syncOperations
        if let tls { try pipeline.addHandlers(tls.handlers()) }
        try pipeline.addHandler(LinkPulse())
        try pipeline.addHandler(ByteToMessageHandler(LinkFrameDecoder()))
    }
}
