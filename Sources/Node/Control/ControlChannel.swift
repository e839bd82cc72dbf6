import FoundationEssentials
import Glibc
import NIOCore
import NIOPosix

/// The control socket: one JSON object a line in each direction.
public enum ControlChannel {
    /// Longest line that is read, in bytes.
    static let lineMax = 1 << 20

    public struct Failed: Error, CustomStringConvertible {
        public let path: String
        public let reason: String
        public var description: String { "control socket \(path): \(reason)" }
    }

    /// Layout of Linux's `struct ucred`.
    struct PeerCredentials {
        var pid: Int32 = 0
        var uid: UInt32 = 0
        var gid: UInt32 = 0
    }

    static let soPeerCredentials: CInt = 17

    /// Asks once and returns the answer. Throws when nobody listens.
    public static func ask(
        path: String, _ request: ControlRequest, group: any EventLoopGroup
    ) async throws -> ControlReply {
        let channel = try await ClientBootstrap(group: group)
            .connectTimeout(.seconds(2))
            .connect(unixDomainSocketPath: path) { channel in
                channel.eventLoop.makeCompletedFuture {
                    try NIOAsyncChannel<ByteBuffer, ByteBuffer>(wrappingChannelSynchronously: channel)
                }
            }
        return try await channel.executeThenClose { inbound, outbound in
            try await outbound.write(line(request))
            var buffer = ByteBuffer()
            for try await piece in inbound {
                buffer.writeImmutableBuffer(piece)
                if let reply = try takeLine(&buffer, path: path) {
                    return try JSONDecoder().decode(ControlReply.self, from: reply)
                }
            }
            throw Failed(path: path, reason: "it was closed before the answer came; see the daemon's log")
        }
    }

    static func line(_ value: some Encodable) throws -> ByteBuffer {
        var buffer = ByteBuffer(bytes: try JSONEncoder().encode(value))
        buffer.writeInteger(UInt8(ascii: "\n"))
        return buffer
    }

    static func takeLine(_ buffer: inout ByteBuffer, path: String) throws -> Data? {
        guard let end = buffer.readableBytesView.firstIndex(of: UInt8(ascii: "\n")) else {
            guard buffer.readableBytes <= lineMax else {
                throw Failed(path: path, reason: "a line is longer than \(lineMax) bytes")
            }
            return nil
        }
        let length = end - buffer.readableBytesView.startIndex
        let bytes = buffer.readBytes(length: length) ?? []
        buffer.moveReaderIndex(forwardBy: 1)
        return Data(bytes)
    }
}
