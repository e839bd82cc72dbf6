import BlockReplica
import Checkpointer
import Link
import RamCache
import TestSupport
import Units

/// Stands for Node's AgentCore and AgentSession: tags what the guest does with epochs, and never waits for the secondary.
final class AgentModel: GuestSink, WireEnd {
    enum Stage: Equatable { case greeting, copying, running, over(String) }

    let guest: ModelGuest
    let host: Int
    let session: Identifier
    private unowned let world: Simulation
    let wire: Wire
    private var machine = PrimaryProtocol()
    private var decoder = FrameDecoder()
    private(set) var stage = Stage.greeting
    private var tallies: [Epoch: EpochTally] = [:]
    private var policy: EpochPolicy?
    private let encoder: PageBatchEncoder
    private let shadow: Memory
    private let layout: RamLayout
    private var sent: UInt64 = 0
    private var consumed: UInt64 = 0
    private var budget: UInt64
    private var checkpointRunning = false
    /// Which of the timers counts.
    private var timer: UInt64 = 0
    private var silence = Silence()
    private var hasHeard = true
    private var beats: UInt64 = 0
    /// What the secondary holds; empty once every write travels.
    var known: [KnownBlocks] = []
    /// Digests of the secondary's pages, nil for one that has come; empty when its cache is new.
    private var knownPages: [BlockDigest?] = []
    private var isTold = false
    private var copiedDisk = 0
    private var copiedOffset = 0
    private var copiedPage = 0
    private var firstEpoch = Epoch.none
    /// Pages of the closed epoch that are still to be sent, and what the machine was at its end.
    private var leaving: [(page: Int, bytes: [UInt8])] = []
    private var closed: Machine?
    private(set) var committed = Epoch.none
    private(set) var generation = Generation(0)

    var uncommitted: UInt64 { machine.uncommittedSealed }
    var outstanding: UInt64 { sent - consumed }
    var isOver: Bool { if case .over = stage { true } else { false } }

    init(guest: ModelGuest, host: Int, session: Identifier, wire: Wire, world: Simulation, budget: UInt64) {
        self.guest = guest
        self.host = host
        self.session = session
        self.wire = wire
        self.world = world
        self.budget = budget
        encoder = PageBatchEncoder(useDelta: world.options.useDelta)
        shadow = Memory(count: guest.shape.ramBytes)
        do {
            layout = try RamLayout(
                blocks: guest.shape.layoutPayload.blocks.map { RamLayout.Block(name: $0.name, length: $0.length) })
        } catch { preconditionFailure("\(error)") }
        wire.attach(self, at: .primary)
        do { try machine.connected() } catch { world.fail("agent: \(error)") }
        var writer = ByteWriter()
        let hello = Hello(
            guest: StoreModel.guest, session: session, durability: world.options.durability, label: guest.name,
            disks: guest.shape.hello, generation: Generation(0), agentVersion: "sim")
        Frame.append(hello, generation: Generation(0), epoch: .none, to: &writer)
        wire.send(from: .primary, writer.bytes)
        beat()
    }

    // MARK: The end

    func end(_ reason: String) {
        guard !isOver else { return }
        world.note("agent of \(guest.name): \(reason)")
        stage = .over(reason)
        machine.closed()
        if guest.sink === self { guest.sink = nil }
        wire.close(from: .primary)
    }

    /// Leaves in order.
    func detach() {
        guard machine.isRunning else { return end("detached") }
        var writer = ByteWriter()
        Frame.append(Bye(code: 0, reason: "detach"), generation: generation, epoch: .none, to: &writer)
        wire.send(from: .primary, writer.bytes)
        end("detached")
    }

    func wireClosed(_ wire: Wire) { end("the link is gone") }

    // MARK: Sending

    func tag(_ event: (inout PrimaryProtocol) throws(ProtocolViolation) -> Epoch) -> Epoch? {
        guard !isOver else { return nil }
        do {
            return try event(&machine)
        } catch {
            world.fail("the agent was about to break the protocol: \(error)")
            end("\(error)")
            return nil
        }
    }

