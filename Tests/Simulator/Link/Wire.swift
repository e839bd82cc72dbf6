/// One end of a connection.
protocol WireEnd: AnyObject {
    func wire(_ wire: Wire, delivered bytes: [UInt8])
    func wireClosed(_ wire: Wire)
}

/// One connection between two hosts: ordered bytes in both directions, in pieces of any size, after a delay; until one
/// side closes it, it is cut, or a host is gone and nobody says so.
final class Wire {
    enum Side: Int { case primary, secondary }

    private struct Lane {
        var lastArrival: UInt64 = 0
        /// What was sent and has not arrived, in order.
        var waiting: [[UInt8]] = []
        /// The receiver hears nothing any more.
        var isDead = false
        /// The receiver was told that it is over.
        var isClosed = false
    }

    let number: Int
    private unowned let world: Simulation
    private var ends: [Weak?] = [nil, nil]
    private var lanes = [Lane(), Lane()]
    /// Nothing arrives before this moment.
    var stalledUntil: UInt64 = 0
    /// Bytes to the secondary until one is flipped.
    var garbleIn: Int?

    private struct Weak { weak var end: (any WireEnd)? }

    init(number: Int, world: Simulation) {
        self.number = number
        self.world = world
    }

    func attach(_ end: any WireEnd, at side: Side) { ends[side.rawValue] = Weak(end: end) }

    var isOpen: Bool { !lanes[0].isClosed && !lanes[1].isClosed }

    /// Sends from one side to the other.
    func send(from side: Side, _ bytes: [UInt8], after delay: UInt64 = 0) {
        let target = 1 - side.rawValue
        guard !lanes[side.rawValue].isClosed else { return }
        var bytes = bytes
        if side == .primary, let left = garbleIn {
            if left < bytes.count {
                bytes[left] ^= 0x10
                garbleIn = nil
            } else {
                garbleIn = left - bytes.count
            }
        }
        let pieces = bytes.count > 1 && world.chance(1, in: 12) ? 2 : 1
        let split = pieces == 1 ? bytes.count : world.pick(1...bytes.count - 1)
        for piece in [Array(bytes[..<split]), Array(bytes[split...])] where !piece.isEmpty {
            let arrival = max(
                world.now + delay + world.linkDelay + world.random(0...100_000), lanes[target].lastArrival,
                stalledUntil)
            lanes[target].lastArrival = arrival
            lanes[target].waiting.append(piece)
            world.at(arrival) { [self] in deliver(to: target) }
        }
    }

    private func deliver(to target: Int) {
        if world.now < stalledUntil { return world.at(stalledUntil) { [self] in deliver(to: target) } }
        let bytes = lanes[target].waiting.removeFirst()
        guard !lanes[target].isDead, !lanes[target].isClosed else { return }
        ends[target]?.end?.wire(self, delivered: bytes)
    }

    /// One side closes: the other one hears of it behind all that was sent.
    func close(from side: Side) {
        lanes[side.rawValue].isClosed = true
        let target = 1 - side.rawValue
        let time = max(lanes[target].lastArrival, world.now + world.linkDelay, stalledUntil)
        lanes[target].lastArrival = time
        world.at(time) { [self] in tell(target) }
    }

    /// The connection breaks: what is under way is lost. Each side hears of it, or never does.
    func cut(primaryHears: Bool, secondaryHears: Bool) {
        for (side, hears) in [(0, primaryHears), (1, secondaryHears)] {
            lanes[side].isDead = true
            if hears { world.after(world.random(0...2_000_000)) { [self] in tell(side) } }
        }
    }

    private func tell(_ side: Int) {
        // Behind all that is under way, unless that is lost.
        if !lanes[side].isDead, !lanes[side].waiting.isEmpty { return world.after(1_000_000) { [self] in tell(side) } }
        guard !lanes[side].isClosed else { return }
        lanes[side].isClosed = true
        ends[side]?.end?.wireClosed(self)
    }
}
