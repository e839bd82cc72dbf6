import Checkpointer
import Link
import Units

/// The people: they start what is down, attach what is unprotected, and fail over when the guest is gone.
extension Simulation {
    func operatorTick() {
        after(isHealed ? 300_000_000 : random(150_000_000...900_000_000)) { [unowned self] in operatorTick() }
        for index in hosts.indices where !hosts[index].isPowered && (isHealed || chance(1, in: 2)) {
            hosts[index].isPowered = true
            note("host \(index) has power")
        }
        for index in hosts.indices where hosts[index].daemon == nil { startDaemon(index) }
        if guest == nil { bringBack() }
        if guest != nil, agent?.isOver ?? true { attach() }
    }

    /// The guest is dead: start it from the replica, or give up and start a new one.
    private func bringBack() {
        let target = 1 - guestHost
        let host = hosts[target]
        guard host.isPowered, let daemon = host.daemon else { return }
        if daemon.store?.record == nil, daemon.openError == nil {
            if host.ledger.acknowledged != nil, !isExcused(host) {
                return fail("host \(target) forgot \(host.ledger.acknowledged.map { "\($0)" } ?? "")")
            }
            return startAnew("nothing was ever committed")
        }
        _ = failover(target, force: isHealed)
    }

    /// Returns whether a guest runs now.
    func failover(_ target: Int, force: Bool) -> Bool {
        let host = hosts[target]
        guard let daemon = host.daemon else { return false }
        let suffered = struck
        do {
            let machine = try daemon.failover(force: force)
            guard let record = daemon.store?.record else { return false }
            let key = host.ledger.key(of: record)
            if let wrong = host.ledger.judge(key, machine) { fail("failover on host \(target): \(wrong)") }
            note("failover on host \(target) from \(key), generation \(record.generation)")
            if let old = guest { leaveBehind(old) }
            failovers += 1
            host.restarts = 0
            host.refusals = 0
            guest = ModelGuest(name: "g\(failovers)", from: machine, shape: options.shape, random: fork())
            guestHost = target
            return true
        } catch let halt as Halt {
            halted(target, halt)
        } catch {
            note("failover on host \(target) refused: \(error)")
            // A daemon that refuses again and again is started anew, so that it looks at all of its files.
            host.refusals += 1
            if guest == nil, host.refusals % 4 == 0 { crashDaemon(target) }
            guard guest == nil, suffered == struck, daemon.store?.damage != nil || daemon.openError != nil else {
                return false
            }
            // What failed once may not fail twice: the daemon is started again before anybody gives up.
            if host.restarts < 2 || host.startSuffered {
                host.restarts += 1
                crashDaemon(target)
                return false
            }
            if !isExcused(host) { fail("host \(target) cannot start its checkpoint: \(error)") }
            startAnew("the replica is damaged, and said so")
        }
        return false
    }

    private func isExcused(_ host: Host) -> Bool {
        host.ledger.acknowledged == nil || !host.ledger.excuses.isEmpty || host.ledger.mayBeOld
            || host.ledger.isRotten
    }

    /// The old guest goes on, for now; nothing that it says may count any more.
    private func leaveBehind(_ old: ModelGuest) {
        stale = (old, guestHost)
        staleAgent = agent
        agent = nil
        after(random(500_000_000...3_000_000_000)) { [weak self, weak old] in
            guard let self, let old, stale?.guest === old else { return }
            note("the operator stops the old guest \(old.name)")
            staleAgent?.end("the operator stops the old guest")
            stale = nil
        }
    }

    private func startAnew(_ reason: String) {
        note("a new guest: \(reason)")
        failovers += 1
        guest = ModelGuest(name: "g\(failovers)", shape: options.shape, random: fork())
        guestHost = hosts[0].isPowered ? 0 : 1
        for index in hosts.indices { removeReplica(index) }
    }

