import Glibc
import Synchronization

extension AgentSession {
    /// What the secondary is told of the end: an operator there must know a guest that has died from one that was
    /// powered off, or that runs on unprotected.
    func byeCode(_ ending: AgentEnding) async -> UInt16 {
        switch ending {
        case .guestGone: return ByeCode.guestShutdown
        case .mirrorLost, .migrationEnded, .failed:
            // QEMU's sockets close some time before its process has ended, and what it said of its end, over the
            // guardian's socket, may come later than that.
            for _ in 0..<8 where !guestHasDied && !guestWasShutDown { try? await Task.sleep(for: .milliseconds(10)) }
            for _ in 0..<4 where guestHasDied && !guestWasShutDown { try? await Task.sleep(for: .milliseconds(10)) }
        default: break
        }
        if guestWasShutDown { return ByeCode.guestShutdown }
        return guestHasDied ? ByeCode.guestDied : ByeCode.ended
    }

    private var guestWasShutDown: Bool { shutdownSeen.withLock { $0 } }

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
