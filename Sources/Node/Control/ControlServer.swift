import FoundationEssentials
import Glibc
import Logging
import NIOCore
import NIOPosix
import Synchronization

/// Answers the verbs on the control socket of a store. Only root and the user who runs the daemon may speak.
struct ControlServer {
    typealias Handler = @Sendable (ControlRequest, ControlConnection) async -> ControlReply

    let path: String
    let log: Logger
    let handler: Handler

    /// Serves until the task is cancelled.
    func run(group: any EventLoopGroup, ready: @Sendable () -> Void = {}) async throws {
        unlink(path)
        let server = try await ServerBootstrap(group: group)
            .bind(unixDomainSocketPath: path, cleanupExistingSocketFile: false) { channel in
                channel.eventLoop.makeCompletedFuture {
                    try NIOAsyncChannel<ByteBuffer, ByteBuffer>(wrappingChannelSynchronously: channel)
                }
            }
        chmod(path, 0o600)
        ready()
        try await withThrowingDiscardingTaskGroup { tasks in
            try await server.executeThenClose { clients in
                for try await client in clients {
                    tasks.addTask { await serve(client) }
                }
            }
        }
    }

    private func serve(_ client: NIOAsyncChannel<ByteBuffer, ByteBuffer>) async {
        do {
            guard let options = client.channel as? any SocketOptionProvider else { return }
            let peer: ControlChannel.PeerCredentials = try await options.unsafeGetSocketOption(
                level: .socket, name: .init(rawValue: ControlChannel.soPeerCredentials)
            ).get()
            try await client.executeThenClose { inbound, outbound in
                guard peer.uid == 0 || peer.uid == getuid() else {
                    log.warning("control socket: refused", metadata: ["uid": "\(peer.uid)", "pid": "\(peer.pid)"])
                    return
                }
                let connection = ControlConnection { reply in
                    try? await outbound.write(ControlChannel.line(reply))
                }
                do {
                    var buffer = ByteBuffer()
                    for try await piece in inbound {
                        buffer.writeImmutableBuffer(piece)
                        while let line = try ControlChannel.takeLine(&buffer, path: path) {
                            try await outbound.write(ControlChannel.line(await answer(line, connection)))
                        }
                    }
                } catch {
                    log.debug("control socket: \(error)")
                }
                await connection.end()
            }
        } catch {
            log.debug("control socket: \(error)")
        }
    }

    private func answer(_ line: Data, _ connection: ControlConnection) async -> ControlReply {
        do {
            return await handler(try JSONDecoder().decode(ControlRequest.self, from: line), connection)
        } catch {
            return ControlReply(error: "this is not a request that I know; are both colo-blk of the same version?")
        }
    }
}

/// A verb that asks, for as long as it stays: some things last until it leaves.
final class ControlConnection: Sendable {
    private let replies: AsyncStream<ControlReply>.Continuation
    private let closers = Mutex<[@Sendable () async -> Void]?>([])

    init(send: @escaping @Sendable (ControlReply) async -> Void) {
        // A verb that does not read loses what is older.
        let (stream, replies) = AsyncStream.makeStream(of: ControlReply.self, bufferingPolicy: .bufferingNewest(1024))
        self.replies = replies
        Task { for await reply in stream { await send(reply) } }
    }

    /// Says something that was not asked for; in the order of the calls.
    func tell(_ reply: ControlReply) { replies.yield(reply) }

    /// To be done when the verb leaves; false when it has left already, and then nothing is done.
    func whenItLeaves(_ body: @escaping @Sendable () async -> Void) -> Bool {
        closers.withLock { closers in
            closers?.append(body)
            return closers != nil
        }
    }

    /// The verb has left.
    func end() async {
        for closer in closers.withLock({ closers in
            defer { closers = nil }
            return closers ?? []
        }) {
            await closer()
        }
        replies.finish()
    }
}
