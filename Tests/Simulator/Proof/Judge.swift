import Checkpointer
import Units

/// Holds the stores to the promises: at random moments between two file operations, at every start, at every commit.
extension Simulation {
    /// Between two file operations of a host.
    func step(_ index: Int) {
        guard !isProbing, chance(1, in: options.probeRarity) else { return }
        probe(index, powerLoss: chance(2, in: 3))
    }

    /// What would be recovered if the world ended now? The world goes on as if nothing had been asked.
    func probe(_ index: Int, powerLoss: Bool) {
        guard !isProbing, failure == nil else { return }
        isProbing = true
        defer { isProbing = false }
        probes += 1
        let host = hosts[index]
        guard StoreModel.exists(host.storage) else { return }
        let copy = host.storage.fork(random: fork())
        if powerLoss { copy.losePower() }
        let how = powerLoss ? "a power loss" : "a crash"
        if powerLoss, chance(1, in: 3) {
            // And once more, in the middle of the recovery.
            copy.faults.halt = (pick(0...60), chance(1, in: 2) ? .processDied : .powerLost)
            do { _ = try StoreModel(copy) } catch let halt as Halt { if halt == .powerLost { copy.losePower() } } catch
            {}
            copy.faults.halt = nil
        }
        let isForgetful = powerLoss && options.durability == .memory
        judge(copy, host.ledger, "after \(how) of host \(index)", isForgetful: isForgetful)
    }

    private func judge(_ storage: Storage, _ ledger: Ledger, _ when: String, isForgetful: Bool) {
        let isExcused = isForgetful || !ledger.excuses.isEmpty || ledger.mayBeOld || ledger.isRotten
        do {
            guard StoreModel.exists(storage) else {
                if ledger.acknowledged != nil, !isExcused { fail("\(when) the store is gone") }
                return
            }
            let store = try StoreModel(storage)
            if let damage = store.damage {
                if !isExcused, ledger.acknowledged != nil { fail("\(when) the checkpoint is damaged: \(damage)") }
                return
            }
            guard let record = store.record else {
                if ledger.acknowledged != nil, !isExcused { fail("\(when) nothing is committed") }
                return
            }
            if isForgetful, record.role == .replica {
                return fail("\(when) a checkpoint whose RAM was in memory is said to be whole")
            }
            let key = ledger.key(of: record)
            if let wrong = ledger.judge(key, try store.machine(storage)) { fail("\(when) \(wrong)") }
        } catch {
            if !isExcused, ledger.acknowledged != nil { fail("\(when) the store cannot be opened: \(error)") }
        }
    }

    /// A daemon has started, and no fault struck meanwhile.
    func judgeStart(_ index: Int, _ daemon: Daemon) {
        let ledger = hosts[index].ledger
        let isExcused = !ledger.excuses.isEmpty || ledger.mayBeOld || ledger.isRotten || ledger.acknowledged == nil
        if let reason = daemon.openError ?? daemon.store?.damage, !isExcused {
            fail("host \(index) started and reported damage that no fault explains: \(reason)")
        }
        guard !isProbing else { return }
        isProbing = true
        defer { isProbing = false }
        judge(hosts[index].storage.fork(random: fork()), ledger, "after the start of host \(index)", isForgetful: false)
    }

    /// A guest runs from here: that must be on record, whatever happens next.
    func judgePromotion(_ index: Int) {
        guard !isProbing, !hosts[index].ledger.mayBeOld else { return }
        isProbing = true
        defer { isProbing = false }
        let copy = hosts[index].storage.fork(random: fork())
        copy.losePower()
        do {
            let record = try CommitFileModel(copy, store: StoreModel.id).record
            if record?.role != .promoted { fail("a guest was started whose failover is not on record") }
        } catch {
            fail("a guest was started, and its commit file cannot be read: \(error)")
        }
    }

    /// A file of a host is about to change.
    func changed(_ index: Int, _ path: String) {
        guard isFenced(index), path.hasSuffix("secondary.raw") else { return }
        fail("\(path) of host \(index) is written although a guest was started on it")
    }

    /// Every queue has an end.
    func judgeBounds(_ daemon: Daemon) {
        if daemon.uncommitted > 2 { fail("\(daemon.uncommitted) epochs are sealed and uncommitted") }
        if daemon.pendingBytes > 4 << 20 + 40 { fail("\(daemon.pendingBytes) bytes of frames are held") }
        for disk in daemon.store?.disks ?? [] {
            if disk.pressure.used > disk.pressure.limit { fail("\(disk.folder) holds more than its memory") }
            if disk.hiddenCount > 3 { fail("\(disk.folder) has \(disk.hiddenCount) hidden disks") }
        }
        if let ram = daemon.store?.ram, ram.pressure.used > ram.pressure.limit {
            fail("more pages staged than there are")
        }
        if let agent, !agent.isOver, agent.uncommitted > 2 {
            fail("the agent has \(agent.uncommitted) epochs under way")
        }
    }

    /// At the end all is calm: what is recovered is what was acknowledged last.
    func judgeEnd() {
        for index in hosts.indices {
            probe(index, powerLoss: false)
            if options.durability == .disk { probe(index, powerLoss: true) }
        }
        if let agent, !agent.isOver, agent.outstanding > options.budget + 65_536 {
            fail("the agent holds \(agent.outstanding) bytes, more than its budget")
        }
    }
}
