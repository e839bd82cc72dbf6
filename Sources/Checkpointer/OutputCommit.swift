import Units

/// What becomes of each packet that the guest sends: output commit. Decides only; the packets are the caller's, in one
/// queue in the order of their arrival. Reads no clock.
///
/// **The promise.** A packet that the guest sent in epoch e leaves only when e is committed, in the order in which it
/// came, once.
///
/// **Why it holds.** A packet is tagged with the epoch that is open when it is *read*, and ``boundary()`` is called when
/// QEMU's `vmstate-send` is read, before it is acknowledged. QEMU lets the guest run again only behind our
/// acknowledgement, so whatever the guest sends in epoch e + 1 is read after that call and cannot be tagged e or less.
/// The other way round a packet may err: what was sent in e and still lies in the socket at the boundary is tagged
/// e + 1. It waits for one epoch more than it must, and waiting longer breaks no promise. Tags only grow along the
/// queue, so what a commit releases is its front part, and nothing overtakes.
///
/// **When it begins.** Until the first commit of the session packets pass, since they would wait for the whole initial
/// copy. The guest was running before that commit's boundary and went on behind it, and what passed meanwhile is part of
/// the epoch that is open at the first commit: the promise is kept from the commit of that one on. A session that begins
/// closed (an outage under `hold`) lets nothing pass, and keeps the promise from the start.
///
/// **Bounds.** Held packets take ``limit`` bytes at most; what comes beyond is dropped, as a network drops. Whether a
/// packet may be held for long is the caller's policy, by ``oldest``.
public struct OutputCommit: Sendable {
    public enum State: Equatable, Sendable {
        /// Nothing is held yet. Next: holding, open, closed.
        case passing
        /// Packets wait for their epoch. Next: open, closed.
        case holding
        /// The session is over and the network is the guest's own again. Final.
        case open
        /// The session is over, and nothing leaves any more. Final.
        case closed
    }

    /// What to do with a packet.
    public enum Verdict: Equatable, Sendable {
        case pass
        /// Keep it behind all others.
        case hold(Epoch)
        case drop
    }

    /// What a commit brings.
    public struct Release: Equatable, Sendable {
        /// Packets with this epoch or an earlier one leave, in their order.
        public var through: Epoch
        public var packets: Int
        /// From now on everything that was ever let out belongs to a committed epoch. True once in a session.
        public var comesIntoForce: Bool

        public init(through: Epoch, packets: Int, comesIntoForce: Bool = false) {
            self.through = through
            self.packets = packets
            self.comesIntoForce = comesIntoForce
        }
    }

    /// Bytes that a held packet counts beside its own: the caller's and ours for keeping it.
    public static let packetOverhead: UInt64 = 32

    /// Most bytes held, ``packetOverhead`` included.
    public let limit: UInt64
    public private(set) var state: State
    /// Whether everything that was ever let out belongs to a committed epoch.
    public private(set) var isInForce = false
    public private(set) var heldBytes: UInt64 = 0
    public private(set) var heldPackets = 0
    /// Packets dropped because the limit was reached, or the session had been closed.
    public private(set) var droppedPackets: UInt64 = 0
    /// How long packets were held that have left.
    public private(set) var times = HoldTimes()

    /// The epoch that is open.
    private var current: Epoch
    /// The last epoch of which packets have passed; nil when none have.
    private var exposed: Epoch?
    private var groups: [Group] = []

    /// The held packets of one epoch.
    private struct Group: Sendable {
        let epoch: Epoch
        var bytes: UInt64 = 0
        /// When each of them was read, oldest first.
        var arrivals: [Moment] = []
    }

    /// - Parameters:
    ///   - first: the first epoch of the session, which is open now.
    ///   - isClosed: whether nothing leaves before the first commit.
    public init(limit: UInt64, first: Epoch, isClosed: Bool = false) {
        precondition(limit > 0)
        self.limit = limit
        current = first
        state = isClosed ? .holding : .passing
    }

    /// When the packet was read that has been held the longest.
    public var oldest: Moment? { groups.first?.arrivals.first }

    /// The same of those which the next checkpoint will release; those before it wait for a commit that is under way.
    public var oldestOfOpenEpoch: Moment? {
        guard let last = groups.last, last.epoch == current else { return nil }
        return last.arrivals.first
    }

    /// Whether a checkpoint is due because half of the room for held packets is in use.
    public var isFilling: Bool { heldBytes >= limit / 2 && groups.last?.epoch == current }

    /// A packet was read. `bytes`: its length with what is in front of it.
    public mutating func packet(bytes: Int, now: Moment) -> Verdict {
        switch state {
        case .passing, .open: return .pass
        case .closed:
            droppedPackets += 1
            return .drop
        case .holding:
            let cost = UInt64(bytes) + Self.packetOverhead
            guard cost <= limit - heldBytes else {
                droppedPackets += 1
                return .drop
            }
            if groups.last?.epoch != current { groups.append(Group(epoch: current)) }
            groups[groups.count - 1].bytes += cost
            groups[groups.count - 1].arrivals.append(now)
            heldBytes += cost
            heldPackets += 1
            return .hold(current)
        }
    }

    /// `vmstate-send` of the open epoch was read, and is not acknowledged yet.
    public mutating func boundary() { current = current.next }

    /// The secondary has committed an epoch. Nil: nothing changes.
    public mutating func committed(_ epoch: Epoch, now: Moment) -> Release? {
        switch state {
        case .open, .closed: return nil
        case .passing:
            state = .holding
            exposed = current
        case .holding: break
        }
        var release = Release(through: epoch, packets: 0)
        while let group = groups.first, group.epoch <= epoch {
            for arrival in group.arrivals { times.record(now.nanoseconds(since: arrival)) }
            release.packets += group.arrivals.count
            forget(group)
        }
        if !isInForce, exposed.map({ $0 <= epoch }) ?? true {
            isInForce = true
            release.comesIntoForce = true
        }
        return release.packets > 0 || release.comesIntoForce ? release : nil
    }

    /// The session is over. What is held leaves at once and in order, or never; so does all that comes later.
    /// Returns how many packets that concerns; later calls change nothing and return nil.
    public mutating func end(closed: Bool) -> Int? {
        guard state == .passing || state == .holding else { return nil }
        state = closed ? .closed : .open
        let count = heldPackets
        if closed { droppedPackets += UInt64(count) }
        while let group = groups.first { forget(group) }
        return count
    }

    private mutating func forget(_ group: Group) {
        heldBytes -= group.bytes
        heldPackets -= group.arrivals.count
        groups.removeFirst()
    }
}
