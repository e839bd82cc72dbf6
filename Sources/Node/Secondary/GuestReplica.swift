import Checkpointer
import Dispatch
import Glibc
import Link
import Logging
import NIOCore
import QEMU
import Units

/// One guest on the secondary: takes in what a primary sends, commits it, and can become the guest.
///
/// An actor with a thread of its own, on which its storage blocks. Frames are handled one after the other, in the order
/// of the link; while one is handled the link is not read, which is the pressure that reaches the primary.
actor GuestReplica {
    nonisolated let name: String
    private nonisolated let executor: StorageExecutor
    nonisolated var unownedExecutor: UnownedSerialExecutor { executor.asUnownedSerialExecutor() }

    let store: GuestStore
    let settings: SecondaryOptions
    private let starter: any EventLoop
    let log: Logger

    private(set) var session: LinkSession?
    private var machine = SecondaryProtocol()
    /// Views of checkpoints that are served over NBD, by number.
    var exports: [Int: OpenExport] = [:]
    var exportCount = 0
    /// What the primary is still to be told of what the disks hold.
    private var survey: DiskSurvey?
    /// And of what the RAM cache holds, once there is a layout.
    private var ramSurvey: RamSurvey?
    private var tallies: [Epoch: EpochTally] = [:]
    private var proof = GuestStatus.Proof(verdict: .notYet)
    private var provenSession: Identifier?
    private(set) var currentSessionID: Identifier?
    /// What came of the RAM, and a comparison that is under way.
    private(set) var history = RamHistory()
    var isVerifying = false
    var check: RamCheck?
    var checks: UInt64 = 0
    /// A comparison of disks and RAM that is under way.
    var verification: Verification?
    /// Tells what happens, and the state that was told last.
    let events: EventLog
    var notedState: GuestStatus.State?
    /// Whether it was told last that checkpoints lag.
    var notedLate = false
    /// What the primary said last of itself, and the guest's pauses since the daemon started.
    var primary: PrimaryFigures?
    var pauses = LatencyHistogram()
    private var commits: UInt64 = 0
    private var lastCommitAt: Moment?
    private var lastCommitMilliseconds: Double?
    private var guest: RunningGuest?
    private var isFailingOver = false
    /// Why the last failover did not end with a running guest; nil when it did, or when there was none.
    private var failoverFailure: String?
    private var lastEnd: String?
    /// Whether the primary is lost, and what is done then; see GuestReplica+Loss.swift.
    var watch: PrimaryWatch
    /// Why it is lost, for people; nil when it is not.
    var lossWords: String?
    /// What the primary said of the end of the session; nil before that.
    var parting: PrimaryWatch.Ending?
    /// Why the guest does not run, as the primary said last; nil while it runs. Kept when the primary is gone.
    var haltWords: String?
    /// How the guest, or its QEMU, was ended in order; nil when it was not.
    var shutOffWords: String?
    /// Who the primary said it is, last.
    var primaryLabel = ""
    /// `--on-loss` is running.
    var isTelling = false

    init(
        name: String, store: sending GuestStore, settings: SecondaryOptions, starter: any EventLoop, events: EventLog,
        log: Logger
    ) {
        self.events = events
        self.name = name
        self.store = store
        self.settings = settings
        self.starter = starter
        self.log = log
        watch = PrimaryWatch(policy: .init(tells: settings.onLoss != nil, promotes: settings.autoFailover))
        executor = StorageExecutor(label: "colo-blk.replica.\(name)")
    }

    // MARK: Sessions

    /// Decides about a primary that said hello. Returns what to answer.
    func open(_ hello: Hello, session newSession: LinkSession) async throws -> Welcome {
        await waitForTheDead()
        if store.isPromoted {
            throw Refuse(
                code: .failedOver,
                message:
                    "'\(name)' failed over in generation \(store.generation) and runs, or ran, on the secondary: the "
                    + "old primary must not go on. To protect another guest use another name, or remove the replica")
        }
        if isFailingOver || session != nil {
            throw Refuse(
                code: .alreadyProtected,
                message: "'\(name)' is being protected by another primary (\(session?.label ?? "failover")); "
                    + "detach that one first, or use another --guest name")
        }
        guard watch.mayConnect else {
            throw Refuse(code: .busy, message: "the primary of '\(name)' counts as lost and is being fenced")
        }
        guard hello.generation == Generation(0) || hello.generation == store.generation else {
            throw Refuse(
                code: .generation,
                message: "generation \(hello.generation) was fenced off; '\(name)' is in generation \(store.generation)"
            )
        }
        do {
            let first = try store.beginSession(hello)
            machine = SecondaryProtocol()
            _ = try machine.received(FrameInfo(.hello))
            try machine.welcome(generation: store.generation, firstEpoch: first)
            survey = DiskSurvey(disks: store.diskFiles)
            session = newSession
            currentSessionID = hello.session
            failoverFailure = nil
            tallies = [:]
            lastEnd = nil
            primary = nil
            primaryLabel = newSession.label
            lossWords = nil
            haltWords = nil
            shutOffWords = nil
            parting = nil
            watch.connected()
            tell(.session, "a primary has connected: \(newSession.label)")
            noteState()
            return Welcome(
                generation: store.generation, firstEpoch: first, lastCommitted: store.committed,
                creditWindow: 0, serverVersion: ColoBlkVersion.text)
        } catch let refuse as Refuse {
            throw refuse
        } catch {
            try? store.endSession()
            throw Refuse(
                code: StorageErrors.isNoSpace(error) ? .storeFull : .internal,
                message: "the store of '\(name)': \(error)")
        }
    }

    /// A primary whose connection has ended may still be in our books, while its last checkpoint is committed or proven.
    /// The next one, which may well be the same guest, waits until it is closed rather than being refused.
    private func waitForTheDead() async {
        let began = MonotonicClock.now()
        while let session, !session.isConnected, MonotonicClock.now().nanoseconds(since: began) < 25_000_000_000 {
            try? await Task.sleep(for: .milliseconds(20))
        }
    }

    /// What the primary is to be told next of what the disks hold; nil when it knows everything.
    func digests(for source: LinkSession) throws -> DiskDigests? {
        guard session === source else { throw LinkFault(description: "the session is over") }
        guard let digests = try survey?.next() else {
            survey = nil
            return nil
        }
        try machine.sendDigests(isLast: digests.isLast)
        return digests
    }

    /// What the primary is to be told next of what the RAM cache holds; nil when it knows everything.
    func known(for source: LinkSession) throws -> RamKnown? {
        guard session === source else { throw LinkFault(description: "the session is over") }
        guard let known = ramSurvey?.next() else {
            ramSurvey = nil
            return nil
        }
        try machine.sendKnown(isLast: known.isLast)
        return known
    }

    /// Takes in one frame. Returns false when the primary has left in order.
    func handle(_ frame: LinkFrame, from source: LinkSession) async throws -> Bool {
        guard session === source else { throw LinkFault(description: "the session is over") }
        guard let kind = SessionFrame(wireKind: frame.kind.rawValue) else { return true }
        var info = FrameInfo(kind, generation: frame.header.generation, epoch: frame.epoch)
        if kind == .command(.size) {
            info.value = try frame.withPayload { bytes in try Size.decode(bytes).deviceStateLength }
        } else if kind == .deviceState {
            try frame.withPayload { bytes in
                let piece = try DeviceState.decode(bytes)
                info.value = piece.offset
                info.length = UInt64(piece.bytes.count)
            }
        }
        let action = try machine.received(info)
        if frame.kind.isEpochContent { tallies[frame.epoch, default: EpochTally()].add(frame.header) }
        return try await perform(action, frame, source)
    }

    private func perform(
        _ action: SecondaryProtocol.Action, _ frame: LinkFrame, _ source: LinkSession
    ) async throws -> Bool {
        switch action {
        case .bufferDisk(let epoch):
            try bufferDisk(epoch, frame)
        case .stageRam(let epoch):
            try frame.withPayload { try store.stage(epoch: epoch, $0) }
        case .keepRamDigests:
            try keep(try frame.withPayload { bytes in try RamDigests.decode(bytes) })
        case .keepRamFigures(let epoch):
            history.arrived(try frame.withPayload { bytes in try RamFigures.decode(bytes) }, of: epoch)
        case .keepDiskCheck(let epoch):
            keep(try frame.withPayload { bytes in try DiskCheck.decode(bytes) }, of: epoch)
        case .keepPrimaryFigures:
            keep(try frame.withPayload { bytes in try PrimaryFigures.decode(bytes) })
        case .keepGuestState:
            keep(try frame.withPayload { bytes in try GuestState.decode(bytes) })
        case .keepIdentity:
            let identity = try frame.withPayload { bytes in try IdentityPayload.decode(bytes) }
            store.keepIdentity(identity.json)
        case .layOutRam:
            let layout = try frame.withPayload { bytes in try RamLayoutPayload.decode(bytes) }
            try store.layOutRam(layout)
            ramSurvey = RamSurvey(store.continuedRam)
        case .boundary(_, let opened):
            try store.boundary(opened: opened)
        case .expectDeviceState:
            store.expectDeviceState()
        case .appendDeviceState:
            try frame.withPayload { bytes in
                store.appendDeviceState(try DeviceState.decode(bytes).bytes)
            }
        case .commit(let epoch):
            try await commit(epoch, frame, source)
        case .say(.reply, let epoch):
            source.command(.reply, generation: store.generation, epoch: epoch)
        case .say, .echo, .decide:
            // Heartbeats go out from the link's own event loop, so that slow storage does not silence them.
            break
        case .close:
            let bye = try frame.withPayload { bytes in try Bye.decode(bytes) }
            lastEnd = bye.reason
            if bye.code == ByeCode.guestShutdown, store.record != nil { shutOffWords = bye.reason }
            parting = bye.code == ByeCode.guestDied ? .lost(.guestDied) : .orderly
            return false
        }
        return true
    }

    private func bufferDisk(_ epoch: Epoch, _ frame: LinkFrame) throws {
        try frame.withPayload { bytes in
            if frame.kind == .diskWrite {
                try store.write(epoch: epoch, try DiskWrite.decode(bytes))
            } else {
                try store.zero(epoch: epoch, try DiskExtent.decode(bytes, kind: frame.kind))
            }
        }
    }

    private func commit(_ epoch: Epoch, _ frame: LinkFrame, _ source: LinkSession) async throws {
        let began = MonotonicClock.now()
        let seal = try frame.withPayload { bytes in try Seal.decode(bytes) }
        try (tallies.removeValue(forKey: epoch) ?? EpochTally()).verify(seal)
        try store.commit(epoch)
        commits += 1
        watch.committed()
        lastCommitAt = MonotonicClock.now()
        history.committed(epoch, at: MonotonicClock.now())
        if case .say(.received, _) = try machine.committed(epoch) {
            source.command(.received, generation: store.generation, epoch: epoch)
            try store.apply(epoch)
            _ = try machine.applied(epoch)
            source.command(.loaded, generation: store.generation, epoch: epoch)
        } else {
            // The first one: ready says that it is committed and applied.
            try store.apply(epoch)
            source.command(.ready, generation: store.generation, epoch: epoch)
        }
        lastCommitMilliseconds = Double(MonotonicClock.now().nanoseconds(since: began)) / 1e6
        compareApplied(epoch)
        committedForVerification(epoch)
        noteState()
        if settings.proof, provenSession != currentSessionID { await prove() }
        store.tidy()
        endLostExports()
    }

    /// The link is gone. `ending`: what that means, unless the primary has said so itself.
    func close(_ ended: LinkSession, reason: String, ending: PrimaryWatch.Ending = .orderly) {
        guard session === ended else { return }
        session = nil
        survey = nil
        ramSurvey = nil
        machine.disconnected()
        tallies = [:]
        history.sessionEnded()
        giveUpVerification("the primary left meanwhile")
        if lastEnd == nil { lastEnd = reason }
        tell(.session, "the primary has gone: \(lastEnd ?? reason)")
        sessionEnded(ending)
        defer { noteState() }
        do {
            try store.endSession()
        } catch {
            log.error(
                "the open epoch could not be rolled back; it will be at the next start",
                metadata: ["guest": "\(name)", "error": "\(error)"])
        }
    }

    /// Ends the protection from this side.
    func detach() throws -> Bool {
        guard let session else { return false }
        session.bye(code: ByeCode.ended, reason: "detached on the secondary", generation: store.generation)
        close(session, reason: "detached on the secondary")
        return true
    }

    // MARK: Becoming the guest

    /// The guest that an earlier failover started, by us or by a daemon before us.
    private var runningGuest: RunningGuest? {
        if let guest { return guest.isAlive ? guest : nil }
        return RunningGuest.find(runDirectory: store.runDirectory)
    }

    private func plan(_ mode: FailoverCommand.Mode, disks: [String: String], options: FailoverOptions) throws
        -> FailoverPlan
    {
        guard let files = store.files, let ram = store.ram, store.damage == nil else {
            throw GuestStore.Failed(
                description: store.damage
                    ?? "nothing has been committed for '\(name)' yet: there is no checkpoint to start")
        }
        return try FailoverPlan(
            mode: mode, files: files, disks: disks, runDirectory: store.runDirectory,
            ramPath: { ram.mappedPath(block: $0) }, options: options, defaultQemu: settings.qemu)
    }

    /// Starts the guest once, paused and without network, from the checkpoint just committed, and throws it away.
    /// Nothing is taken from the link meanwhile, so that disks, RAM and device state are of one moment.
    private func prove() async {
        provenSession = currentSessionID
        let epoch = store.committed
        do {
            let disks = try store.makeActiveDisks(.scratch("proof"))
            defer { for path in disks.values { unlink(path) } }
            let plan = try plan(.proof, disks: disks, options: FailoverOptions(paused: true))
            let started = try await plan.start(
                state: .prebuilt(store.restoreStream), on: starter, log: log, timeLimitSeconds: 20)
            started.process.kill()
            _ = await started.process.waitForExit()
            proof = .init(verdict: .proven, epoch: epoch.rawValue, milliseconds: started.millisecondsToState)
            tell(.proof, "a failover is proven")
        } catch {
            proof = .init(verdict: .failed, epoch: epoch.rawValue, message: "\(error)")
            tell(.proof, "the guest could not be started from its checkpoint: \(error)")
        }
    }

    /// Starts the guest from the last commit.
    ///
    /// - Parameter isByItself: nobody asked for it but ``watch``.
    func failover(_ options: FailoverOptions, isByItself: Bool = false) async throws -> FailoverReport {
        var decided = MonotonicClock.now()
        guard !isFailingOver else { throw GuestStore.Failed(description: "a failover of '\(name)' is under way") }
        if let guest = runningGuest {
            throw GuestStore.Failed(
                description: "'\(name)' runs here already (pid \(guest.pid), QMP \(guest.qmpSocket))")
        }
        if options.dryRun { return try dryRun(options) }
        if let shutOffWords, !options.force {
            throw GuestStore.Failed(
                description:
                    "'\(name)' was ended on purpose (\(shutOffWords)): start it where it was. --force starts it here, "
                    + "from its last checkpoint, of before that")
        }
        if let session, !session.isSilent, !options.force {
            throw GuestStore.Failed(
                description:
                    "the primary of '\(name)' still answers (\(session.label)): stop it first, or say --force, "
                    + "which leaves two running copies until you stop the other")
        }
        let wasPromoted = store.isPromoted
        // Checked before anything is changed: is there a checkpoint, and a command line for it?
        var plan = try plan(.failover, disks: plannedDisks(), options: options)
        isFailingOver = true
        defer { isFailingOver = false }
        if let fence = options.fenceCommand {
            try await fenceFirst(fence)
            // A primary that did answer may have committed another checkpoint meanwhile.
            plan = try self.plan(.failover, disks: plannedDisks(), options: options)
            decided = MonotonicClock.now()
        }
        let state: RestoreSource =
            options.fullStream ? .full(try store.fullStream()) : .prebuilt(store.restoreStream)
        if let session {
            session.bye(code: ByeCode.fenced, reason: "failed over", generation: store.generation)
            self.session = nil
            machine.disconnected()
            giveUpVerification("the guest failed over meanwhile")
        }
        lastEnd = nil
        do {
            let report = try await become(
                plan, state, options, wasPromoted: wasPromoted, decided: decided)
            failoverFailure = nil
            lossWords = nil
            shutOffWords = nil
            if !isByItself { watch.failedOver() }
            tell(.failover, "the guest runs here as process \(report.pid ?? 0)")
            noteState()
            return report
        } catch {
            failoverFailure = "\(error)"
            tell(.failover, "the guest could not be started: \(error)")
            noteState()
            throw error
        }
    }

    private func become(
        _ plan: FailoverPlan, _ state: RestoreSource, _ options: FailoverOptions, wasPromoted: Bool, decided: Moment
    ) async throws -> FailoverReport {
        endExports("the replica failed over; its disks belong to the guest now")
        // The record first: an active disk without one is somebody's writes that no record speaks of.
        if !wasPromoted { try store.promote() }
        defer {
            if !wasPromoted { rememberCheckpoint() }
        }
        try makeActiveDisks(wasPromoted: wasPromoted)
        let started = try await plan.start(
            state: state, on: starter, log: log, timeLimitSeconds: options.fullStream ? 600 : 60)
        let running = RunningGuest(pid: started.process.pid, qmpSocket: plan.qmpSocket)
        guest = running
        try running.save(runDirectory: store.runDirectory)
        let milliseconds = Double(MonotonicClock.now().nanoseconds(since: decided)) / 1e6
        log.notice(
            "failed over",
            metadata: ["guest": "\(name)", "epoch": "\(store.committed)", "pid": "\(started.process.pid)"])
        return FailoverReport(
            guest: name, epoch: store.committed.rawValue, generation: store.generation.rawValue,
            arguments: plan.arguments, findings: plan.findings, pid: started.process.pid, qmpSocket: plan.qmpSocket,
            millisecondsToRunning: milliseconds)
    }

    /// Not before the guest runs, who has waited long enough. Without it a start cannot be repeated, which is safe.
    private func rememberCheckpoint() {
        do {
            try store.rememberCheckpoint()
        } catch {
            log.warning("a repeated start of the checkpoint will be refused", metadata: ["reason": "\(error)"])
        }
    }

    private func dryRun(_ options: FailoverOptions) throws -> FailoverReport {
        let plan = try plan(.failover, disks: plannedDisks(), options: options)
        return FailoverReport(
            guest: name, epoch: store.committed.rawValue, generation: store.generation.rawValue,
            arguments: plan.arguments, findings: plan.findings)
    }

    /// Where the active disks will be.
    private func plannedDisks() -> [String: String] {
        Dictionary(
            uniqueKeysWithValues: store.diskDescriptions.map { disk in
                (disk.id, "\(store.directory)/disks/\(disk.id)/\(StoreFileName.active.name)")
            })
    }

    /// New active disks. A start that is repeated after the guest has run must not take the RAM back and leave the
    /// disks ahead, so the active disks begin anew each time, and what the guest wrote since is kept aside.
    private func makeActiveDisks(wasPromoted: Bool) throws {
        if wasPromoted {
            try store.checkUnmerged()
            for path in plannedDisks().values where access(path, F_OK) == 0 {
                let aside = "\(path).before-\(MonotonicClock.wallMilliseconds())"
                guard rename(path, aside) == 0 else {
                    throw GuestStore.Failed(
                        description: "\(path) cannot be kept aside: \(String(cString: strerror(errno)))")
                }
                log.warning("the disk of an earlier start was kept aside", metadata: ["file": "\(aside)"])
            }
        }
        _ = try store.makeActiveDisks(.active)
    }

    // MARK: Status

    func status() -> GuestStatus {
        let now = MonotonicClock.now()
        let wall = MonotonicClock.wallMilliseconds()
        var status = GuestStatus(
            guest: name, state: state(), generation: store.generation.rawValue,
            durability: store.record.map { "\($0.durability)" } ?? "-",
            disks: store.diskDescriptions.map { GuestStatus.Disk(id: $0.id, bytes: $0.size) }, ramBytes: store.ramBytes,
            proof: proof, commits: commits)
        status.message =
            failoverFailure.map { "\($0); 'colo-blk failover \(name)' tries again" } ?? store.damage ?? lossWords
            ?? (session == nil ? shutOffWords.map(shutOffMessage) : haltWords) ?? lastEnd
        if let record = store.record {
            status.committedEpoch = record.epoch.rawValue
            status.committedAtMilliseconds = record.wallClockMilliseconds
            status.commitAgeSeconds =
                lastCommitAt.map { Double(now.nanoseconds(since: $0)) / 1e9 }
                ?? Double(wall - min(wall, record.wallClockMilliseconds)) / 1e3
        }
        if !exports.isEmpty { status.exports = exportStatuses() }
        status.silentSeconds = session.map { Double($0.silentNanoseconds) / 1e9 }
        status.lastCommitMilliseconds = lastCommitMilliseconds
        if let guest = runningGuest {
            status.pid = guest.pid
            status.qmpSocket = guest.qmpSocket
        }
        addHealth(to: &status)
        return status
    }

    func state() -> GuestStatus.State {
        if failoverFailure != nil, session == nil, runningGuest == nil { return .failoverFailed }
        if store.isPromoted { return .failedOver }
        if store.damage != nil { return .damaged }
        if watch.loss != nil { return .primaryLost }
        guard session != nil else { return shutOffWords == nil ? .idle : .shutOff }
        if haltWords != nil { return .halted }
        return store.sessionHasCheckpoint ? .protected : .syncing
    }

    /// Whether the folder may be deleted; says why not.
    func refusalToRemove() -> String? {
        if session != nil { return "a primary is connected; detach it first" }
        if !exports.isEmpty { return "a checkpoint of it is exported; end 'colo-blk export' first" }
        if let guest = runningGuest { return "it runs here as process \(guest.pid); stop that first" }
        return nil
    }
}

/// Codes of the link's bye frame.
enum ByeCode {
    static let ended: UInt16 = 0
    static let guestShutdown: UInt16 = 1
    static let fenced: UInt16 = 2
    /// The guest's QEMU is gone, and nobody ended it in order.
    static let guestDied: UInt16 = 3
}
