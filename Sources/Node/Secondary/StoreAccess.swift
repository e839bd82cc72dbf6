import AsyncIO
import Checkpointer
import Logging
import NIOPosix

/// A verb's way to a store: through the daemon that holds it, or, when nobody does, by opening it itself.
public struct StoreAccess: Sendable {
    public struct Refused: Error, CustomStringConvertible {
        public let description: String
    }

    private let directory: String
    private let log: Logger

    public init(store: String, log: Logger) {
        directory = store
        self.log = log
    }

    public func statuses(guest: String?) async throws -> [GuestStatus] {
        try await ask(ControlRequest(verb: .status, guest: guest)).statuses ?? []
    }

    public func failover(guest: String, options: FailoverOptions) async throws -> FailoverReport {
        let reply = try await ask(ControlRequest(verb: .failover, guest: guest, failover: options))
        guard let report = reply.failover else {
            throw Refused(description: "the daemon gave no report of the failover")
        }
        return report
    }

    public func ramInfo(guest: String) async throws -> RamInfo {
        guard let info = try await ask(ControlRequest(verb: .ramInfo, guest: guest)).ramInfo else {
            throw Refused(description: "the daemon told nothing about the RAM")
        }
        return info
    }

    public func ramVerify(guest: String, options: RamVerifyOptions) async throws -> RamVerifyReport {
        let request = ControlRequest(verb: .ramVerify, guest: guest, ramVerify: options)
        guard let report = try await ask(request).ramVerify else {
            throw Refused(description: "the daemon gave no report of the comparison")
        }
        return report
    }

    public func detach(guest: String) async throws {
        _ = try await ask(ControlRequest(verb: .detach, guest: guest))
    }

    public func remove(guest: String) async throws {
        _ = try await ask(ControlRequest(verb: .remove, guest: guest))
    }

    private func ask(_ request: ControlRequest) async throws -> ControlReply {
        guard Directory.exists("\(directory)/\(StoreDescription.fileName)") else {
            throw Refused(description: "\(directory) is no colo-blk store; name one with --store")
        }
        let reply: ControlReply
        do {
            reply = try await ControlChannel.ask(
                path: "\(directory)/control.sock", request, group: MultiThreadedEventLoopGroup.singleton)
        } catch {
            // Nobody listens. The lock decides whether nobody is really there.
            let daemon: SecondaryDaemon
            do {
                daemon = try SecondaryDaemon.open(
                    options: SecondaryOptions(store: directory, proof: false, qemu: nil), log: log)
            } catch let failed as Store.Failed {
                throw Refused(description: "\(failed) (its control socket does not answer: \(error))")
            }
            reply = await daemon.answer(request)
        }
        if let error = reply.error { throw Refused(description: error) }
        return reply
    }
}
