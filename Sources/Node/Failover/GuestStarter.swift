import Glibc
import Logging
import NIOCore
import QEMU
import Units

/// Starts a QEMU from a prepared command line and a restore stream, and tells when it has taken the whole state.
struct GuestStarter {
    struct Failed: Error, CustomStringConvertible {
        let reason: String
        var description: String { "the guest could not be started: \(reason)" }
    }

    struct Started {
        let process: QemuProcess
        let millisecondsToState: Double
    }

    /// The whole command line, program first. It must take its state from `fd:0` and offer QMP at ``qmpSocket``.
    let arguments: [String]
    let qmpSocket: String
    let logPath: String
    /// What `query-status` says once the state is loaded: `running`, or `paused` when started with `-S`.
    let expectedStatus: String
    let timeLimitNanoseconds: UInt64
    let eventLoop: any EventLoop
    let log: Logger

    /// - Parameter state: what goes to `-incoming`; written from a thread that may block.
    func start(state: RestoreSource) async throws -> Started {
        unlink(qmpSocket)
        let begun = MonotonicClock.now()
        let process = try await QemuProcess.launch(arguments: arguments, logPath: logPath)
        do {
            let writer = BlockingTask.run(label: "colo-blk.restore") {
                defer { process.closeIncoming() }
                try state.write(to: process)
            }
            try await waitUntilLoaded(process, since: begun)
            try await writer.value
        } catch {
            let words = process.outcome.map { "QEMU ended (\($0)); " } ?? ""
            process.kill()
            throw Failed(reason: "\(words)\(error); \(process.lastWords)")
        }
        return Started(
            process: process, millisecondsToState: Double(MonotonicClock.now().nanoseconds(since: begun)) / 1e6)
    }

    private func waitUntilLoaded(_ process: QemuProcess, since begun: Moment) async throws {
        var client: QMPClient?
        var lastStatus = "no answer"
        defer {
            client?.close()
        }
        while MonotonicClock.now().nanoseconds(since: begun) < timeLimitNanoseconds {
            guard process.outcome == nil else { throw Failed(reason: "it ended before it had loaded the state") }
            if client == nil, access(qmpSocket, F_OK) == 0 {
                client = try? await QMPClient.connect(path: qmpSocket, eventLoop: eventLoop)
            }
            if let client, let answer = try? await client.execute("query-status") {
                lastStatus = answer["status"]?.stringValue ?? lastStatus
                if lastStatus == expectedStatus { return }
                if lastStatus == "internal-error" { throw Failed(reason: "QEMU reports an internal error") }
            }
            try await Task.sleep(nanoseconds: 1_000_000)
        }
        throw Failed(
            reason: "it was '\(lastStatus)' and not '\(expectedStatus)' after \(timeLimitNanoseconds / 1_000_000) ms")
    }
}