    func send(_ kind: FrameKind, _ payload: [UInt8], _ epoch: Epoch) {
        var writer = ByteWriter()
        let header = Frame.append(kind: kind, payload: payload, generation: generation, epoch: epoch, to: &writer)
        tallies[epoch, default: EpochTally()].add(header)
        sent += UInt64(header.frameLength)
        if kind.isEpochContent, kind != .size, kind != .deviceState, world.takeFault(.lostFrame) { return }
        wire.send(from: .primary, writer.bytes)
        if outstanding > budget { end("congested: \(outstanding) of \(budget) bytes") }
    }

    func send(_ payload: some LinkPayload, _ epoch: Epoch) {
        var body = ByteWriter()
        payload.encode(into: &body)
        send(payload.kind, body.bytes, epoch)
    }

    func shrinkBudget(to bytes: UInt64) { budget = bytes }

    // MARK: The initial copy

    private func begin(_ welcome: Welcome) throws {
        generation = welcome.generation
        firstEpoch = welcome.firstEpoch
        try machine.welcomed(generation: welcome.generation, firstEpoch: welcome.firstEpoch)
        stage = .copying
        policy = EpochPolicy(interval: world.options.interval, now: world.monotonic(host))
        let sizes = guest.shape.diskSizes.map(UInt64.init)
        known = sizes.map {
            KnownBlocks(diskSize: $0, blockSize: DiskDigests.blockSize(ofDisks: sizes), digestLimit: 1 << 10)
        }
        if let epoch = tag({ machine throws(ProtocolViolation) in try machine.sendIdentity() }) {
            send(IdentityPayload(json: Array("{}".utf8)), epoch)
        }
        if let epoch = tag({ machine throws(ProtocolViolation) in try machine.sendRamLayout() }) {
            send(guest.shape.layoutPayload, epoch)
        }
    }

    /// The mirrors begin: from here on every write of the guest comes by, and all of its RAM is copied.
    func mirror() {
        guard stage == .copying else { return }
        guest.sink = self
        _ = guest.takeDirty()
        copyMore()
    }

    /// A piece of the initial copy; the guest runs between two of them.
    private func copyMore() {
        guard stage == .copying else { return }
        if outstanding < budget / 2 {
            for _ in 0..<2 where copiedDisk < guest.disks.count { copyDisk() }
            for _ in 0..<8 where isTold && copiedPage < layout.pageCount {
                encode(copiedPage, guest.page(copiedPage))
                guest.clean(copiedPage)
                copiedPage += 1
            }
            flushBatch()
        }
        guard !isOver else { return }
        if copiedDisk == guest.disks.count, copiedPage == layout.pageCount {
            settleHeld()
            boundary()
        } else {
            world.after(world.random(200_000...2_000_000)) { [weak self] in self?.copyMore() }
        }
    }

    private func copyDisk() {
        let bytes = guest.disks[copiedDisk]
        let end = min(copiedOffset + (64 << 10), bytes.count)
        if bytes[copiedOffset..<end].allSatisfy({ $0 == 0 }) {
            diskZeroes(disk: copiedDisk, offset: copiedOffset, count: end - copiedOffset, isDiscard: false)
        } else {
            diskWrite(disk: copiedDisk, offset: copiedOffset, bytes: bytes[copiedOffset..<end])
        }
        copiedOffset = end
        if end == bytes.count {
            copiedDisk += 1
            copiedOffset = 0
        }
    }

    // MARK: Pages

    private static let zeroes = BlockDigest(high: 0, low: 0)

    private func take(_ told: RamKnown) {
        for run in told.runs {
            switch run {
            case .zeroes(let count): knownPages += Array(repeating: Self.zeroes, count: count)
            case .data(let digests): knownPages += digests
            }
        }
        isTold = told.isLast
        guard isTold, !knownPages.isEmpty, knownPages.count != layout.pageCount else { return }
        world.fail("the secondary told of \(knownPages.count) of \(layout.pageCount) pages")
    }

