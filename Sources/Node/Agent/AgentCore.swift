import BlockReplica
import Checkpointer
import Link
import Logging
import NIOCore
import QEMU
import RamCache
import Units

/// Why a session of the agent is over.
enum AgentEnding: Sendable, Equatable {
    case detach(String)
    /// Nothing was begun that cannot be undone.
    case refused(String)
    case guardianGone
    /// The secondary refuses this guest, and will go on to.
    case secondaryRefused(String)
    /// One side does not accept the other's TLS, and will not.
    case linkRefused(String)
    /// The secondary cannot be reached, or not take the guest now.
    case secondaryAway(String)
    case linkLost(String)
    case congested(String)
    case mirrorLost(String)
    case migrationEnded(String)
    /// The guest is off, or its QEMU has ended, as somebody wished.
    case guestGone(String)
    /// QEMU cannot go on.
    case guestDied(String)
    /// The guest is another machine than the one that the replica would start.
    case guestChanged(String)
    /// The replica became the guest.
    case fenced(String)
    case failed(String)
}

/// The agent's half of the engine between three sockets: QEMU's NBD client, QEMU's migration stream and the link.
///
/// Lives on one event loop and is touched only there; not Sendable on purpose. It decides which epoch each byte belongs
/// to, answers QEMU from memory, and keeps count of what the secondary has not yet taken. It never waits.
final class AgentCore {
    struct Settings: Sendable {
        var generation: Generation
        var firstEpoch: Epoch
        var intervalNanoseconds: UInt64
        var budgetBytes: UInt64
        var useDelta: Bool
        /// What a packet shall be held at most, in the median.
        var holdTargetNanoseconds: UInt64 = 50_000_000
        /// The share of the guest's time that pauses may take.
        var pauseShareMax = 1.0
        /// Bytes in a second that are sent at most; nil for no bound.
        var bandwidth: UInt64?
        /// Sizes of the disks in bytes, in the order of hello.
        var diskSizes: [UInt64]
    }

    /// What the migration handler must send to QEMU after it has fed bytes to the stream.
    enum Owed { case nothing, ready, reply, acknowledgeAhead, acknowledge }

    let settings: Settings
    let loop: any EventLoop
    let log: Logger
    let link: any Channel
    let encoder: RamEncoder

    /// Tags every frame with its epoch and judges every answer.
    private var machine: PrimaryProtocol
    private var tallies: [Epoch: EpochTally] = [:]
    private var epochBytes: [Epoch: UInt64] = [:]
    private var sealedAt: [Epoch: Moment] = [:]
    var owed = Owed.nothing
    /// Whether the checkpoint that comes in has been acknowledged already; set by the migration handler.
    var isAcknowledgedAhead = false
    var figures = AgentFigures()
    /// Where frames leave.
    let outlet: LinkOutlet
    /// Bytes of all frames sent, and what of them the secondary has taken in.
    private var lag = LinkLag()
    /// ``sentTotal`` at the last flush.
    private var flushedTotal: UInt64 = 0
    private var willFlush = false
    /// So much does not wait for company.
    private static let flushBytes: UInt64 = 128 << 10
    private var ending: AgentEnding?

    /// What the secondary holds of each disk; empty once the initial copy is done.
    var known: [KnownBlocks]
    /// Bytes that the secondary had already, of an initial copy that is done.
    var settledSkips: UInt64 = 0
    /// Whether the secondary has told everything about its disks.
    var isCompared = false

