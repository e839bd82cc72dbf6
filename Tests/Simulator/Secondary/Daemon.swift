import Checkpointer
import Link
import Units

/// Stands for Node's LinkServer and GuestReplica: one daemon process with one guest's replica.
///
/// Frames are handled one after the other; what a frame takes of the disk's time delays the next one and every answer.
final class Daemon: WireEnd {
    /// One connection, from hello to its end.
    private final class Connection {
        let wire: Wire
        var decoder = FrameDecoder()
        var queue: [(header: FrameHeader, payload: [UInt8])] = []
        var consumed: UInt64 = 0
        var lastHeard: UInt64
        var hasHeard = true
        var silence = Silence()
        var isOpen = true
        var isWelcomed = false
        var hello: Hello?
        var firstEpoch = Epoch.none

        init(_ wire: Wire, now: UInt64) {
            self.wire = wire
            lastHeard = now
        }
    }

    let host: Int
    private unowned let world: Simulation
    let storage: Storage
    private(set) var store: StoreModel?
    /// Why the store could not even be opened.
    private(set) var openError: String?
    private var connections: [Connection] = []
    private var live: Connection?
    private var machine = SecondaryProtocol()
    private var tallies: [Epoch: EpochTally] = [:]
    /// An epoch whose disks are sealed and whose record is still to be written; disk frames of the next one may be
    /// drained meanwhile.
    private var pending: Epoch?
    private var isBusy = false
    private var isDraining = false
    private var isDead = false
    private var beats: UInt64 = 0
    private var survey: [DiskDigests] = []
    private var known: [RamKnown] = []
    /// For a planted bug: an epoch whose answer waits for the next one.
    private var heldBack: Epoch?

    var hasLiveSession: Bool { live != nil }
    var session: Identifier? { live?.hello?.session }
    /// Whether an epoch is sealed and its commit is under way.
    var uncommitted: UInt64 { machine.uncommittedSealed }
    /// Bytes of incomplete frames that are held.
    var pendingBytes: Int { connections.reduce(0) { $0 + $1.decoder.pendingCount } }

    /// Starts the process: the store is opened and recovered.
    init(host: Int, storage: Storage, world: Simulation) throws {
        self.host = host
        self.storage = storage
        self.world = world
        do {
            store = try StoreModel(storage)
        } catch let halt as Halt {
            throw halt
        } catch {
            openError = "\(error)"
        }
        beat()
    }

    /// The process is gone; the kernel closes its connections, unless the host is gone too.
    func die(kernelCloses: Bool) {
        isDead = true
        for connection in connections where connection.isOpen {
            if kernelCloses { connection.wire.close(from: .secondary) }
            connection.isOpen = false
        }
        connections = []
        live = nil
    }

    // MARK: Connections

    func accept(_ wire: Wire) {
        guard !isDead else { return wire.close(from: .secondary) }
        wire.attach(self, at: .secondary)
        connections.append(Connection(wire, now: world.now))
    }

    func wire(_ wire: Wire, delivered bytes: [UInt8]) {
        guard !isDead, let connection = connections.first(where: { $0.wire === wire }), connection.isOpen else {
            return
        }
        connection.lastHeard = world.now
        connection.hasHeard = true
        do {
            try bytes.withUnsafeBytes { raw in
                try connection.decoder.feed(raw) { (header, payload) throws(LinkError) in
                    connection.queue.append((header, Array(payload)))
                }
            }
        } catch {
            return drop(connection, "\(error)")
        }
        pump(connection)
    }

    func wireClosed(_ wire: Wire) {
        guard let connection = connections.first(where: { $0.wire === wire }) else { return }
        drop(connection, "the link is gone")
    }

    private func drop(_ connection: Connection, _ reason: String) {
        guard connection.isOpen else { return }
        connection.isOpen = false
        connection.wire.close(from: .secondary)
        connections.removeAll { $0 === connection }
        guard live === connection else { return }
        world.note("secondary \(host): session over: \(reason)")
        live = nil
        machine.disconnected()
        tallies = [:]
        heldBack = nil
        pending = nil
        work {
            do { try store?.endSession() } catch let halt as Halt { throw halt } catch {
                world.note("secondary \(host): rollback failed: \(error)")
            }
        }
        if !isDead, world.chance(1, in: 2) { world.probe(host, powerLoss: world.chance(1, in: 2)) }
    }

