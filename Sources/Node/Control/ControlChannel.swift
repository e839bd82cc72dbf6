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
        let channel = try await connect(path, group)
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

    /// Asks for something that lasts as long as the connection. `answered` gets the first answer; returns what is told
    /// later, or nil when the other side closes. Cancelling the task closes the connection.
    static func hold(
        path: String, _ request: ControlRequest, group: any EventLoopGroup, answered: (ControlReply) throws -> Void
    ) async throws -> ControlReply? {
        let channel = try await connect(path, group)
        return try await channel.executeThenClose { inbound, outbound in
            try await outbound.write(line(request))
            var buffer = ByteBuffer()
            var isAnswered = false
            for try await piece in inbound {
                buffer.writeImmutableBuffer(piece)
                while let line = try takeLine(&buffer, path: path) {
                    let reply = try JSONDecoder().decode(ControlReply.self, from: line)
                    if isAnswered { return reply }
                    isAnswered = true
                    try answered(reply)
                }
            }
            try Task.checkCancellation()
            return nil
        }
    }

    /// Asks for something that is told bit by bit. `take` gets each answer and says whether more are wanted. Returns when
    /// it does not, or when the other side closes. Cancelling the task closes the connection.
    static func follow(
        path: String, _ request: ControlRequest, group: any EventLoopGroup, take: (ControlReply) throws -> Bool
    ) async throws {
        let channel = try await connect(path, group)
        try await channel.executeThenClose { inbound, outbound in
            try await outbound.write(line(request))
            var buffer = ByteBuffer()
            for try await piece in inbound {
                buffer.writeImmutableBuffer(piece)
                while let line = try takeLine(&buffer, path: path) {
                    guard try take(try JSONDecoder().decode(ControlReply.self, from: line)) else { return }
                }
            }
            try Task.checkCancellation()
        }
    }

    private static func connect(
        _ path: String, _ group: any EventLoopGroup
    ) async throws -> NIOAsyncChannel<ByteBuffer, ByteBuffer> {
        do {
            return try await ClientBootstrap(group: group)
                .connectTimeout(.seconds(2))
                .connect(unixDomainSocketPath: path) { channel in
                    channel.eventLoop.makeCompletedFuture {
                        try NIOAsyncChannel<ByteBuffer, ByteBuffer>(wrappingChannelSynchronously: channel)
                    }
                }
        } catch {
            throw NobodyListens(reason: "\(error)")
        }
    }

    /// No daemon answers on the socket.
    struct NobodyListens: Error, CustomStringConvertible {
        let reason: String
        var description: String { reason }
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
