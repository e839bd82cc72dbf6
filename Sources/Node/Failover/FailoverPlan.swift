import Link
import Logging
import NIOCore
import QEMU
import RamCache
import Units

/// The command line that makes a checkpoint a running guest, and the places where its sockets and log go.
struct FailoverPlan {
    /// Program first.
    let arguments: [String]
    /// What could not be carried over from the primary, in words.
    let findings: [String]
    let qmpSocket: String
    private let logPath: String
    private let paused: Bool

    /// - Parameters:
    ///   - disks: qcow2 overlay by disk id.
    ///   - runDirectory: for sockets and logs; short enough for a unix socket.
    ///   - ramPath: the cache file of a RAM block.
    init(
        mode: FailoverCommand.Mode, files: SessionFiles, disks: [String: String], runDirectory: String,
        ramPath: (Int) -> String, options: FailoverOptions, defaultQemu: String?
    ) throws {
        try RamTmpfs.secure(runDirectory)
        var machine = try files.machine()
        // The stream's own word for the machine: aliases such as "pc" mean another machine to another QEMU.
        machine.machine = try MachineConfiguration(parsing: files.layout.configuration).machineName
        let mapped = try (options.fullStream ? [] : files.mappedBlocks()).sorted().map { index in
            FailoverCommand.MappedBlock(
                name: files.blocks[index].name, path: ramPath(index), size: files.blocks[index].length)
        }
        let name = mode == .proof ? "proof" : "guest"
        qmpSocket = "\(runDirectory)/\(name).qmp"
        logPath = "\(runDirectory)/\(name).log"
        paused = mode == .proof || options.paused
        let pause = mode == .failover && options.paused ? ["-S"] : []
        let command = FailoverCommand.build(
            machine,
            FailoverCommand.Substitutions(
                disks: disks.mapValues { FailoverCommand.Image(path: $0) }, ram: mapped,
                runtimeDirectory: runDirectory, qmpSocket: qmpSocket, mode: mode,
                extraArguments: pause + ["-incoming", "fd:0"] + options.extraArguments,
                executable: options.qemu ?? defaultQemu))
        arguments = [command.executable] + command.arguments
        findings = command.findings.map { "\($0)" }
        if let blocker = command.findings.first(where: { $0.severity == .blocker }) {
            throw GuestStore.Failed(description: blocker.text + (blocker.remedy.map { ": \($0)" } ?? ""))
        }
    }

    /// Starts QEMU and has it take the state.
    func start(
        state: RestoreSource, on eventLoop: any EventLoop, log: Logger, timeLimitSeconds: UInt64
    ) async throws -> GuestStarter.Started {
        let starter = GuestStarter(
            arguments: arguments, qmpSocket: qmpSocket, logPath: logPath, expectedStatus: paused ? "paused" : "running",
            timeLimitNanoseconds: timeLimitSeconds * 1_000_000_000, eventLoop: eventLoop, log: log)
        return try await starter.start(state: state)
    }
}
