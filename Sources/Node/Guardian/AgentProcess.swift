import CLinux
import Glibc
import Subprocess
import Synchronization
import SystemPackage

/// The agent as a child process: its standard input is our end of nothing but the socketpair, its standard output and
/// error are ours. It has a process group of its own, so that Ctrl-C reaches the guardian alone.
final class AgentProcess: Sendable {
    /// How the child ended.
    enum Ending: Sendable, Equatable, CustomStringConvertible {
        case exited(Int32)
        case signaled(Int32)
        case notStarted(String)

        var description: String {
            switch self {
            case .exited(let code): return "it exited with status \(code)"
            case .signaled(let signal): return "it was killed by signal \(signal)"
            case .notStarted(let reason): return "it could not be started: \(reason)"
            }
        }
    }

    private struct State {
        /// Names the child even after its number was reused; -1 when there is none.
        var pidfd: CInt = -1
        var pid: Int32?
        /// A kill that came before the child.
        var killed = false
        var ending: Ending?
    }

    private let state = Mutex(State())

    /// Starts the child. `standardInput` is closed here once the child has it.
    func start(
        executable: String, arguments: [String], environment: [String: String], standardInput: CInt,
        ended: @escaping @Sendable (Ending) -> Void
    ) {
        Task { [self] in
            let ending = await spawn(executable, arguments, environment, standardInput)
            state.withLock { state in
                state.ending = ending
                if state.pidfd >= 0 { _ = Glibc.close(state.pidfd) }
                state.pidfd = -1
            }
            ended(ending)
        }
    }

    private func spawn(
        _ executable: String, _ arguments: [String], _ environment: [String: String], _ standardInput: CInt
    ) async -> Ending {
        var options = PlatformOptions()
        options.processGroupID = 0
        do {
            let result = try await Subprocess.run(
                .path(FilePath(executable)), arguments: Arguments(arguments),
                environment: .inherit.setting(environment), platformOptions: options,
                input: .fileDescriptor(FileDescriptor(rawValue: standardInput), closeAfterSpawningProcess: true),
                output: .currentStandardOutput, error: .currentStandardError
            ) { execution in
                self.adopt(pid: execution.processIdentifier.value)
            }
            switch result.terminationStatus {
            case .exited(let code): return .exited(code)
            case .signaled(let signal): return .signaled(signal)
            }
        } catch {
            return .notStarted("\(executable): \(error)")
        }
    }

    private func adopt(pid: Int32) {
        let pidfd = clx_pidfd_open(Int64(pid))
        guard pidfd >= 0 else { return }
        state.withLock { state in
            state.pidfd = pidfd
            state.pid = pid
            if state.killed { _ = clx_pidfd_signal(pidfd, SIGKILL) }
        }
    }

    /// Whether it has not ended, as far as is known.
    var isRunning: Bool { state.withLock { $0.ending == nil } }

    /// Bytes of memory that are its own, swapped out or not; nil when it has ended or /proc does not tell. Shared
    /// memory is not counted, nor are files.
    var ownBytes: UInt64? {
        let pid = state.withLock { $0.ending == nil ? $0.pid : nil }
        guard let pid, let file = fopen("/proc/\(pid)/status", "re") else { return nil }
        defer { fclose(file) }
        var text = [CChar](repeating: 0, count: 8192)
        let count = fread(&text, 1, text.count, file)
        let lines = String(decoding: text[..<count].map { UInt8(bitPattern: $0) }, as: UTF8.self).split(separator: "\n")
        let kibibytes = lines.filter { $0.hasPrefix("RssAnon:") || $0.hasPrefix("VmSwap:") }
            .compactMap { $0.split(whereSeparator: \.isWhitespace).dropFirst().first.flatMap { UInt64($0) } }
        return kibibytes.isEmpty ? nil : kibibytes.reduce(0, +) << 10
    }

    /// SIGKILL, unless the child has ended.
    func kill() {
        state.withLock { state in
            guard state.ending == nil else { return }
            state.killed = true
            if state.pidfd >= 0 { _ = clx_pidfd_signal(state.pidfd, SIGKILL) }
        }
    }

    /// Waits until the child has ended and was reaped; nil when that takes longer than `limit`.
    func wait(limit: Duration = .seconds(2)) async -> Ending? {
        let clock = ContinuousClock()
        let deadline = clock.now + limit
        while clock.now < deadline {
            if let ending = state.withLock({ $0.ending }) { return ending }
            try? await clock.sleep(for: .milliseconds(3))
        }
        return nil
    }
}