    /// Pages of the epoch that is coming in, for each lane of the encoder.
    var chunks = (0..<RamEncoder.laneCount).map { _ in PageChunk() }
    var freeChunks: [PageChunk] = []
    var chunksInFlight = 0
    /// Full chunks that the encoder gets when the guest runs again, and their lanes.
    var heldChunks: [(chunk: PageChunk, lane: Int)] = []
    var dirtyPages = 0
    private(set) var running = false
    /// QEMU has said that the guest stands still.
    private var guestStandsStill = false
    private(set) var checkpointRunning = false
    /// QEMU was told to take a checkpoint and has not asked for it yet; so many times.
    private var wishes = 0
    /// QEMU asked for a checkpoint before the link allows one. It waits for our reply while the guest runs.
    private var replyIsHeld = false
    var pauseBegan: Moment?
    /// What the guest does besides, and whether checkpoints must wait for it; see AgentCore+Life.swift.
    var life = GuestLife()
    /// Why the guest does not run, for people; nil while it does.
    var haltWords: String?
    var guest = GuestDoors()
    /// What QEMU has said that the guest's RAM consists of.
    var layout: RamLayout?
    /// What the secondary's RAM cache holds, while it tells.
    var knownPages: KnownPages?
    /// The device state of an initial copy that was complete before the secondary had told what it holds.
    var waitingState: [UInt8]?
    /// What the encoder had counted at the end of the last epoch.
    var encoded = PageBatchEncoder.Statistics()
    /// Digests that the secondary waits for, and what was found of them while the guest stood still.
    var wantedCheck: RamVerify?
    var guestAnswer: RamDigests?
    var guestMemory: Result<GuestMemory, GuestMemory.Unavailable>?
    /// Comparing the secondary's disks.
    let checking = DiskChecking()
    /// Pages that the secondary wants to have whole, and their contents when they come from the guest itself.
    var wantedRepair: RamRepair?
    var repairPages: [UInt8]?
    /// The stream's configuration section, sent on with the layout.
    var configurationBytes: [UInt8] = []
    var policy: EpochPolicy
    /// The guest's packets; nil when its network is not held.
    var network: HeldNetwork?
    private var timer: Scheduled<Void>?
    private var heartbeat: RepeatedTask?
    private var heartbeatCounter: UInt64 = 0
    /// Silence is counted in our own beats and not by the clock, so that a host which was itself held up for a second
    /// does not take the other one for dead before it has read what came.
    private var silence = Silence()
    private var hasHeard = true
    /// Hears parts of frames, too; nil on a channel without one.
    private let pulse: LinkPulse?

    /// Asks QEMU for a checkpoint; set by the session.
    var triggerCheckpoint: () -> Void = {}
    /// Asks QEMU where it keeps the guest's memory; set by the session. The answer comes on the event loop.
    var locateGuestMemory: (@escaping (Result<GuestMemory, GuestMemory.Unavailable>) -> Void) -> Void = { _ in }
    /// Has QEMU export its disks for reading, and closes that again; set by the session. The answer comes on the event
    /// loop.
    var openDiskReaders: (@escaping (Result<[DiskReader], any Error>) -> Void) -> Void = { _ in }
    var closeDiskReaders: () -> Void = {}
    /// Called when the secondary has said that an epoch is committed.
    var onCommit: (Moment) -> Void = { _ in }
    /// Called once, when the session cannot go on.
    var onEnd: (AgentEnding) -> Void = { _ in }
    /// Called when the budget frees or fills, so that the migration socket can be read or left alone.
    var onPressureChange: () -> Void = {}
    /// Closes QEMU's migration connection; set by whoever reads it.
    var closeMigration: () -> Void = {}
    /// Called when ``owed`` was set outside of the stream's own callbacks.
    var onOwed: () -> Void = {}

    /// - Parameter machine: a session that was welcomed.
    init(settings: Settings, machine: PrimaryProtocol, link: any Channel, loop: any EventLoop, log: Logger) {
        self.settings = settings
        self.machine = machine
        self.link = link
        outlet = LinkOutlet(channel: link, rate: settings.bandwidth)
        pulse = try? link.pipeline.syncOperations.handler(type: LinkPulse.self)
        self.loop = loop
        self.log = log
        known = settings.diskSizes.map { size in
            KnownBlocks(
                diskSize: size, blockSize: DiskDigests.blockSize(ofDisks: settings.diskSizes),
                digestLimit: Self.digestsMax / settings.diskSizes.count)
        }
        encoder = RamEncoder(generation: settings.generation, useDelta: settings.useDelta)
        policy = EpochPolicy(
            interval: settings.intervalNanoseconds, holdTarget: settings.holdTargetNanoseconds,
            pauseShareMax: settings.pauseShareMax, now: MonotonicClock.now())
    }

    /// Whether the secondary has told what its RAM cache holds; no page is encoded before.
    var isRamKnown: Bool { machine.isRamKnown }

    /// The epoch whose RAM and device state are coming in.
    var streamEpoch: Epoch { machine.unsealedEpoch ?? settings.firstEpoch }