    func attach() {
        guard let guest else { return }
        let target = 1 - guestHost
        let host = hosts[target]
        guard hosts[guestHost].isPowered, host.isPowered, let daemon = host.daemon, stale == nil || chance(1, in: 8)
        else { return }
        let isUnusable = daemon.store == nil || daemon.store?.isPromoted == true
        if isUnusable || host.failedAttaches > 4 {
            // A daemon that could not open its store is started again first: a read may just have failed.
            if daemon.store == nil, host.failedAttaches < 2 {
                host.failedAttaches += 1
                return crashDaemon(target)
            }
            if stale?.host != target { removeReplica(target) }
            return
        }
        host.failedAttaches += 1
        let wire = connect(to: target)
        agent = AgentModel(
            guest: guest, host: guestHost, session: identifier(), wire: wire, world: self, budget: options.budget)
        note("attach \(guest.name) on host \(guestHost) to host \(target)")
    }

    /// Removes a replica, when nobody uses it.
    func removeReplica(_ index: Int) {
        let host = hosts[index]
        guard let daemon = host.daemon else { return }
        // Whoever removes it says that what it holds may go.
        let before = host.ledger
        do {
            let wasLive = daemon.hasLiveSession
            if !wasLive {
                host.ledger = Ledger()
                host.ledger.excuses.insert("removed")
                host.ledger.mayBeOld = host.hasLied
            }
            try daemon.remove()
            if wasLive { fail("a replica was removed while its primary was connected") }
            host.isPromoted = false
            host.failedAttaches = 0
            note("host \(index): the replica was removed")
        } catch let halt as Halt {
            host.isPromoted = false
            halted(index, halt)
        } catch {
            note("host \(index): remove failed: \(error)")
            if daemon.hasLiveSession { host.ledger = before } else { host.isPromoted = false }
            // What is left of it may not be opened by this process any more.
            if daemon.store == nil { crashDaemon(index) }
        }
    }

    // MARK: What the processes tell

    func sealed(_ agent: AgentModel, _ epoch: Epoch, _ machine: Machine) {
        hosts[1 - agent.host].ledger.sealed(Ledger.Key(session: agent.session, epoch: epoch), machine)
    }

    func welcomed(_ daemon: Daemon, _ hello: Hello, _ first: Epoch) {
        note("host \(daemon.host) welcomes \(hello.label), first epoch \(first)")
        hosts[daemon.host].ledger.writer = hello.session
        if isFenced(daemon.host) { fail("host \(daemon.host) took a primary although its guest was started") }
    }

    func continues(_ daemon: Daemon, _ files: Identifier, from first: Epoch) {
        guard let session = daemon.session else { return fail("RAM was laid out without a session") }
        hosts[daemon.host].ledger.continued(files, from: first, by: session)
    }

    func acknowledged(_ daemon: Daemon, _ epoch: Epoch) {
        guard let session = daemon.session else { return fail("an epoch was committed without a session") }
        let host = hosts[daemon.host]
        let key = Ledger.Key(session: session, epoch: epoch)
        if isFenced(daemon.host) { fail("host \(daemon.host) committed \(key) although its guest was started") }
        if host.ledger.writer != session {
            fail("host \(daemon.host) committed \(key) for a primary that was replaced")
        }
        host.ledger.acknowledge(key)
        host.failedAttaches = 0
        host.restarts = 0
    }

    func committed(_ daemon: Daemon) {
        commits += 1
        if chance(1, in: 6) { probe(daemon.host, powerLoss: chance(1, in: 2)) }
    }

    /// The outside world sees what the guest sent up to this epoch.
    func released(_ agent: AgentModel, _ epoch: Epoch) {
        let ledger = hosts[1 - agent.host].ledger
        if let key = ledger.acknowledged, key.epoch >= epoch || !ledger.excuses.isEmpty { return }
        if ledger.excuses.isEmpty { fail("output of epoch \(epoch) left before it was committed") }
    }

    /// Whether nobody may write to the replica of a host any more. Where syncs lie, that may be forgotten.
    func isFenced(_ index: Int) -> Bool { hosts[index].isPromoted && !hosts[index].hasLied }

    func guestStarted(_ index: Int) {
        hosts[index].isPromoted = true
        judgePromotion(index)
    }
}
