import Checkpointer
import FoundationEssentials
import Glibc
import Logging
import NIOCore
import NIOPosix
import Synchronization
import Units

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
    /// Credentials for the link; nil is clear text.
    public var tls: TLSFiles?
    /// The host whose certificate the secondary must show, when that is not the address's.
    public var tlsName: String?
    /// `DISK=FILE` for a new replica in `store`.
    public var seeds: [String] = []
    /// Whether a secondary that is lost after the first checkpoint is waited for.
    public var triesAgain = false
    /// Networks whose packets wait for their checkpoint; nil for none.
    public var holdNetwork: HeldNetworks?
    /// What a packet shall be held at most, in the median.
    public var holdTargetNanoseconds: UInt64 = 50_000_000
    /// The share of the guest's time that pauses may take, above 0 and at most 1.
    public var pauseShareMax = 0.25
    /// Bytes in a second that are sent to the secondary at most; nil for no bound.
    public var bandwidth: UInt64?
    /// The lowest ``bandwidth`` that is of use.
    public static let bandwidthMin = LinkPacer.rateMin
    /// Whether the networks stay closed while a secondary is away that was lost.
    public var closesNetworkOnLoss = false
    /// Nanoseconds from the loss after which it is not waited for any longer; nil for ever.
    public var resyncTimeoutNanoseconds: UInt64?
    /// For the agent: the last commit before the outage, as nanoseconds of the monotonic clock.
    var lastCommit: UInt64?

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

/// Which networks of the guest are held.
public enum HeldNetworks: Codable, Sendable, Equatable {
    case all
    /// By the ids of their `-netdev`.
    case named([String])
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
    /// The secondary or the link to it was lost, or lags too far behind.
    static let secondaryLost: Int32 = 4
    /// The secondary cannot be reached, or not take the guest now.
    static let secondaryAway: Int32 = 5
    /// The secondary will not take the guest.
    static let secondaryRefuses: Int32 = 6
    /// The replica became the guest.
    static let fenced: Int32 = 7
    /// The guest is another machine than the one that the replica would start.
    static let guestChanged: Int32 = 8
    /// After which a network that is held, or was found closed, stays closed under the policy `hold`. A refusal is among
    /// them for attempts within an outage.
    static let lossCodes: Set<Int32> = [refused, secondaryLost, secondaryAway, secondaryRefuses, fenced, guestChanged]
}

/// The guardian's side of `colo-blk attach`.
public enum Attachment {
    /// Protects the guest until a signal comes or something ends it; the guest is put back in every case.
    ///
    /// A secondary that is lost after the first checkpoint is waited for, if the options say so: the guest runs on
    /// unprotected, and the next attempt sends of its disks only what differs from what the secondary holds.
    public static func run(_ options: AttachOptions, log: Logger) async throws -> AttachOutcome {
        guard let program = executablePath() else {
            return .refused("/proc/self/exe cannot be read, so that no agent can be started; is /proc mounted?")
        }
        var options = options
        if let files = options.tls, let text = options.secondary {
            // What the agent would refuse is refused before anything else is done.
            do throws(TLSRefused) {
                guard let address = try? Address(parsing: text) else { return .refused("'\(text)' is no address") }
                let tls = try LinkTLS.primary(files, to: address, name: options.tlsName)
                if let warning = tls.warning { log.warning("\(warning)") }
            } catch {
                return .refused("\(error)")
            }
        }
        let progress = Progress()
        var reconnection = Reconnection(timeout: options.resyncTimeoutNanoseconds, now: MonotonicClock.now())
        while true {
            let (outcome, commit) = await attempt(options, program, log)
            let isRetry = options.lastCommit != nil
            let ending = ending(of: outcome, isRetry: isRetry, qmp: options.qmp)
            let step =
                options.triesAgain
                ? reconnection.ended(ending, lastCommit: commit, now: MonotonicClock.now()) : .finish
            switch step {
            case .finish: return explain(outcome, options, isRetry: isRetry)
            case .timedOut:
                return .protectionEnded(
                    "protection ended: the secondary was not back within --resync-timeout; \(words(outcome))")
            case .retry(let next):
                guard let last = reconnection.lastCommit else { return explain(outcome, options, isRetry: isRetry) }
                options.lastCommit = last.nanoseconds
                // Only a replica that does not exist yet is seeded.
                options.seeds = []
                progress.say("degraded: \(words(outcome)); last commit \(Progress.age(of: last)) ago; trying again")
                if options.holdNetwork != nil {
                    progress.say(
                        options.closesNetworkOnLoss
                            ? "network: CLOSED until a checkpoint is committed again"
                            : "network: OPEN and UNPROTECTED: what leaves now is lost in a failover")
                }
                if let signal = try await wait(until: next, last, progress) {
                    if let problem = await openNetwork(options, log) {
                        return .protectionEnded(
                            "detached (\(signal)) while the secondary was away, but the guest's network is still "
                                + "closed: \(problem)")
                    }
                    return .detached("detached (\(signal)) while the secondary was away; the guest is as it was found")
                }
                reconnection.attemptBegins(now: MonotonicClock.now())
            }
        }
    }