    /// Asks the protocol machine for the epoch of the next frame. A refusal is a fault of ours: the session ends rather
    /// than send what the secondary would have to refuse.
    func tag(_ event: (inout PrimaryProtocol) throws(ProtocolViolation) -> Epoch) -> Epoch? {
        guard ending == nil else { return nil }
        do {
            return try event(&machine)
        } catch {
            end(.failed("\(error)"))
            return nil
        }
    }

    var hasEnded: Bool { ending != nil }

    /// Whether the migration socket has had its one connection.
    private var hasMigration = false

    /// Claims the migration stream; true for the first connection only.
    func takeMigration() -> Bool {
        defer { hasMigration = true }
        return !hasMigration
    }

    // MARK: Link

    var sentTotal: UInt64 { lag.sent }
    var outstandingBytes: UInt64 { lag.outstanding }

    /// Nanoseconds that the secondary is behind; 0 while what is under way is little.
    var linkLag: UInt64 { outstandingBytes < Self.littleBytes ? 0 : lag.age(now: MonotonicClock.now()) }

    private static let littleBytes: UInt64 = 512 << 10
    /// Bytes that may be under way on any link.
    private static let windowMin: UInt64 = 4 << 20

    /// Whether QEMU's initial RAM copy should wait: the encoder or the secondary is behind.
    ///
    /// No more is read than the link takes in half a second. What is read early is out of date when it is sent, and
    /// QEMU takes the speed of our reading for the link's: by that it decides how much to leave for the time when the
    /// guest stands still.
    var wantsLessInput: Bool {
        let window = min(max(lag.recent, Self.windowMin), settings.budgetBytes / 4)
        return (layout != nil && !isRamKnown)
            || outstandingBytes + UInt64(chunksInFlight * PageChunk.bytes) > window
    }

    /// Whether QEMU's migration socket is to be read: in the initial copy as the link allows. When the guest stands
    /// still, and by nobody's wish, it waits for us, so everything is read that the encoder has room for.
    var takesInput: Bool {
        ending != nil
            || (running || (guestStandsStill && !life.isHalted) ? chunksInFlight < chunksMax : !wantsLessInput)
    }

    /// QEMU has stopped the guest, or lets it run. At the end of the initial copy that is known from the event alone:
    /// QEMU hands over its last pages with its main loop held, and answers nothing.
    func guestStopped(_ isStopped: Bool) {
        guestStandsStill = isStopped
        onPressureChange()
    }

    /// Sends a frame that is content of its epoch.
    func send(_ frame: ByteBuffer, header: FrameHeader) {
        tallies[header.epoch, default: EpochTally()].add(header)
        let length = UInt64(header.frameLength)
        epochBytes[header.epoch, default: 0] += length
        outlet.send(frame)
        account(length)
    }

    private func account(_ length: UInt64) {
        lag.sent(bytes: length, now: MonotonicClock.now())
        figures.outstandingBytes = outstandingBytes
        if outstandingBytes > settings.budgetBytes {
            end(
                .congested(
                    "the secondary is \(outstandingBytes >> 20) MiB behind, more than the budget of "
                        + "\(settings.budgetBytes >> 20) MiB: a faster link or disk, or a larger --budget, helps"))
        }
    }

    func sendPayload(_ payload: some LinkPayload, epoch: Epoch) {
        var buffer = link.allocator.buffer(capacity: 256)
        let header = buffer.writeFrame(payload, generation: settings.generation, epoch: epoch)
        send(buffer, header: header)
    }

    /// Whether the guest runs; at once.
    func send(_ state: GuestState) {
        guard ending == nil, (try? machine.sendGuestState()) != nil else { return }
        var buffer = link.allocator.buffer(capacity: 256)
        let header = buffer.writeFrame(state, generation: settings.generation, epoch: .none)
        outlet.sendAhead(buffer)
        account(UInt64(header.frameLength))
    }

    private func sendCommand(_ kind: FrameKind, epoch: Epoch) {
        var buffer = link.allocator.buffer(capacity: FrameHeader.length)
        buffer.writeCommand(kind, generation: settings.generation, epoch: epoch)
        outlet.send(buffer)
        account(UInt64(FrameHeader.length))
    }

