import NIOCore
import Synchronization

/// Connections that have not said hello yet: bounded in number, so that whoever reaches the port cannot fill this host.
/// When there is one too many the oldest goes: a primary greets within milliseconds. Safe from any thread.
final class LinkLobby: Sendable {
    /// One connection that waits.
    final class Visitor: Sendable {
        private let channel: any Channel
        private let reason = Mutex<String?>(nil)

        fileprivate init(_ channel: any Channel) {
            self.channel = channel
        }

        /// Why it was dropped; nil when it was not.
        var dropped: String? { reason.withLock { $0 } }

        func drop(_ words: String) {
            reason.withLock { $0 = $0 ?? words }
            channel.close(promise: nil)
        }
    }

    /// Connections that may wait at a time.
    static let visitorsMax = 64

    private let limit: Int
    private let visitors = Mutex<[Visitor]>([])

    init(limit: Int = LinkLobby.visitorsMax) {
        self.limit = limit
    }

    func enter(_ channel: any Channel) -> Visitor {
        let visitor = Visitor(channel)
        let oldest = visitors.withLock { visitors -> Visitor? in
            visitors.append(visitor)
            return visitors.count > limit ? visitors.removeFirst() : nil
        }
        oldest?.drop("more than \(limit) connections wait that have not said hello; the oldest goes")
        return visitor
    }

    /// It was let in, or has gone.
    func leave(_ visitor: Visitor) {
        visitors.withLock { visitors in visitors.removeAll { $0 === visitor } }
    }
}