    /// One guardian and its agent, from the doctor to the end.
    private static func attempt(
        _ options: AttachOptions, _ program: String, _ log: Logger
    ) async -> (GuardianOutcome, lastCommit: Moment?) {
        let encoded: String
        do {
            encoded = String(decoding: try JSONEncoder().encode(options), as: UTF8.self)
        } catch {
            return (.notStarted(reason: "the options cannot be handed on: \(error)"), nil)
        }
        var configuration = Guardian.Configuration(
            qmpPath: options.qmp, agentExecutable: program, agentArguments: ["agent", encoded])
        configuration.guestPID = options.pid
        configuration.claimsGuest = true
        // Budget for the link and for pages on their way, each with copies under way; a shadow of the guest's memory,
        // and with a store of its own the same again twice, for what is taken in.
        configuration.agentMemoryMax = UInt64(options.budgetBytes) * 4 + 1 << 30
        configuration.agentMemoryPerGuestByte = options.store == nil ? 1 : 3
        configuration.closesNetworkOnLoss = options.closesNetworkOnLoss
        let loop = MultiThreadedEventLoopGroup.singleton.next()
        let guardian = Guardian(configuration: configuration, eventLoop: loop, log: log)
        let outcome = await guardian.run()
        return (outcome, guardian.lastCommit)
    }

    /// Opens networks that an outage keeps closed. Returns what stood in the way.
    private static func openNetwork(_ options: AttachOptions, _ log: Logger) async -> String? {
        guard options.closesNetworkOnLoss else { return nil }
        do {
            _ = try await GuestRecovery.run(qmp: options.qmp, log: log)
            return nil
        } catch {
            // A guest that is gone has no network.
            return UnixSocketPath.isListening(options.qmp) ? "\(error)" : nil
        }
    }

    /// What an outcome means for another attempt.
    private static func ending(of outcome: GuardianOutcome, isRetry: Bool, qmp: String) -> Reconnection.Ending {
        switch outcome {
        case .agentFailed(_, AgentExit.secondaryLost, _), .agentFailed(_, AgentExit.guestChanged, _): .lost
        case .agentFailed(_, AgentExit.secondaryAway, _): .away
        // What is in the way during an outage, a paused guest or another client of the monitor, may go again.
        case .agentFailed(_, AgentExit.refused, _): isRetry ? .away : .final
        case .notStarted: isRetry && UnixSocketPath.isListening(qmp) ? .away : .final
        case .agentFailed, .detached, .guestGone, .guestShutOff: .final
        }
    }

    private static func words(_ outcome: GuardianOutcome) -> String {
        switch outcome {
        case .detached(let reason, _), .agentFailed(let reason, _, _), .guestGone(let reason),
            .guestShutOff(let reason),
            .notStarted(let reason):
            reason
        }
    }

    /// Waits for the next attempt; returns the signal that came instead.
    private static func wait(
        until next: Moment, _ lastCommit: Moment, _ progress: Progress
    ) async throws -> String? {
        let loop = MultiThreadedEventLoopGroup.singleton.next()
        let (said, say) = AsyncStream.makeStream(of: String.self)
        let watch = try await SignalWatch.start(eventLoop: loop) { signal in
            say.yield(signal == SIGINT ? "interrupted" : "terminated by a signal")
        }
        defer { watch.stop() }
        let first = Mutex<String?>(nil)
        let listener = Task {
            for await signal in said { first.withLock { $0 = $0 ?? signal } }
        }
        while MonotonicClock.now() < next, first.withLock({ $0 }) == nil {
            progress.show("degraded: secondary away, last commit \(Progress.age(of: lastCommit)) ago")
            let left = next.nanoseconds(since: MonotonicClock.now())
            try await Task.sleep(for: .nanoseconds(Int64(min(left, 200_000_000))))
        }
        progress.finish()
        say.finish()
        await listener.value
        return first.withLock { $0 }
    }

    private static func explain(_ outcome: GuardianOutcome, _ options: AttachOptions, isRetry: Bool) -> AttachOutcome {
        switch outcome {
        case .detached(let reason, let report):
            return .detached("detached (\(reason)): \(report)")
        case .agentFailed(let reason, AgentExit.refused, _), .agentFailed(let reason, AgentExit.secondaryAway, _),
            .agentFailed(let reason, AgentExit.secondaryRefuses, _):
            let words = reason + closed(outcome, options)
            return isRetry ? .protectionEnded("protection ended: \(words)") : .refused(words)
        case .agentFailed(let reason, AgentExit.guestGone, _):
            return .guestGone(shutOff(reason))
        case .guestShutOff(let reason):
            return .guestGone(shutOff(reason))
        case .agentFailed(let reason, _, let report):
            return .protectionEnded("protection ended: \(reason); \(report)" + closed(outcome, options))
        case .guestGone(let reason):
            return .guestGone(
                "the guest's QEMU has ended (\(reason)); to go on from the last checkpoint: "
                    + failoverHint(options))
        case .notStarted(let reason):
            guard isRetry else { return .refused(reason) }
            return .guestGone(
                "the guest's QEMU has ended while the secondary was away (\(reason)); to go on from the last "
                    + "checkpoint: " + failoverHint(options))
        }
    }

    private static func shutOff(_ reason: String) -> String {
        "\(reason). Protection has ended; the replica keeps the last checkpoint, of before that"
    }

    /// What to know of a network that stays closed.
    private static func closed(_ outcome: GuardianOutcome, _ options: AttachOptions) -> String {
        guard case .agentFailed(_, _, let report) = outcome, report.networkClosed else { return "" }
        return "; the guest's network stays CLOSED: fence this guest, or open it with "
            + "'colo-blk detach --recover --qmp \(options.qmp)'"
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
