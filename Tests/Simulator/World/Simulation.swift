import Checkpointer
import Link
import TestSupport
import Units

/// Two hosts, a link, a guest and the people who look after them, in virtual time, from one seed.
///
/// Single-threaded: nothing in it reads a clock or draws from anything but the seed, so that a run can be repeated.
public final class Simulation {
    /// One host.
    final class Host {
        let storage: Storage
        var daemon: Daemon?
        var isPowered = true
        var ledger = Ledger()
        /// Whether a guest was started from its store.
        var isPromoted = false
        /// Ahead of virtual time, in nanoseconds.
        var clockLead: UInt64 = 0
        var hasLied = false
        var failedAttaches = 0
        /// Daemons started again because they could not open the store.
        var restarts = 0
        /// Whether a fault struck while the daemon started: what it then says of its store may be that fault.
        var startSuffered = false
        /// Failovers refused in a row.
        var refusals = 0

        init(storage: Storage) { self.storage = storage }
    }

    let options: SimulationOptions
    private(set) var now: UInt64 = 0
    private var queue = EventQueue()
    private var random: SplitMix64
    private var trace: Trace
    private(set) var failure: String?
    private(set) var hosts: [Host] = []
    private var wires: [Wire] = []
    private var armed: [FaultKind: Int] = [:]

    /// The guest whose word counts, and where it runs.
    var guest: ModelGuest?
    var guestHost = 0
    var agent: AgentModel?
    /// A guest that goes on elsewhere although another one was started in its place.
    var stale: (guest: ModelGuest, host: Int)?
    var staleAgent: AgentModel?
    /// Faults are over.
    var isHealed = false
    private var linkSlowUntil: UInt64 = 0

    var commits = 0
    var failovers = 0
    var probes = 0
    var isProbing = false
    private(set) var struck: [FaultKind: Int] = [:]

    public init(_ options: SimulationOptions) {
        self.options = options
        random = SplitMix64(seed: options.seed ^ 0x5EED_C010)
        trace = Trace(limit: options.traceLines)
        for index in 0..<2 {
            let storage = Storage(random: SplitMix64(seed: random.next()))
            storage.mutation = options.mutation
            storage.onStep = { [unowned self] in step(index) }
            storage.onFault = { [unowned self] kind, path in strike(kind, "\(path) of host \(index)") }
            storage.onChange = { [unowned self] path in changed(index, path) }
            hosts.append(Host(storage: storage))
        }
    }

    // MARK: Time and chance

    func at(_ time: UInt64, _ action: @escaping () -> Void) { queue.plan(at: max(time, now), action) }
    func after(_ delay: UInt64, _ action: @escaping () -> Void) { queue.plan(at: now + delay, action) }
    func random(_ range: ClosedRange<UInt64>) -> UInt64 { UInt64.random(in: range, using: &random) }
    func pick(_ range: ClosedRange<Int>) -> Int { Int.random(in: range, using: &random) }
    func chance(_ part: Int, in all: Int) -> Bool { Int.random(in: 0..<all, using: &random) < part }
    func fork() -> SplitMix64 { SplitMix64(seed: random.next()) }
    func monotonic(_ host: Int) -> Moment { Moment(nanoseconds: 1_000_000_000 + now + hosts[host].clockLead) }
    func identifier() -> Identifier { Identifier(using: &random) }

    var linkDelay: UInt64 { now < linkSlowUntil ? 40_000_000 : 150_000 }
    func slowLink(until time: UInt64) { linkSlowUntil = time }

    // MARK: What happened

    func note(_ line: @autoclosure () -> String) {
        let time = now
        trace.add("\(time / 1_000_000).\(time / 100_000 % 10) ms  \(line())")
    }

    /// A promise is broken. The first one counts.
    func fail(_ what: String) {
        note("FAILED: \(what)")
        if failure == nil { failure = what }
    }

    func strike(_ kind: FaultKind, _ detail: @autoclosure () -> String) {
        struck[kind, default: 0] += 1
        note("fault: \(kind.rawValue) \(detail())")
    }

    /// Has a fault happen at its next opportunity.
    func arm(_ kind: FaultKind) { armed[kind, default: 0] += 1 }

    func takeFault(_ kind: FaultKind) -> Bool {
        guard let count = armed[kind], count > 0 else { return false }
        armed[kind] = count - 1
        strike(kind, "")
        return true
    }

    func disarm() { armed = [:] }

    // MARK: Links

    /// Connects to the daemon of a host.
    func connect(to host: Int) -> Wire {
        let wire = Wire(number: wires.count, world: self)
        wires.removeAll { !$0.isOpen }
        wires.append(wire)
        if hosts[host].isPowered, let daemon = hosts[host].daemon {
            daemon.accept(wire)
        } else {
            after(1_000_000) { wire.close(from: .secondary) }
        }
        return wire
    }