    /// Runs something that uses the disk; ends the process when the world says so.
    private func work(_ body: () throws -> Void) {
        guard !isDead else { return }
        do {
            try body()
        } catch let halt as Halt {
            world.halted(host, halt)
        } catch {
            world.fail("an error that nobody handles: \(error)")
        }
    }

    // MARK: Frames

    private func pump(_ connection: Connection) {
        guard !isBusy, !isDead, connection.isOpen, !connection.queue.isEmpty else { return }
        let (header, payload) = connection.queue.removeFirst()
        run(connection) { try handle(header, payload, connection, &$0) }
    }

    /// One piece of work for a connection: its answers leave when it is done, a failure ends the session.
    private func run(_ connection: Connection, _ body: (inout [[UInt8]]) throws -> Void) {
        isBusy = true
        storage.elapsed = 0
        var failure: String?
        var answers: [[UInt8]] = []
        work {
            do {
                try body(&answers)
            } catch let halt as Halt {
                throw halt
            } catch {
                if let violation = error as? ProtocolViolation, violation.culprit == .ourselves {
                    world.fail("the secondary was about to break the protocol: \(violation)")
                }
                failure = "\(error)"
            }
        }
        guard !isDead else { return }
        let took = storage.elapsed
        for answer in answers { connection.wire.send(from: .secondary, answer, after: took) }
        world.judgeBounds(self)
        if let failure { drop(connection, failure) }
        let next = { [weak self] in
            guard let self, !isDead else { return }
            isBusy = false
            for each in connections { pump(each) }
        }
        // A frame that took no time is followed at once.
        if took == 0 { next() } else { world.after(took, next) }
    }

    private func handle(
        _ header: FrameHeader, _ payload: [UInt8], _ connection: Connection, _ answers: inout [[UInt8]]
    ) throws {
        guard connection.isWelcomed else { return try greet(header, payload, connection, &answers) }
        guard live === connection else { return }
        guard let kind = SessionFrame(wireKind: header.kind.rawValue) else { return }
        var info = FrameInfo(kind, generation: header.generation, epoch: header.epoch)
        if kind == .command(.size) {
            info.value = try payload.withUnsafeBytes { try Size.decode($0).deviceStateLength }
        } else if kind == .deviceState {
            try payload.withUnsafeBytes {
                let piece = try DeviceState.decode($0)
                info.value = piece.offset
                info.length = UInt64(piece.bytes.count)
            }
        }
        if !kind.isDisk, kind != .heartbeat { try commitPending(connection, &answers) }
        let action = try machine.received(info)
        if header.kind.isEpochContent { tallies[header.epoch, default: EpochTally()].add(header) }
        try payload.withUnsafeBytes { try perform(action, header, $0, connection, &answers) }
        connection.consumed += UInt64(header.frameLength)
        if connection.isOpen { answers.append(frame(Credit(consumedTotal: connection.consumed))) }
    }

    private func frame(_ payload: some LinkPayload, _ generation: Generation? = nil) -> [UInt8] {
        var writer = ByteWriter()
        Frame.append(payload, generation: generation ?? store?.generation ?? .first, epoch: .none, to: &writer)
        return writer.bytes
    }

    private func say(_ kind: FrameKind, _ epoch: Epoch) -> [UInt8] {
        var writer = ByteWriter()
        Frame.append(kind: kind, generation: store?.generation ?? .first, epoch: epoch, to: &writer)
        return writer.bytes
    }

    private func greet(
        _ header: FrameHeader, _ payload: [UInt8], _ connection: Connection, _ answers: inout [[UInt8]]
    ) throws {
        guard header.kind == .hello else { throw StoreModel.Failed("the first frame is hello") }
        let hello = try payload.withUnsafeBytes { try Hello.decode($0) }
        do {
            let welcome = try open(hello, connection)
            answers.append(frame(welcome, welcome.generation))
            guard let store else { return }
            if storage.mutation != .staleDigests || survey.isEmpty {
                survey = try SurveyModel.digests(store, storage)
            }
            for digests in survey {
                try machine.sendDigests(isLast: digests.isLast)
                answers.append(frame(digests, welcome.generation))
            }
        } catch let refuse as Refuse {
            world.note("secondary \(host) refuses \(hello.label): \(refuse.code)")
            answers.append(frame(refuse, Generation(0)))
            throw refuse
        }
    }

