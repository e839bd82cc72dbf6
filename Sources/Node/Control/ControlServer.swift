import FoundationEssentials
import Glibc
import Logging
import NIOCore
import NIOPosix

/// Answers the verbs on the control socket of a store. Only root and the user who runs the daemon may speak.
struct ControlServer {
    typealias Handler = @Sendable (ControlRequest) async -> ControlReply

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
                var buffer = ByteBuffer()
                for try await piece in inbound {
                    buffer.writeImmutableBuffer(piece)
                    while let line = try ControlChannel.takeLine(&buffer, path: path) {
                        try await outbound.write(ControlChannel.line(await answer(line)))
                    }
                }
            }
        } catch {
            log.debug("control socket: \(error)")
        }
    }

    private func answer(_ line: Data) async -> ControlReply {
        do {
            return await handler(try JSONDecoder().decode(ControlRequest.self, from: line))
        } catch {
            return ControlReply(error: "this is not a request that I know; are both colo-blk of the same version?")
        }
    }
}