    var openWires: [Wire] { wires.filter(\.isOpen) }

    // MARK: Processes and power

    /// Starts the daemon of a host: recovery, which may be cut short.
    func startDaemon(_ index: Int) {
        let host = hosts[index]
        guard host.isPowered, host.daemon == nil else { return }
        let suffered = struck
        do {
            let daemon = try Daemon(host: index, storage: host.storage, world: self)
            host.daemon = daemon
            note("daemon \(index) started: \(describe(daemon))")
            host.startSuffered = suffered != struck
            guard !host.startSuffered else { return }
            judgeStart(index, daemon)
        } catch let halt as Halt {
            strike(.crashWithinRecovery, "host \(index)")
            if halt == .powerLost { losePower(index) }
        } catch {
            fail("the daemon did not start: \(error)")
        }
    }

    private func describe(_ daemon: Daemon) -> String {
        if let error = daemon.openError { return "store not opened: \(error)" }
        if let damage = daemon.store?.damage { return "damaged: \(damage)" }
        guard let record = daemon.store?.record else { return "nothing committed" }
        return "\(record.role) at epoch \(record.epoch), generation \(record.generation)"
    }

    func crashDaemon(_ index: Int) {
        hosts[index].storage.faults.halt = nil
        hosts[index].daemon?.die(kernelCloses: true)
        hosts[index].daemon = nil
    }

    /// A daemon died, or its host, in the middle of something.
    func halted(_ index: Int, _ halt: Halt) {
        switch halt {
        case .processDied:
            strike(.crashWithinOperation, "daemon \(index)")
            crashDaemon(index)
        case .powerLost:
            strike(.powerLossWithinOperation, "host \(index)")
            losePower(index)
        }
    }

    func losePower(_ index: Int) {
        let host = hosts[index]
        host.isPowered = false
        host.daemon?.die(kernelCloses: false)
        host.daemon = nil
        for wire in openWires { wire.cut(primaryHears: false, secondaryHears: false) }
        host.storage.losePower()
        if options.durability == .memory { host.ledger.excuses.insert("power loss in memory durability") }
        if guestHost == index, guest != nil {
            note("guest \(guest?.name ?? "") died with host \(index)")
            stopGuest()
        }
        if let stale, stale.host == index { self.stale = nil; staleAgent?.end("power lost") }
    }

    /// The guest is gone, and its agent with it.
    func stopGuest() {
        guest?.isRunning = false
        guest = nil
        agent?.end("the guest is gone")
        agent = nil
    }

    // MARK: The run

    public func run() -> SimulationOutcome {
        start()
        advance(to: options.faultTime)
        heal()
        let deadline = now + 25_000_000_000
        var goal = (agent: ObjectIdentifier?.none, from: 0)
        while failure == nil, now < deadline {
            advance(to: now + 250_000_000)
            // Five commits in one session, with nothing standing in the way.
            let current = agent.map { ObjectIdentifier($0) }
            if goal.agent != current || current == nil { goal = (current, commits) }
            if current != nil, commits >= goal.from + 5 { break }
        }
        if failure == nil, now >= deadline {
            fail("no five epochs were committed within 25 s after the last fault")
        }
        if failure == nil { judgeEnd() }
        return SimulationOutcome(
            seed: options.seed, failure: failure, trace: trace.tail, commits: commits, probes: probes,
            failovers: failovers, duration: now, faults: struck)
    }

    private func advance(to time: UInt64) {
        while failure == nil, let next = queue.nextTime, next <= time, let event = queue.take() {
            now = max(now, event.time)
            event.action()
        }
        now = max(now, time)
    }

    private func start() {
        guest = ModelGuest(name: "g0", shape: options.shape, random: fork())
        for index in hosts.indices { startDaemon(index) }
        guestLife()
        operatorTick()
        planFaults()
    }

    private func guestLife() {
        let isIdle = options.emphasis.isQuiet && !chance(1, in: 30)
        guest?.live(writes: isIdle ? 0 : pick(0...3), pages: pick(0...5))
        stale?.guest.live(writes: pick(0...2), pages: 1)
        after(random(3_000_000...20_000_000)) { [unowned self] in guestLife() }
    }

    private func heal() {
        isHealed = true
        note("faults are over")
        disarm()
        linkSlowUntil = 0
        for host in hosts { host.storage.faults = DiskFaults() }
        for wire in openWires { wire.stalledUntil = now }
        stale = nil
        staleAgent?.end("the operator stops the old guest")
    }
}