    private func open(_ hello: Hello, _ connection: Connection) throws -> Welcome {
        guard let store else { throw Refuse(code: .internal, message: openError ?? "no store") }
        if store.isPromoted, storage.mutation != .acceptOldGeneration {
            throw Refuse(code: .failedOver, message: "failed over")
        }
        guard live == nil else { throw Refuse(code: .alreadyProtected, message: "protected by another primary") }
        guard hello.generation == Generation(0) || hello.generation == store.generation else {
            throw Refuse(code: .generation, message: "generation \(hello.generation) was fenced off")
        }
        do {
            let first = try store.beginSession(hello)
            machine = SecondaryProtocol()
            _ = try machine.received(FrameInfo(.hello))
            try machine.welcome(generation: store.generation, firstEpoch: first)
            live = connection
            pending = nil
            connection.isWelcomed = true
            connection.hello = hello
            connection.firstEpoch = first
            tallies = [:]
            world.welcomed(self, hello, first)
            return Welcome(
                generation: store.generation, firstEpoch: first, lastCommitted: store.committed, creditWindow: 0,
                serverVersion: "sim")
        } catch let refuse as Refuse {
            throw refuse
        } catch let halt as Halt {
            throw halt
        } catch {
            do { try store.endSession() } catch let halt as Halt { throw halt } catch {}
            throw Refuse(code: .internal, message: "\(error)")
        }
    }

    private func perform(
        _ action: SecondaryProtocol.Action, _ header: FrameHeader, _ payload: UnsafeRawBufferPointer,
        _ connection: Connection, _ answers: inout [[UInt8]]
    ) throws {
        guard let store else { return }
        switch action {
        case .bufferDisk(let epoch):
            let target = storage.mutation == .boundaryOffByOne ? oldestOpen(epoch) : epoch
            if header.kind == .diskWrite {
                try store.write(epoch: target, try DiskWrite.decode(payload))
            } else {
                try store.zero(epoch: target, try DiskExtent.decode(payload, kind: header.kind))
            }
            if world.chance(1, in: 4) { drainLater() }
        case .stageRam(let epoch): try store.stage(epoch: epoch, payload)
        case .keepIdentity: store.keepIdentity(try IdentityPayload.decode(payload).json)
        case .layOutRam:
            try store.layOutRam(try RamLayoutPayload.decode(payload))
            if let (files, first) = store.continued { world.continues(self, files, from: first) }
            if storage.mutation != .staleKnown || known.count < 2 { known = SurveyModel.known(store) }
            for piece in known {
                try machine.sendKnown(isLast: piece.isLast)
                answers.append(frame(piece))
            }
        case .boundary(_, let opened): try store.boundary(opened: opened)
        case .expectDeviceState: store.expectDeviceState()
        case .appendDeviceState: store.appendDeviceState(try DeviceState.decode(payload).bytes)
        case .commit(let epoch): try seal(epoch, try Seal.decode(payload), connection, &answers)
        case .say(.reply, let epoch):
            try machine.replied(epoch)
            answers.append(say(.reply, epoch))
        case .say, .echo, .decide, .keepRamDigests, .keepRamFigures, .keepDiskCheck, .keepPrimaryFigures,
            .keepGuestState:
            break
        case .close: drop(connection, "the primary left")
        }
    }

    /// For a planted bug: disk frames that belong to the open epoch go to the closed one, while that is not sealed.
    private func oldestOpen(_ epoch: Epoch) -> Epoch {
        let before = Epoch(epoch.rawValue - 1)
        return tallies[before] != nil ? before : epoch
    }

    /// The disks' own threads: they go on whatever else the daemon does, and need nobody who waits for them.
    private func drainLater() {
        guard let store, !isDraining, store.drainLater() else { return }
        isDraining = true
        drainOn(store)
    }

    private func drainOn(_ store: StoreModel) {
        world.after(world.random(0...4_000_000)) { [weak self] in
            guard let self, !isDead else { return }
            guard self.store === store else { return isDraining = false }
            let elapsed = storage.elapsed
            var isMore = false
            work { for index in 0..<store.diskCount { isMore = try store.drainStep(index) || isMore } }
            storage.elapsed = elapsed
            guard !isDead else { return }
            if isMore { drainOn(store) } else { isDraining = false }
        }
    }

    // MARK: Commit

