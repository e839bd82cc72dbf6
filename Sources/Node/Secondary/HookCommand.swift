import Glibc
import Subprocess
import Synchronization
import SystemPackage

/// A command of the operator: what `--on-loss` and `--fence-command` name. Run by `/bin/sh -c`, as a leader of its own
/// process group, with its words on this process's standard error and facts in its environment. When its time is over
/// the whole group is killed.
struct HookCommand: Sendable {
    /// How it ended.
    enum Outcome: Sendable, Equatable, CustomStringConvertible {
        case exited(Int32)
        case signaled(Int32)
        case timedOut
        case notStarted(String)

        var isSuccess: Bool { self == .exited(0) }

        var description: String {
            switch self {
            case .exited(let code): "it exited with \(code)"
            case .signaled(let signal): "signal \(signal) ended it"
            case .timedOut: "it took longer than \(HookCommand.limitSeconds) s and was killed"
            case .notStarted(let reason): "it could not be started: \(reason)"
            }
        }
    }

    /// A command may take so long.
    static let limitSeconds: Int64 = 120

    let text: String
    var limit = Duration.seconds(HookCommand.limitSeconds)

    /// Runs it to its end.
    func run(environment: [String: String]) async -> Outcome {
        var options = PlatformOptions()
        options.processGroupID = 0
        let deadline = Deadline()
        defer { deadline.cancel() }
        do {
            let limit = limit
            let result = try await Subprocess.run(
                .path("/bin/sh"), arguments: ["-c", text], environment: .inherit.setting(environment),
                platformOptions: options, input: .none, output: .currentStandardError, error: .currentStandardError
            ) { execution in
                deadline.start(limit, processGroup: execution.processIdentifier.value)
            }
            if deadline.isOver { return .timedOut }
            switch result.terminationStatus {
            case .exited(let code): return .exited(code)
            case .signaled(let signal): return .signaled(signal)
            }
        } catch {
            return .notStarted("\(error)")
        }
    }
}

/// Kills a process group when its time is over.
private final class Deadline: Sendable {
    private let task = Mutex<Task<Void, Never>?>(nil)
    private let over = Atomic(false)

    var isOver: Bool { over.load(ordering: .relaxed) }

    func start(_ limit: Duration, processGroup: pid_t) {
        task.withLock { task in
            task = Task { [self] in
                guard (try? await Task.sleep(for: limit)) != nil else { return }
                over.store(true, ordering: .relaxed)
                _ = kill(-processGroup, SIGKILL)
            }
        }
    }

    func cancel() { task.withLock { $0?.cancel() } }
}
