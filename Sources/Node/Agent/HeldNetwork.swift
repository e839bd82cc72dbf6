import Checkpointer
import Logging
import NIOCore
import QEMU
import Units

/// The guest's packets between QEMU's network filters and ``OutputCommit``, which says when they leave.
///
/// Lives on the agent's event loop and is touched only there; not Sendable on purpose. QEMU writes each packet from its
/// main loop and waits until it is taken, so the sockets are read whatever happens: what may not leave is kept here, and
/// what does not fit is dropped.
final class HeldNetwork {
    /// Nanoseconds that a packet may be held while the policy is to give the guest its network back: a secondary that
    /// needs longer to commit counts as lost.
    static let overdueAfter: UInt64 = 2_000_000_000

    /// One network card: packets that come from the guest, and where they go on.
    final class Card {
        let netdev: String
        /// Takes packets back into QEMU; nil until QEMU has connected.
        fileprivate(set) var way: (any Channel)?
        fileprivate(set) var isReading = false
        fileprivate var held: [Packets] = []
        /// Packets that pass, until everything at hand was read.
        fileprivate var passing = Packets(epoch: .none)

        init(netdev: String) { self.netdev = netdev }

        /// Whether QEMU has connected both ways.
        var isConnected: Bool { way != nil && isReading }
    }

    /// Packets in their order, as they go back to QEMU.
    fileprivate struct Packets {
        let epoch: Epoch
        var count: UInt64 = 0
        var bytes = ByteBuffer()

        mutating func append(_ frame: UnsafeRawBufferPointer) {
            bytes.writeBytes(frame)
            count += 1
        }
    }

    private var machine: OutputCommit
    /// Whether nothing leaves any more when the secondary is lost.
    private let closesOnLoss: Bool
    private let log: Logger
    private(set) var cards: [Card] = []
    /// Packets that QEMU did not take back in time.
    private var overrun: UInt64 = 0
    /// The open epoch has its first packet, or the room fills; set by the session.
    var onHeld: () -> Void = {}
    /// From now on everything that was ever let out belongs to a committed epoch.
    var onInForce: () -> Void = {}
    /// QEMU's end of a card's filter is gone, or talks nonsense.
    var onFailure: (String) -> Void = { _ in }
    /// What became of the packets held at the end.
    var onRelease: (String) -> Void = { _ in }
    private var wasFilling = false
    /// The last release of the session, once QEMU has it.
    private var lastRelease: EventLoopFuture<Void>?

    init(limit: UInt64, first: Epoch, isClosed: Bool, closesOnLoss: Bool, log: Logger) {
        machine = OutputCommit(limit: limit, first: first, isClosed: isClosed)
        self.closesOnLoss = closesOnLoss
        self.log = log
    }

    func add(_ netdev: String) -> Card {
        let card = Card(netdev: netdev)
        cards.append(card)
        return card
    }

    var oldestOfOpenEpoch: Moment? { machine.oldestOfOpenEpoch }
    var isFilling: Bool { machine.isFilling }

    var figures: NetworkFigures {
        NetworkFigures(
            packets: machine.heldPackets, bytes: machine.heldBytes, dropped: machine.droppedPackets + overrun,
            times: machine.times.summary, isInForce: machine.isInForce)
    }

    /// When a guest that was stopped ran again: packets that it had sent before wait for nobody's fault.
    var resumedAt: Moment?

    /// Why the secondary counts as lost although it lives; nil while it does not.
    var overdue: String? {
        guard !closesOnLoss, let oldest = machine.oldest,
            MonotonicClock.now().nanoseconds(since: max(oldest, resumedAt ?? oldest)) > Self.overdueAfter
        else { return nil }
        let seconds = Self.overdueAfter / 1_000_000_000
        return "packets of the guest were held for more than \(seconds) s, since no checkpoint was committed: a faster "
            + "link or disk helps"
    }

    // MARK: Packets

    fileprivate func packet(_ frame: UnsafeRawBufferPointer, of card: Card, now: Moment) {
        switch machine.packet(bytes: frame.count, now: now) {
        case .drop: break
        case .pass: card.passing.append(frame)
        case .hold(let epoch):
            if card.held.last?.epoch != epoch { card.held.append(Packets(epoch: epoch)) }
            card.held[card.held.count - 1].append(frame)
        }
    }

    /// All packets at hand were read; those that pass go on, and a checkpoint may be due for those that do not.
    fileprivate func readComplete(_ card: Card, hadOpen: Bool) {
        pass(card)
        let filling = machine.isFilling
        let isNews = (!hadOpen && machine.oldestOfOpenEpoch != nil) || (filling && !wasFilling)
        wasFilling = filling
        if isNews { onHeld() }
    }

    private func pass(_ card: Card) {
        guard card.passing.count > 0 else { return }
        write(card.passing, to: card)
        card.passing = Packets(epoch: .none)
    }

