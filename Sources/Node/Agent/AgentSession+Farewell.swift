import Checkpointer
import Glibc
import Link
import Synchronization

extension AgentSession {
    /// What the secondary is told of the end: an operator there must know a guest that has died from one that was
    /// powered off, or that runs on unprotected.
    func bye(_ ending: AgentEnding) async -> Bye {
        switch ending {
        case .mirrorLost, .migrationEnded, .failed:
            // QEMU's sockets close some time before its process has ended, and what it said of its end, over the
            // guardian's socket, may come later than that.
            for _ in 0..<8 where !guestHasDied && shutdown == nil { try? await Task.sleep(for: .milliseconds(10)) }
            for _ in 0..<4 where guestHasDied && shutdown == nil { try? await Task.sleep(for: .milliseconds(10)) }
        default: break
        }
        let reason = String((shutdown?.words ?? ending.reason).prefix(512))
        if let shutdown {
            return Bye(code: shutdown.isOrderly ? ByeCode.guestShutdown : ByeCode.guestDied, reason: reason)
        }
        return Bye(code: guestHasDied ? ByeCode.guestDied : ByeCode.ended, reason: reason)
    }

    private var shutdown: GuestLife.Cause? { shutdownSeen.withLock { $0 } }

    /// The guest's process is gone, or has given back its memory: what it was is no more.
    private var guestHasDied: Bool {
        guard let pid = relay.hello.process?.pid else { return false }
        let descriptor = open("/proc/\(pid)/cmdline", O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else { return errno == ENOENT }
        defer { close(descriptor) }
        var byte: UInt8 = 0
        return read(descriptor, &byte, 1) <= 0
    }
}