    /// A page that comes for the first time; false when it has come before.
    private func encodeFirst(_ page: Int, _ bytes: [UInt8]) -> Bool {
        guard knownPages.indices.contains(page), let digest = knownPages[page] else { return false }
        knownPages[page] = nil
        let place = layout.location(ofGlobalPage: page)
        let isZero = bytes.allSatisfy { $0 == 0 }
        let isSame = digest == (isZero ? Self.zeroes : BlockDigest(modelOf: bytes))
        if world.options.useDelta, !(isSame && world.options.mutation == .staleShadow) {
            (shadow.base + page * Sizes.page).copyMemory(from: bytes, byteCount: Sizes.page)
        }
        if isSame {
            encoder.skipKnown()
        } else if isZero {
            encoder.addZero(block: UInt16(place.block), page: place.page, shadow: nil)
        } else {
            bytes.withUnsafeBytes {
                if let base = $0.baseAddress {
                    encoder.addWhole(block: UInt16(place.block), page: place.page, data: base)
                }
            }
        }
        if encoder.isFull { flushBatch() }
        return true
    }

    private func encode(_ page: Int, _ bytes: [UInt8]) {
        guard !encodeFirst(page, bytes) else { return }
        let place = layout.location(ofGlobalPage: page)
        let memory = world.options.useDelta ? shadow.base + page * Sizes.page : nil
        bytes.withUnsafeBytes {
            _ = encoder.add(block: UInt16(place.block), page: place.page, data: $0, shadow: memory)
        }
        if encoder.isFull { flushBatch() }
    }

    private func flushBatch() {
        var batch: [UInt8] = []
        guard encoder.finish(into: &batch) else { return }
        guard let epoch = tag({ machine throws(ProtocolViolation) in try machine.sendRamBatch() }) else { return }
        send(.ramBatch, batch, epoch)
    }

    // MARK: Checkpoints

    private func consider() {
        guard stage == .running, !checkpointRunning, machine.mayCheckpoint, guest.isRunning, var policy else { return }
        var situation = EpochPolicy.Situation()
        situation.uncommitted = machine.uncommittedSealed
        situation.outstandingBytes = outstanding
        situation.budget = budget
        let decision = policy.next(now: world.monotonic(host), situation)
        self.policy = policy
        switch decision {
        case .triggerNow:
            checkpointRunning = true
            guard let epoch = tag({ machine throws(ProtocolViolation) in try machine.sendRequest() }) else { return }
            send(.request, [], epoch)
            world.after(world.random(100_000...1_500_000)) { [weak self] in self?.boundary() }
        case .wait(let until):
            let delay = max(until.nanoseconds(since: world.monotonic(host)), 1000)
            timer += 1
            let mine = timer
            world.after(delay) { [weak self] in if self?.timer == mine { self?.consider() } }
        case .blocked:
            break
        }
    }

    /// The guest stands still: what it is now is the checkpoint.
    private func boundary() {
        guard stage == .running || stage == .copying, guest.isRunning else { return }
        guard let epoch = tag({ machine throws(ProtocolViolation) in try machine.sendBoundary() }) else { return }
        send(.send, [], epoch)
        closed = guest.machine
        leaving = guest.takeDirty().map { ($0, guest.page($0)) }
        if stage == .copying { stage = .running }
        checkpointRunning = true
        sendMore()
    }

    /// The closed epoch leaves while the guest runs.
    private func sendMore() {
        guard stage == .running else { return }
        for _ in 0..<min(10, leaving.count) {
            let (page, bytes) = leaving.removeFirst()
            encode(page, bytes)
        }
        guard leaving.isEmpty else {
            world.after(world.random(50_000...1_000_000)) { [weak self] in self?.sendMore() }
            return
        }
        flushBatch()
        seal()
    }

