import QEMU

/// Somebody who can have QEMU execute commands: the monitor's own client in the guardian, the relay in the agent.
public protocol QMPExecutor: Sendable {
    /// Executes one command and returns its answer. Commands may run at the same time; they are told apart by id.
    ///
    /// The time-out is the only bound: cancelling the task does not take a command back. An answer that comes after
    /// its time-out is dropped.
    /// - Parameters:
    ///   - arguments: an object, or nil for none.
    ///   - oob: past QEMU's queue and a stuck main loop; legal only for commands that allow it, such as `yank`.
    ///   - timeout: from now to the answer, the time in our own queue included.
    func execute(
        _ name: String, arguments: JSONValue?, oob: Bool, timeout: Duration
    ) async throws(QMPError) -> JSONValue

    /// QEMU's events from now on. Each access makes a subscription of its own that holds the newest 1024 events not
    /// yet taken and ends when the connection does.
    var events: AsyncStream<QMPEvent> { get }
}

extension QMPExecutor {
    /// As the requirement, with nothing but the name needed. The time-out is 5 s.
    @discardableResult
    public func execute(
        _ name: String, _ arguments: JSONValue? = nil, oob: Bool = false, timeout: Duration = .seconds(5)
    ) async throws(QMPError) -> JSONValue {
        try await execute(name, arguments: arguments, oob: oob, timeout: timeout)
    }
}

/// Why a command has no answer.
public enum QMPError: Error, Equatable, CustomStringConvertible {
    /// QEMU said no.
    case refused(command: String, QMPCommandError)
    /// No answer in time. QEMU may still execute the command.
    case timedOut(command: String, after: Duration)
    /// The connection ended before the answer.
    case closed(command: String, reason: String)
    /// More commands wait than ``QMPConnection/queueLimit``.
    case queueFull(command: String)

    public var description: String {
        switch self {
        case .refused(let command, let error): return "QEMU refused \(command): \(error)"
        case .timedOut(let command, let time): return "QEMU did not answer \(command) within \(time)"
        case .closed(let command, let reason): return "no answer to \(command): \(reason)"
        case .queueFull(let command): return "\(command) was not sent: too many QMP commands wait for an answer"
        }
    }
}