    func sendIdentity(_ json: [UInt8]) {
        guard let epoch = tag({ machine throws(ProtocolViolation) in try machine.sendIdentity() }) else { return }
        sendPayload(IdentityPayload(json: json), epoch: epoch)
    }

    func sendLayout(_ layout: RamLayoutPayload) {
        guard let epoch = tag({ machine throws(ProtocolViolation) in try machine.sendRamLayout() }) else { return }
        sendPayload(layout, epoch: epoch)
    }

    func sendDigests(_ digests: RamDigests) {
        guard let epoch = tag({ machine throws(ProtocolViolation) in try machine.sendRamDigests() }) else { return }
        sendPayload(digests, epoch: epoch)
    }

    func sendFigures(_ figures: RamFigures) {
        guard let epoch = tag({ machine throws(ProtocolViolation) in try machine.sendRamFigures() }) else { return }
        sendPayload(figures, epoch: epoch)
    }

    func sendBatch(_ output: RamEncoder.Output) {
        guard let epoch = tag({ machine throws(ProtocolViolation) in try machine.sendRamBatch() }) else { return }
        precondition(epoch == output.header.epoch, "a RAM batch is sent in the epoch that it was encoded for")
        send(output.frame, header: output.header)
    }

    func flush() {
        flushedTotal = sentTotal
        outlet.flush()
    }

    /// Has what was written go to the link within a millisecond. The guest's next write does not wait for the link, and
    /// the processors are not woken for each one of them; whatever a checkpoint waits for is flushed by ``flush()``.
    func flushSoon() {
        guard sentTotal - flushedTotal < Self.flushBytes else { return flush() }
        guard !willFlush, sentTotal > flushedTotal else { return }
        willFlush = true
        let bound = NIOLoopBound(self, eventLoop: loop)
        loop.scheduleTask(in: .milliseconds(1)) {
            bound.value.willFlush = false
            bound.value.flush()
        }
    }

    /// A frame from the secondary.
    func received(_ frame: LinkFrame) {
        hasHeard = true
        guard ending == nil, let kind = SessionFrame(wireKind: frame.kind.rawValue) else { return }
        do {
            var info = FrameInfo(kind, generation: frame.header.generation, epoch: frame.epoch)
            if kind == .diskDigests {
                let digests = try frame.withPayload { bytes in try DiskDigests.decode(bytes) }
                info.value = digests.isLast ? 1 : 0
                _ = try machine.received(info)
                if let wrong = describe(digests) {
                    end(.linkLost("the secondary's digests are wrong: \(wrong)"))
                }
                return
            }
            if kind == .ramKnown {
                let known = try frame.withPayload { bytes in try RamKnown.decode(bytes) }
                info.value = known.isLast ? 1 : 0
                _ = try machine.received(info)
                take(known)
                return
            }
            try perform(try machine.received(info), frame)
        } catch {
            end(.linkLost("\(error)"))
        }
    }

    private func perform(_ action: PrimaryProtocol.Action, _ frame: LinkFrame) throws {
        switch action {
        case .committed(let epoch):
            let began = sealedAt.removeValue(forKey: epoch) ?? MonotonicClock.now()
            figures.committed = epoch
            onCommit(MonotonicClock.now())
            figures.uncommitted = sealedAt.count
            figures.lastCommitLagNanoseconds = MonotonicClock.now().nanoseconds(since: began)
            policy.committed(now: MonotonicClock.now())
            network?.committed(epoch)
            proceed()
        case .credit:
            let credit = try frame.withPayload { bytes in try Credit.decode(bytes) }
            guard lag.consumed(total: credit.consumedTotal, now: MonotonicClock.now()) else {
                return end(.linkLost("the secondary acknowledged \(credit.consumedTotal) bytes of \(sentTotal) sent"))
            }
            figures.outstandingBytes = outstandingBytes
            onPressureChange()
            proceed()
        case .verifyRam:
            verifyRam(try frame.withPayload { bytes in try RamVerify.decode(bytes) })
        case .verifyDisk:
            verifyDisk(try frame.withPayload { bytes in try DiskVerify.decode(bytes) })
        case .repairRam:
            repairRam(try frame.withPayload { bytes in try RamRepair.decode(bytes) })
        case .refused:
            let refuse = try frame.withPayload { bytes in try Refuse.decode(bytes) }
            end(.secondaryRefused(refuse.message))
        case .close:
            let bye = try frame.withPayload { bytes in try Bye.decode(bytes) }
            let words = "the secondary ended the session: \(bye.reason)"
            // An operator there may end the protection; a replica that became the guest takes it away.
            end(bye.code == ByeCode.fenced ? .fenced(words) : .detach(words))
        case .loaded, .replied, .echoed, .readWelcome, .digests, .known:
            break
        }
    }