    private func seal() {
        guard let closed else { return }
        let state = closed.device
        guard
            let epoch = tag({ machine throws(ProtocolViolation) in try machine.sendSize(bytes: UInt64(state.count)) })
        else { return }
        send(Size(deviceStateLength: UInt64(state.count)), epoch)
        var offset = 0
        while offset < state.count {
            let length = min(700, state.count - offset)
            let at = UInt64(offset)
            _ = tag { machine throws(ProtocolViolation) in
                try machine.sendDeviceState(offset: at, bytes: UInt64(length))
            }
            var writer = ByteWriter()
            writer.write(at)
            writer.write(bytes: state[offset..<offset + length])
            send(.deviceState, writer.bytes, epoch)
            offset += length
        }
        guard tag({ machine throws(ProtocolViolation) in try machine.sendSeal() }) != nil else { return }
        world.sealed(self, epoch, closed)
        let tally = tallies.removeValue(forKey: epoch) ?? EpochTally()
        var writer = ByteWriter()
        let header = Frame.append(tally.seal, generation: generation, epoch: epoch, to: &writer)
        sent += UInt64(header.frameLength)
        wire.send(from: .primary, writer.bytes)
        self.closed = nil
        checkpointRunning = false
        consider()
    }

    // MARK: Receiving

    func wire(_ wire: Wire, delivered bytes: [UInt8]) {
        guard !isOver else { return }
        hasHeard = true
        var frames: [(FrameHeader, [UInt8])] = []
        do {
            try bytes.withUnsafeBytes { raw in
                try decoder.feed(raw) { (header, payload) throws(LinkError) in frames.append((header, Array(payload))) }
            }
            for (header, payload) in frames where !isOver { try received(header, payload) }
        } catch {
            end("\(error)")
        }
    }

    private func received(_ header: FrameHeader, _ payload: [UInt8]) throws {
        guard let kind = SessionFrame(wireKind: header.kind.rawValue) else { return }
        var info = FrameInfo(kind, generation: header.generation, epoch: header.epoch)
        var digests: DiskDigests?
        if kind == .diskDigests {
            digests = try payload.withUnsafeBytes { try DiskDigests.decode($0) }
            info.value = digests?.isLast == true ? 1 : 0
        }
        var told: RamKnown?
        if kind == .ramKnown {
            told = try payload.withUnsafeBytes { try RamKnown.decode($0) }
            info.value = told?.isLast == true ? 1 : 0
        }
        switch try machine.received(info) {
        case .known: if let told { take(told) }
        case .readWelcome: try begin(payload.withUnsafeBytes { try Welcome.decode($0) })
        case .refused: end("\(try payload.withUnsafeBytes { try Refuse.decode($0) })")
        case .committed(let epoch):
            committed = epoch
            world.released(self, epoch)
            consider()
        case .credit:
            let credit = try payload.withUnsafeBytes { try Credit.decode($0) }
            guard credit.consumedTotal <= sent, credit.consumedTotal >= consumed else {
                world.fail("credit for \(credit.consumedTotal) bytes of \(sent), after \(consumed)")
                return
            }
            consumed = credit.consumedTotal
            consider()
        case .close: end("the secondary left")
        case .digests:
            if let digests, let wrong = describe(digests) { end("the secondary's digests are wrong: \(wrong)") }
        case .loaded, .replied, .echoed, .verifyRam, .verifyDisk, .repairRam: break
        }
    }

    private func beat() {
        guard !isOver else { return }
        if machine.isRunning {
            _ = silence.beat(hasHeard: hasHeard)
            hasHeard = false
            if silence.isLong { return end("the secondary is silent") }
            beats += 1
            var writer = ByteWriter()
            let header = Frame.append(
                Heartbeat(counter: beats, sentAt: world.monotonic(host)), generation: generation, epoch: .none,
                to: &writer)
            sent += UInt64(header.frameLength)
            wire.send(from: .primary, writer.bytes)
            // What was blocked may be possible again.
            consider()
        } else {
            _ = silence.beat(hasHeard: false)
            if silence.beats > 30 { return end("no answer to hello") }
        }
        world.after(Heartbeats.interval) { [weak self] in self?.beat() }
    }
}
