import FoundationEssentials
import Glibc
import Logging
import NIOCore
import NIOPosix

/// What `colo-blk attach` was asked to do; handed from the guardian to its agent.
public struct AttachOptions: Codable, Sendable {
    /// QMP socket of the guest.
    public var qmp: String
    /// Where the secondary listens; absent when the replica is kept by the agent itself.
    public var secondary: String?
    /// Directory of the store that the agent keeps itself.
    public var store: String?
    /// Name of the replica; absent: the guest's own.
    public var guest: String?
    public var intervalNanoseconds: UInt64
    /// Whether a checkpoint must survive the power loss of both hosts.
    public var durable: Bool
    /// Most bytes that may wait for the secondary.
    public var budgetBytes: Int
    public var useDelta: Bool
    /// Go on although the doctor found a blocker.
    public var force: Bool
    public var pid: Int32?
    public var logLevel: String
    /// `DISK=FILE` for a new replica in `store`.
    public var seeds: [String] = []

    public init(
        qmp: String, address: Address?, store: String?, guest: String?, intervalNanoseconds: UInt64, durable: Bool,
        budgetBytes: Int, useDelta: Bool, force: Bool, pid: Int32?, logLevel: String
    ) {
        self.qmp = qmp
        self.secondary = address?.description
        self.store = store
        self.guest = guest
        self.intervalNanoseconds = intervalNanoseconds
        self.durable = durable
        self.budgetBytes = budgetBytes
        self.useDelta = useDelta
        self.force = force
        self.pid = pid
        self.logLevel = logLevel
    }
}

/// How an attachment ended. The guest runs in every case but ``guestGone(_:)``.
public enum AttachOutcome: Sendable {
    /// As somebody wished.
    case detached(String)
    /// Protection was lost; the guest runs unprotected.
    case protectionEnded(String)
    /// QEMU has ended, or the guest was powered off.
    case guestGone(String)
    /// Nothing was changed, or it was put back at once.
    case refused(String)
}

/// Exit codes of the agent process, understood by ``Attachment``.
enum AgentExit {
    static let detached: Int32 = 0
    static let refused: Int32 = 1
    static let protectionEnded: Int32 = 2
    static let guestGone: Int32 = 3
}

/// The guardian's side of `colo-blk attach`.
public enum Attachment {
    /// Protects the guest until a signal comes or something ends it; the guest is put back in every case.
    public static func run(_ options: AttachOptions, log: Logger) async throws -> AttachOutcome {
        guard let program = executablePath() else {
            return .refused("/proc/self/exe cannot be read, so that no agent can be started; is /proc mounted?")
        }
        let encoded = String(decoding: try JSONEncoder().encode(options), as: UTF8.self)
        var configuration = Guardian.Configuration(
            qmpPath: options.qmp, agentExecutable: program, agentArguments: ["agent", encoded])
        configuration.guestPID = options.pid
        configuration.claimsGuest = true
        let loop = MultiThreadedEventLoopGroup.singleton.next()
        let outcome = await Guardian(configuration: configuration, eventLoop: loop, log: log).run()
        switch outcome {
        case .detached(let reason, let report):
            return .detached("detached (\(reason)): \(report)")
        case .agentFailed(let reason, AgentExit.refused, _):
            return .refused(reason)
        case .agentFailed(let reason, AgentExit.guestGone, _):
            return .guestGone(reason)
        case .agentFailed(let reason, _, let report):
            return .protectionEnded("protection ended: \(reason); \(report)")
        case .guestGone(let reason):
            return .guestGone(
                "the guest's QEMU has ended (\(reason)); to go on from the last checkpoint: "
                    + failoverHint(options))
        case .notStarted(let reason):
            return .refused(reason)
        }
    }

    private static func failoverHint(_ options: AttachOptions) -> String {
        let name = options.guest ?? "NAME"
        if let store = options.store { return "colo-blk failover \(name) --store \(store)" }
        return "colo-blk failover \(name), on the secondary"
    }

    private static func executablePath() -> String? {
        var buffer = [CChar](repeating: 0, count: 4096)
        let count = readlink("/proc/self/exe", &buffer, buffer.count)
        guard count > 0, count < buffer.count else { return nil }
        return String(decoding: buffer[..<count].map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }
}
