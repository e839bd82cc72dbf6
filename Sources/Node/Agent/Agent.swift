import FoundationEssentials
import Glibc
import Logging
import NIOPosix

/// The process that does the work of `colo-blk attach`, a child of the guardian.
public enum Agent {
    /// Runs to the end of the attachment. Its standard input must be the guardian's socket.
    ///
    /// - Returns: the exit code, see docs/cli.md.
    public static func run(encodedOptions: String) async -> Int32 {
        // The guardian tells us when to stop; a Ctrl-C or a service manager's SIGTERM reaches both of us.
        signal(SIGINT, SIG_IGN)
        signal(SIGTERM, SIG_IGN)
        // The kernel hangs up on a stopped process whose parent died: just when the guest needs us.
        signal(SIGHUP, SIG_IGN)
        signal(SIGPIPE, SIG_IGN)
        preferUsToTheGuest()
        guard let options = try? JSONDecoder().decode(AttachOptions.self, from: Data(encodedOptions.utf8)) else {
            return AgentExit.refused
        }
        var log = Logger(label: "colo-blk.agent", factory: { StreamLogHandler.standardError(label: $0) })
        log.logLevel = Logger.Level(rawValue: options.logLevel) ?? .info
        let group = MultiThreadedEventLoopGroup(numberOfThreads: 1)
        let loop = group.next()
        do {
            let relay = try await AgentRelay.connect(eventLoop: loop)
            let session = AgentSession(options: options, relay: relay, loop: loop, log: log)
            let ending = await session.run()
            // The guardian's death may first show as a command that fails, and it may die while we take our leave.
            if await !relay.guardianIsGone {
                await relay.bye(
                    reason: ending.reason, exitCode: ending.exitCode, lastCommit: session.lastCommit)
                await relay.waitForLeave()
            }
            guard await relay.guardianIsGone else {
                await session.linger()
                return ending.exitCode
            }
            log.notice("the guardian died; restoring the guest")
            let isHalted = await session.guestIsHalted
            if let report = await relay.restoreWithoutGuardian(
                keepsStopped: isHalted, eventLoop: loop, log: log)
            {
                log.notice("the guest was restored", metadata: ["report": "\(report)"])
            }
            return AgentExit.protectionEnded
        } catch {
            log.error("\(error)")
            return AgentExit.refused
        }
    }
}

/// When the host runs out of memory the kernel takes this process, not the guest's QEMU: of the two only this one can
/// be started again.
private func preferUsToTheGuest() {
    guard let file = fopen("/proc/self/oom_score_adj", "we") else { return }
    fputs("1000\n", file)
    fclose(file)
}

extension AgentEnding {
    var exitCode: Int32 {
        switch self {
        case .detach: AgentExit.detached
        case .refused: AgentExit.refused
        case .secondaryRefused, .linkRefused: AgentExit.secondaryRefuses
        case .secondaryAway: AgentExit.secondaryAway
        case .linkLost, .congested: AgentExit.secondaryLost
        case .guestGone, .guestDied: AgentExit.guestGone
        case .guestChanged: AgentExit.guestChanged
        case .fenced: AgentExit.fenced
        case .guardianGone, .mirrorLost, .migrationEnded, .failed: AgentExit.protectionEnded
        }
    }

    var reason: String {
        switch self {
        case .detach(let text), .refused(let text), .guestGone(let text), .guestDied(let text), .guestChanged(let text),
            .fenced(let text), .failed(let text):
            text
        case .linkRefused(let text): "the link is refused: \(text)"
        case .secondaryRefused(let text): "the secondary refuses: \(text)"
        case .linkLost(let text): "the secondary is lost: \(text)"
        case .congested(let text), .secondaryAway(let text): text
        case .mirrorLost(let text): text
        case .migrationEnded(let text): text
        case .guardianGone: "the guardian died"
        }
    }
}