    /// Starts heartbeats both ways: the secondary counts as lost when it was silent for some of them.
    func startHeartbeat() {
        let bound = NIOLoopBound(self, eventLoop: loop)
        let interval = TimeAmount.nanoseconds(Int64(Heartbeats.interval))
        heartbeat = loop.scheduleRepeatedTask(initialDelay: .zero, delay: interval) { _ in
            bound.value.beat()
        }
    }

    private func beat() {
        guard ending == nil else { return }
        let hasBytes = pulse?.take() ?? false
        _ = silence.beat(hasHeard: hasHeard || hasBytes)
        hasHeard = false
        if silence.isLong {
            return end(.linkLost("the secondary is silent"))
        }
        if let words = network?.overdue, !life.isHalted { return end(.congested(words)) }
        closeIdleReaders()
        heartbeatCounter += 1
        if life.isHalted, heartbeatCounter % 5 == 0 { guest.ask() }
        let now = MonotonicClock.now()
        var buffer = link.allocator.buffer(capacity: 64)
        let header = buffer.writeFrame(
            Heartbeat(counter: heartbeatCounter, sentAt: now), generation: settings.generation, epoch: .none)
        outlet.sendAhead(buffer)
        account(UInt64(header.frameLength))
    }

    /// Ends the session once; later calls change nothing. QEMU's requests are answered until it lets go.
    func end(_ reason: AgentEnding) {
        guard ending == nil else { return }
        ending = reason
        timer?.cancel()
        heartbeat?.cancel()
        checking.readers?.forEach { $0.close() }
        network?.end(reason)
        onEnd(reason)
    }

    // MARK: Checkpoints

    /// The initial copy is complete: from now on checkpoints are triggered by the policy.
    func beginRunning() {
        running = true
        life.entered()
        schedule()
    }

    /// Something that a checkpoint may have waited for has happened.
    func proceed() {
        guard ending == nil else { return }
        if replyIsHeld, machine.mayCheckpoint, !life.isHalted {
            replyIsHeld = false
            requested()
            onOwed()
        } else {
            schedule()
        }
    }

    func schedule() {
        timer?.cancel()
        timer = nil
        guard running, ending == nil, !checkpointRunning, machine.mayCheckpoint, !life.isHalted else { return }
        var situation = EpochPolicy.Situation()
        situation.uncommitted = machine.uncommittedSealed
        situation.outstandingBytes = outstandingBytes
        situation.budget = settings.budgetBytes
        situation.oldestHeld = network?.oldestOfOpenEpoch
        situation.isHoldFilling = network?.isFilling ?? false
        switch policy.next(now: MonotonicClock.now(), situation) {
        case .triggerNow:
            checkpointRunning = true
            wishes = 1
            triggerCheckpoint()
        case .wait(let until):
            let delay = until.nanoseconds(since: MonotonicClock.now())
            timer = loop.assumeIsolated().scheduleTask(in: .nanoseconds(Int64(clamping: delay))) { [self] in schedule()
            }
        case .blocked:
            // A commit, a seal or a credit comes through here again.
            break
        }
    }

    /// QEMU has taken our wish for a checkpoint. It may forget it: what comes between our last acknowledgement and the
    /// moment at which its migration thread has read that is thrown away there. So it is told again, until it asks; a
    /// wish too many costs a checkpoint that comes a little early.
    func triggerTaken() {
        let bound = NIOLoopBound(self, eventLoop: loop)
        loop.scheduleTask(in: Self.requestPatience) {
            let core = bound.value
            guard core.wishes > 0, core.ending == nil else { return }
            core.log.debug("QEMU has not asked for the checkpoint that it was told to take; it is told again")
            core.wishes += 1
            // One that has left COLO without a word will never ask.
            if core.wishes % Self.wishesMax == 0 { core.guest.checkMigration() }
            core.triggerCheckpoint()
        }
    }