    /// QEMU reads from its main loop as it writes, so what waits here stays small; if not, it is dropped.
    @discardableResult
    private func write(_ packets: Packets, to card: Card) -> EventLoopFuture<Void>? {
        guard let way = card.way, way.isWritable else {
            overrun += packets.count
            return nil
        }
        return way.writeAndFlush(packets.bytes)
    }

    // MARK: Epochs

    func boundary() { machine.boundary() }

    func committed(_ epoch: Epoch) {
        guard let release = machine.committed(epoch, now: MonotonicClock.now()) else { return }
        for card in cards {
            pass(card)
            while let first = card.held.first, first.epoch <= release.through {
                write(first, to: card)
                card.held.removeFirst()
            }
        }
        if release.comesIntoForce { onInForce() }
    }

    /// The session is over. Whether the packets held leave depends on why, and on the policy.
    func end(_ reason: AgentEnding) {
        let isClosed = reason.isFenced || (closesOnLoss && reason.isLoss && machine.state == .holding)
        guard let count = machine.end(closed: isClosed) else { return }
        for card in cards {
            pass(card)
            if !isClosed { for packets in card.held { lastRelease = write(packets, to: card) ?? lastRelease } }
            card.held = []
        }
        if isClosed {
            onRelease("network: CLOSED: nothing leaves the guest; \(count) held packets were dropped")
        } else {
            onRelease("network: OPEN: \(count) held packets were let out; nothing is held from now on")
        }
    }

    /// Waits until QEMU has taken what the end let out, for at most so long.
    func settle(within limit: TimeAmount, loop: any EventLoop) -> EventLoopFuture<Void> {
        guard let lastRelease else { return loop.makeSucceededVoidFuture() }
        let promise = loop.makePromise(of: Void.self)
        loop.assumeIsolated().scheduleTask(in: limit) { promise.succeed() }
        lastRelease.whenComplete { _ in promise.succeed() }
        return promise.futureResult
    }
}

/// The agent's end of the socket on which a filter hands out the guest's packets.
final class PacketHandler: ChannelInboundHandler {
    typealias InboundIn = ByteBuffer

    private let network: HeldNetwork
    private let card: HeldNetwork.Card
    private var framer = PacketFramer(hasHeaderLength: true)
    private var hadOpen = false
    private var isWelcome = false

    init(network: HeldNetwork, card: HeldNetwork.Card) {
        self.network = network
        self.card = card
    }

    func channelActive(context: ChannelHandlerContext) {
        // QEMU connects once. Whoever comes later is not QEMU.
        guard !card.isReading else {
            context.close(promise: nil)
            return
        }
        isWelcome = true
        card.isReading = true
        context.fireChannelActive()
    }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        guard isWelcome else { return }
        hadOpen = network.oldestOfOpenEpoch != nil
        let now = MonotonicClock.now()
        var malformed: PacketFramer.Malformed?
        unwrapInboundIn(data).withUnsafeReadableBytes { bytes in
            do throws(PacketFramer.Malformed) {
                try framer.take(bytes) { network.packet($0, of: card, now: now) }
            } catch {
                malformed = error
            }
        }
        network.readComplete(card, hadOpen: hadOpen)
        guard let malformed else { return }
        isWelcome = false
        network.onFailure("network '\(card.netdev)': \(malformed)")
        context.close(promise: nil)
    }

    func channelInactive(context: ChannelHandlerContext) {
        if isWelcome { network.onFailure("QEMU closed the filter of network '\(card.netdev)'; was it unplugged?") }
        context.fireChannelInactive()
    }

    func errorCaught(context: ChannelHandlerContext, error: any Error) {
        context.close(promise: nil)
    }
}

/// The agent's end of the socket by which packets go back into QEMU. QEMU says nothing on it.
final class PacketWay: ChannelInboundHandler {
    typealias InboundIn = ByteBuffer

    private let network: HeldNetwork
    private let card: HeldNetwork.Card
    private var isWelcome = false

    init(network: HeldNetwork, card: HeldNetwork.Card) {
        self.network = network
        self.card = card
    }

    func channelActive(context: ChannelHandlerContext) {
        guard card.way == nil else {
            context.close(promise: nil)
            return
        }
        isWelcome = true
        card.way = context.channel
        context.fireChannelActive()
    }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {}

    func channelInactive(context: ChannelHandlerContext) {
        if isWelcome { network.onFailure("QEMU closed the filter of network '\(card.netdev)'; was it unplugged?") }
        context.fireChannelInactive()
    }

    func errorCaught(context: ChannelHandlerContext, error: any Error) {
        context.close(promise: nil)
    }
}

extension AgentEnding {
    /// The replica became the guest: whatever this guest still sends is not the world's business.
    var isFenced: Bool {
        if case .fenced = self { return true }
        return false
    }

    /// The secondary is lost, for the time being or for good.
    var isLoss: Bool {
        switch self {
        case .linkLost, .linkRefused, .congested, .secondaryAway, .secondaryRefused, .fenced, .guestChanged: true
        case .detach, .refused, .guardianGone, .mirrorLost, .migrationEnded, .guestGone, .guestDied, .failed: false
        }
    }
}
