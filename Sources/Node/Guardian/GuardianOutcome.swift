/// How a guardianship ended.
public enum GuardianOutcome: Sendable, Equatable, CustomStringConvertible {
    /// As somebody wished: a signal, a request, or the agent with exit code 0.
    case detached(reason: String, GuestRestoration.Report)
    /// The agent died, hung, or gave up. The code is what it said or exited with; nil when it was killed.
    case agentFailed(reason: String, exitCode: Int32?, GuestRestoration.Report)
    /// QEMU closed the monitor: the guest has ended.
    case guestGone(reason: String)
    /// QEMU has ended, as it had said, and as somebody wished.
    case guestShutOff(reason: String)
    /// Nothing was begun: no monitor, or no agent.
    case notStarted(reason: String)

    /// Whether the guest is known to be as it was before the attach.
    public var guestIsSafe: Bool {
        switch self {
        case .detached(_, let report), .agentFailed(_, _, let report):
            return (report.guestRunning || report.leftStopped != nil) && report.clean
        case .guestGone, .guestShutOff, .notStarted: return true
        }
    }

    public var description: String {
        switch self {
        case .detached(let reason, let report): return "detached (\(reason)): \(report)"
        case .agentFailed(let reason, _, let report): return "the agent failed (\(reason)): \(report)"
        case .guestGone(let reason): return "the guest has ended: \(reason)"
        case .guestShutOff(let reason): return reason
        case .notStarted(let reason): return "nothing was begun: \(reason)"
        }
    }
}