    private func seal(
        _ epoch: Epoch, _ seal: Seal, _ connection: Connection, _ answers: inout [[UInt8]]
    ) throws {
        let tally = tallies.removeValue(forKey: epoch) ?? EpochTally()
        if storage.mutation != .dropTally { try tally.verify(seal) }
        guard world.options.commitsLate, epoch > connection.firstEpoch else {
            return try commit(epoch, connection, &answers)
        }
        try store?.sealDisks(epoch)
        pending = epoch
        world.after(world.random(0...30_000_000)) { [weak self, weak connection] in
            guard let self, let connection, pending == epoch, live === connection else { return }
            later(connection)
        }
    }

    /// The rest of a commit, when no frame asks for it.
    private func later(_ connection: Connection) {
        guard !isBusy else { return world.after(1_000_000) { [weak self] in self?.later(connection) } }
        guard pending != nil, live === connection, !isDead else { return }
        run(connection) { try commitPending(connection, &$0) }
    }

    private func commitPending(_ connection: Connection, _ answers: inout [[UInt8]]) throws {
        guard let epoch = pending else { return }
        pending = nil
        try commit(epoch, connection, &answers)
    }

    private func commit(_ epoch: Epoch, _ connection: Connection, _ answers: inout [[UInt8]]) throws {
        guard let store else { return }
        try store.commit(epoch) { [self] in world.acknowledged(self, epoch) }
        if storage.mutation == .commitOutOfOrder, store.committed > connection.firstEpoch {
            guard let other = heldBack else {
                heldBack = epoch
                try store.apply(epoch)
                return
            }
            heldBack = nil
            _ = try machine.committed(epoch)
            answers.append(say(.received, epoch))
            _ = try machine.committed(other)
        }
        if case .say(.received, _) = try machine.committed(epoch) {
            world.acknowledged(self, epoch)
            answers.append(say(.received, epoch))
            try store.apply(epoch)
            _ = try machine.applied(epoch)
            answers.append(say(.loaded, epoch))
        } else {
            try store.apply(epoch)
            world.acknowledged(self, epoch)
            answers.append(say(.ready, epoch))
        }
        world.committed(self)
        try store.tidy()
    }

    // MARK: Silence

    private func beat() {
        guard !isDead else { return }
        beats += 1
        if let live {
            _ = live.silence.beat(hasHeard: live.hasHeard || isBusy)
            live.hasHeard = false
            if live.silence.isLong {
                drop(live, "the primary is silent")
            } else {
                live.wire.send(
                    from: .secondary, frame(Heartbeat(counter: beats, sentAt: world.monotonic(host))))
            }
        }
        for connection in connections where !connection.isWelcomed && world.now > connection.lastHeard + 10_000_000_000
        {
            drop(connection, "no hello")
        }
        world.after(Heartbeats.interval) { [weak self] in self?.beat() }
    }

    // MARK: Operators

    /// Starts the guest from the last commit; returns it, or says why not.
    func failover(force: Bool) throws -> Machine {
        guard let store, store.damage == nil, store.record != nil else {
            throw StoreModel.Failed(self.store?.damage ?? openError ?? "nothing has been committed")
        }
        if let live, !live.silence.isLong, !force {
            throw StoreModel.Failed("the primary still answers")
        }
        let wasPromoted = store.isPromoted
        if let live {
            live.wire.send(
                from: .secondary, frame(Bye(code: 3, reason: "failed over")))
            live.isOpen = false
            live.wire.close(from: .secondary)
            connections.removeAll { $0 === live }
            self.live = nil
            pending = nil
            machine.disconnected()
        }
        if storage.mutation == .startBeforePromotion {
            let machine = try start(store)
            world.guestStarted(host)
            try store.promote()
            return machine
        }
        if !wasPromoted { try store.promote() }
        let machine = try start(store)
        world.guestStarted(host)
        return machine
    }

    private func start(_ store: StoreModel) throws -> Machine {
        try store.makeActiveDisks()
        return try store.machine(storage, top: "active.qcow2")
    }

    /// The operator removes the replica; refused while it is in use.
    func remove() throws {
        guard live == nil else { throw StoreModel.Failed("a primary is connected") }
        store = nil
        for path in storage.image.names.keys.sorted() { try storage.remove(path) }
        storage.shared = SharedMemory()
        store = try StoreModel(storage)
        openError = nil
    }
}
