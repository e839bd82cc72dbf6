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

    /// Compares a replica with its running guest; `progress` is told how far that is. Cancelling the task ends it.
    public func verify(
        guest: String, options: VerifyOptions, progress: (VerifyProgress) -> Void
    ) async throws -> VerifyReport {
        try checkStore()
        var request = ControlRequest(verb: .verify, guest: guest)
        request.verify = options
        var last: ControlReply?
        do {
            try await ControlChannel.follow(
                path: "\(directory)/control.sock", request, group: MultiThreadedEventLoopGroup.singleton
            ) { reply in
                guard let done = reply.progress else {
                    last = reply
                    return false
                }
                progress(done)
                return true
            }
        } catch let nobody as ControlChannel.NobodyListens {
            // Nobody has the store, so no primary is connected: the answer says so.
            last = await (try openAlone(nobody)).answer(request)
        }
        if let error = last?.error { throw Refused(description: error) }
        guard let report = last?.verify else {
            throw Refused(description: "the daemon ended before the comparison did; see its log")
        }
        return report
    }

    /// Tells what is the case now, and then what happens, until the task is cancelled or the daemon ends.
    public func follow(
        guest: String?, now: ([GuestStatus]) throws -> Void, happened: (GuestEvent) throws -> Void
    ) async throws {
        try checkStore()
        do {
            try await ControlChannel.follow(
                path: "\(directory)/control.sock", ControlRequest(verb: .follow, guest: guest),
                group: MultiThreadedEventLoopGroup.singleton
            ) { reply in
                if let error = reply.error { throw Refused(description: error) }
                if let statuses = reply.statuses { try now(statuses) }
                if let event = reply.event { try happened(event) }
                return true
            }
        } catch let nobody as ControlChannel.NobodyListens {
            throw Refused(
                description: "no daemon holds the store \(directory), so that nothing happens in it (\(nobody))")
        }
        throw Refused(description: "the daemon has ended")
    }

    public func detach(guest: String) async throws {
        _ = try await ask(ControlRequest(verb: .detach, guest: guest))
    }

    public func remove(guest: String) async throws {
        _ = try await ask(ControlRequest(verb: .remove, guest: guest))
    }

    /// Serves a checkpoint over NBD until the task is cancelled. `opened` is told once where. Throws when it cannot be
    /// served, or not any longer.
    public func export(
        guest: String, options: ExportOptions, opened: @Sendable (ExportReport) -> Void
    ) async throws {
        try checkStore()
        let request = ControlRequest(verb: .export, guest: guest, export: options)
        let later: ControlReply?
        do {
            later = try await ControlChannel.hold(
                path: "\(directory)/control.sock", request, group: MultiThreadedEventLoopGroup.singleton
            ) { reply in
                if let error = reply.error { throw Refused(description: error) }
                guard let report = reply.export else { throw Refused(description: "the daemon told no address") }
                opened(report)
            }
        } catch let nobody as ControlChannel.NobodyListens {
            return try await exportAlone(guest, options, nobody, opened)
        }
        if Task.isCancelled { return }
        throw Refused(description: later?.error ?? "the daemon has ended, and the view with it")
    }

    /// Without a daemon: the store is held here for as long as the export lasts.
    private func exportAlone(
        _ guest: String, _ options: ExportOptions, _ nobody: ControlChannel.NobodyListens,
        _ opened: (ExportReport) -> Void
    ) async throws {
        let daemon = try openAlone(nobody)
        let (endings, ending) = AsyncStream.makeStream(of: String.self)
        let replica: GuestReplica
        let number: Int
        do {
            replica = try daemon.known(guest)
            let export = try await replica.export(options) { ending.yield($0) }
            number = export.number
            opened(export.report)
        } catch {
            throw Refused(description: "\(error)")
        }
        for await reason in endings { throw Refused(description: reason) }
        await replica.endExport(number)
    }

    private func checkStore() throws(Refused) {
        guard Directory.exists("\(directory)/\(StoreDescription.fileName)") else {
            throw Refused(description: "\(directory) is no colo-blk store; name one with --store")
        }
    }

    /// Nobody listens. The lock decides whether nobody is really there.
    private func openAlone(_ reason: any Error) throws -> SecondaryDaemon {
        do {
            return try SecondaryDaemon.open(
                options: SecondaryOptions(store: directory, proof: false, qemu: nil), log: log)
        } catch let failed as Store.Failed {
            throw Refused(description: "\(failed) (its control socket does not answer: \(reason))")
        }
    }

    private func ask(_ request: ControlRequest) async throws -> ControlReply {
        try checkStore()
        let reply: ControlReply
        do {
            reply = try await ControlChannel.ask(
                path: "\(directory)/control.sock", request, group: MultiThreadedEventLoopGroup.singleton)
        } catch {
            let daemon = try openAlone(error)
            reply = await daemon.answer(request)
        }
        if let error = reply.error { throw Refused(description: error) }
        return reply
    }
}