    /// QEMU asks within some 2 ms of being told.
    private static let requestPatience = TimeAmount.milliseconds(100)
    private static let wishesMax = 20

    /// QEMU asks for a checkpoint. The guest runs until we reply, so the reply may wait for the link.
    func requested() {
        checkpointRunning = true
        wishes = 0
        guard machine.mayCheckpoint, !life.isHalted else {
            replyIsHeld = true
            return
        }
        guard let epoch = tag({ machine throws(ProtocolViolation) in try machine.sendRequest() }) else { return }
        sendCommand(.request, epoch: epoch)
        owed = .reply
    }

    /// The guest stands still and its disks are drained: what they write from now on belongs to the next epoch.
    func boundary() {
        isAcknowledgedAhead = false
        network?.boundary()
        // Done long ago, outside of the guest's pause, unless there was a disk and no initial copy.
        while !settle(ranges: 1024) {}
        guard let epoch = tag({ machine throws(ProtocolViolation) in try machine.sendBoundary() }) else { return }
        sendCommand(.send, epoch: epoch)
        harvestDiskCheck()
    }

    /// Everything of the epoch is in our memory. The encoder sends what is left, then the device state and the seal.
    func completeEpoch(deviceState: [UInt8]) {
        guard isRamKnown else {
            waitingState = deviceState
            return
        }
        let epoch = streamEpoch
        figures.lastDirtyPages = dirtyPages
        dirtyPages = 0
        checkpointRunning = false
        submitChunks(epoch: epoch)
        resendPages(epoch)
        sealedAt[epoch] = MonotonicClock.now()
        figures.uncommitted = sealedAt.count
        let bound = NIOLoopBound(self, eventLoop: loop)
        let loop = loop
        encoder.endEpoch(epoch) { output in
            loop.execute { bound.value.sendBatch(output) }
        } done: { statistics in
            loop.execute { bound.value.ramEnded(statistics, deviceState: deviceState) }
        }
    }

    func seal(deviceState: [UInt8]) {
        let length = UInt64(deviceState.count)
        guard let epoch = tag({ machine throws(ProtocolViolation) in try machine.sendSize(bytes: length) }) else {
            return
        }
        sendPayload(Size(deviceStateLength: length), epoch: epoch)
        deviceState.withUnsafeBytes { sendDeviceState($0) }
        guard tag({ machine throws(ProtocolViolation) in try machine.sendSeal() }) != nil else { return }
        let tally = tallies.removeValue(forKey: epoch) ?? EpochTally()
        var buffer = link.allocator.buffer(capacity: 128)
        let header = buffer.writeFrame(tally.seal, generation: settings.generation, epoch: epoch)
        outlet.send(buffer)
        outlet.flush()
        account(UInt64(header.frameLength))
        figures.lastEpochBytes = epochBytes.removeValue(forKey: epoch) ?? 0
        proceed()
    }

    private func sendDeviceState(_ state: UnsafeRawBufferPointer) {
        var offset = 0
        while offset < state.count {
            let length = min(LinkLimits.deviceChunkMax, state.count - offset)
            let at = UInt64(offset)
            let tagged = tag { machine throws(ProtocolViolation) in
                try machine.sendDeviceState(offset: at, bytes: UInt64(length))
            }
            guard let epoch = tagged else { return }
            let piece = UnsafeRawBufferPointer(rebasing: state[offset..<offset + length])
            var buffer = link.allocator.buffer(capacity: FrameHeader.length + DeviceState.prefixLength + length)
            let header = withUnsafeBytes(of: at.bigEndian) {
                buffer.writeFrame(.deviceState, generation: settings.generation, epoch: epoch, prefix: $0, data: piece)
            }
            send(buffer, header: header)
            offset += length
        }
    }

    func pauseEnded() {
        guard let began = pauseBegan else { return }
        let now = MonotonicClock.now()
        figures.lastPauseNanoseconds = now.nanoseconds(since: began)
        policy.paused(nanoseconds: figures.lastPauseNanoseconds, now: now)
        pauseBegan = nil
    }
}
