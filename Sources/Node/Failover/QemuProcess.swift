import CLinux
import Glibc
import Logging
import Subprocess
import Synchronization
import SystemPackage

/// A QEMU process that we started, and the socket on its standard input through which it takes its state.
///
/// QEMU runs in a session of its own: it outlives the process that started it. Safe to use from any task.
public final class QemuProcess: Sendable {
    public struct LaunchFailed: Error, CustomStringConvertible {
        public let executable: String
        public let reason: String
        public var description: String { "\(executable) could not be started: \(reason)" }
    }

    public let pid: Int32
    /// Where QEMU's own messages go.
    public let logPath: String
    /// Our end of the incoming migration stream; `-incoming fd:0` is the other. Owned: closed by ``closeIncoming()``.
    private let incoming: Mutex<Int32?>
    private let exit: Mutex<ExitState>

    private struct ExitState {
        var outcome: String?
        var waiters: [CheckedContinuation<String, Never>] = []
    }

    private init(pid: Int32, logPath: String, incoming: Int32) {
        self.pid = pid
        self.logPath = logPath
        self.incoming = Mutex(incoming)
        self.exit = Mutex(ExitState())
    }

    deinit { closeIncoming() }

    /// Starts `arguments[0]` with the rest as its arguments; returns as soon as the process exists.
    ///
    /// - Parameter environment: replaces the environment when given; inherited otherwise.
    public static func launch(
        arguments: [String], environment: [String: String]? = nil, logPath: String
    ) async throws -> QemuProcess {
        guard let executable = arguments.first else {
            throw LaunchFailed(executable: "", reason: "the command line is empty")
        }
        var pair: [Int32] = [-1, -1]
        guard socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0, &pair) == 0 else {
            throw LaunchFailed(executable: executable, reason: "socketpair: \(Errno(rawValue: errno))")
        }
        let ours = pair[0]
        let theirs = FileDescriptor(rawValue: pair[1])
        let log = try FileDescriptor.open(
            FilePath(logPath), .writeOnly, options: [.create, .truncate, .append, .closeOnExec],
            permissions: FilePermissions(rawValue: 0o600))
        var options = PlatformOptions()
        options.createSession = true
        let configuration = Configuration(
            executable: executable.contains("/") ? .path(FilePath(executable)) : .name(executable),
            arguments: Arguments(Array(arguments.dropFirst())),
            environment: environment.map { values in
                .custom(
                    Dictionary(uniqueKeysWithValues: values.map { (Environment.Key(stringLiteral: $0.key), $0.value) }))
            } ?? .inherit,
            platformOptions: options)
        return try await withCheckedThrowingContinuation { continuation in
            let started = Mutex<QemuProcess?>(nil)
            // Not a child task: the process must not be torn down because the task that asked for it ended.
            Task.detached {
                do {
                    let result = try await run(
                        configuration,
                        input: .fileDescriptor(theirs, closeAfterSpawningProcess: true),
                        output: .fileDescriptor(log, closeAfterSpawningProcess: false),
                        error: .fileDescriptor(log, closeAfterSpawningProcess: true)
                    ) { execution in
                        let process = QemuProcess(
                            pid: execution.processIdentifier.value, logPath: logPath, incoming: ours)
                        started.withLock { $0 = process }
                        continuation.resume(returning: process)
                    }
                    started.withLock { $0 }?.ended("\(result.terminationStatus)")
                } catch {
                    if let process = started.withLock({ $0 }) {
                        process.ended("\(error)")
                    } else {
                        close(ours)
                        continuation.resume(throwing: LaunchFailed(executable: executable, reason: "\(error)"))
                    }
                }
            }
        }
    }

    private func ended(_ outcome: String) {
        let waiters = exit.withLock { state in
            state.outcome = outcome
            defer { state.waiters = [] }
            return state.waiters
        }
        for waiter in waiters { waiter.resume(returning: outcome) }
    }

    /// How the process ended; nil while it runs.
    public var outcome: String? { exit.withLock { $0.outcome } }

    /// Waits until the process is gone.
    public func waitForExit() async -> String {
        await withCheckedContinuation { continuation in
            let outcome = exit.withLock { state in
                if state.outcome == nil { state.waiters.append(continuation) }
                return state.outcome
            }
            if let outcome { continuation.resume(returning: outcome) }
        }
    }

    /// Kills this process, and only this process, if it still runs.
    public func kill() {
        guard outcome == nil else { return }
        _ = Glibc.kill(pid, SIGKILL)
    }

    /// Writes a piece of the stream to QEMU. Blocks until QEMU has taken it; call it from a thread that may block, and
    /// ``closeIncoming()`` behind the last piece.
    public func writeIncoming(_ bytes: UnsafeRawBufferPointer) throws {
        guard let descriptor = incoming.withLock({ $0 }) else { return }
        var offset = 0
        while offset < bytes.count {
            // MSG_NOSIGNAL: a QEMU that has already refused the stream must give an error, not a signal.
            let count = send(
                descriptor, bytes.baseAddress.map { $0 + offset }, bytes.count - offset, Int32(MSG_NOSIGNAL))
            if count < 0 {
                if errno == EINTR { continue }
                throw LaunchFailed(
                    executable: "QEMU (pid \(pid))",
                    reason:
                        "it closed its incoming stream at byte \(offset) of \(bytes.count): "
                        + "\(Errno(rawValue: errno)); \(lastWords)"
                )
            }
            offset += count
        }
    }

    public func closeIncoming() {
        let descriptor = incoming.withLock { value in
            defer { value = nil }
            return value
        }
        if let descriptor { close(descriptor) }
    }

    /// The last lines that QEMU wrote to its log, for error messages.
    public var lastWords: String {
        guard let file = try? FileDescriptor.open(FilePath(logPath), .readOnly) else { return "no log" }
        defer { try? file.close() }
        var bytes = [UInt8](repeating: 0, count: 4096)
        let end = (try? file.seek(offset: 0, from: .end)) ?? 0
        let start = max(0, end - Int64(bytes.count))
        let count = (try? bytes.withUnsafeMutableBytes { try file.read(fromAbsoluteOffset: start, into: $0) }) ?? 0
        let text = String(decoding: bytes.prefix(count), as: UTF8.self)
        let lines = text.split(separator: "\n").suffix(3).joined(separator: " | ")
        return lines.isEmpty ? "QEMU said nothing" : "QEMU said: \(lines)"
    }
}
