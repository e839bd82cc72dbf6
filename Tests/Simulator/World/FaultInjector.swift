import Units

/// Has the faults of the profile happen, at moments drawn from the seed.
extension Simulation {
    func planFaults() {
        for _ in 0..<options.faultCount {
            let isEmphasised = !options.emphasis.faults.isEmpty && chance(3, in: 4)
            let kinds = isEmphasised ? options.emphasis.faults : options.profile.faults
            let kind = kinds[pick(0...kinds.count - 1)]
            // A half of what is emphasised strikes during the first copy.
            let isEarly = isEmphasised && chance(1, in: 2)
            let time = isEarly ? random(0...200_000_000) : random(300_000_000...options.faultTime)
            at(time) { [unowned self] in if !isHealed { inject(kind) } }
        }
    }

    private func inject(_ kind: FaultKind) {
        switch kind {
        case .secondaryCrash, .crashWithinOperation, .crashWithinRecovery, .agentCrash, .secondaryPowerLoss,
            .powerLossWithinOperation, .primaryPowerLoss, .bothPowerLoss:
            injectDeath(kind)
        case .diskFull, .writeError, .readError, .failedSync, .failedCommit, .slowDisk, .lyingSync, .bitRot,
            .misdirectedWrite:
            injectDisk(kind, hosts[chance(4, in: 5) ? 1 - guestHost : guestHost])
        case .linkDelay, .linkCut, .linkStall, .linkHalfOpen, .garbledBytes, .lostFrame, .duplicateConnection:
            injectLink(kind)
        case .wallClockJump, .monotonicJump:
            // The wall clock is only written down; nothing may depend on it. A host that was held up leaps ahead.
            let index = pick(0...1)
            strike(kind, "host \(index)")
            if kind == .monotonicJump { hosts[index].clockLead += random(100_000_000...5_000_000_000) }
        case .memoryPressure:
            guard let agent else { return }
            strike(kind, "")
            agent.shrinkBudget(to: agent.outstanding + random(0...40_000))
        case .failoverWhileAlive, .forcedFailover, .failoverWithinCommit, .secondFailover, .oldPrimaryReturns,
            .attachTwice, .removeWhileConnected, .detach:
            injectOperator(kind)
        }
    }

    // MARK: Deaths

    private func injectDeath(_ kind: FaultKind) {
        let target = 1 - guestHost
        let steps = pick(0...120)
        switch kind {
        case .secondaryCrash:
            guard hosts[target].daemon != nil else { return }
            strike(kind, "host \(target)")
            crashDaemon(target)
        case .crashWithinOperation: hosts[target].storage.faults.halt = (steps, .processDied)
        case .powerLossWithinOperation: hosts[target].storage.faults.halt = (steps, .powerLost)
        case .crashWithinRecovery:
            crashDaemon(target)
            hosts[target].storage.faults.halt = (pick(0...40), chance(1, in: 2) ? .processDied : .powerLost)
            startDaemon(target)
        case .agentCrash:
            guard let agent, !agent.isOver else { return }
            strike(kind, "")
            agent.end("killed")
        case .secondaryPowerLoss:
            strike(kind, "host \(target)")
            losePower(target)
        case .primaryPowerLoss:
            strike(kind, "host \(guestHost)")
            losePower(guestHost)
        default:
            strike(kind, "")
            for index in hosts.indices { losePower(index) }
        }
    }

    // MARK: Disks

    private func injectDisk(_ kind: FaultKind, _ host: Host) {
        let storage = host.storage
        switch kind {
        case .diskFull:
            storage.faults.isFull = true
            after(random(50_000_000...1_000_000_000)) { storage.faults.isFull = false }
        case .writeError: storage.faults.failingWrite = pick(0...60)
        case .readError: storage.faults.failingRead = pick(0...30)
        case .failedSync: storage.faults.failingSync = pick(0...12)
        case .failedCommit:
            if chance(1, in: 3) {
                storage.faults.failsCommitWrite = true
            } else {
                storage.faults.failsCommitSync = true
            }
        case .slowDisk:
            strike(kind, "")
            storage.faults.latency = random(1_000_000...20_000_000)
            after(random(100_000_000...800_000_000)) { storage.faults.latency = DiskFaults().latency }
        case .lyingSync:
            strike(kind, "")
            storage.faults.syncsLie = true
            host.hasLied = true
            host.ledger.mayBeOld = true
            after(random(200_000_000...2_000_000_000)) { storage.faults.syncsLie = false }
        default: damageCold(kind, host)
        }
    }

    /// Damages a file that has a checksum and is not being written.
    private func damageCold(_ kind: FaultKind, _ host: Host) {
        let files = host.storage.image.names.keys.sorted().filter {
            $0.hasPrefix("ram/") || $0.hasPrefix("device/") || $0.hasPrefix("sessions/")
        }
        guard !files.isEmpty else { return }
        let path = files[pick(0...files.count - 1)]
        guard let contents = host.storage.image.contents(path), !contents.isEmpty else { return }
        strike(kind, path)
        host.ledger.isRotten = true
        if kind == .bitRot {
            let place = pick(0...contents.count - 1)
            host.storage.image.damage(path, at: place, [contents[place] ^ UInt8(1 << pick(0...7))])
        } else {
            let from = pick(0...(contents.count - 1) / 512) * 512
            let target = pick(0...(contents.count - 1) / 512) * 512
            let count = min(512, contents.count - max(from, target))
            host.storage.image.damage(path, at: target, Array(contents[from..<from + count]))
        }
    }

    // MARK: The link

    private func injectLink(_ kind: FaultKind) {
        guard let agent, !agent.isOver else { return }
        let wire = agent.wire
        switch kind {
        case .linkDelay:
            strike(kind, "")
            slowLink(until: now + random(100_000_000...800_000_000))
        case .linkCut:
            strike(kind, "")
            wire.cut(primaryHears: true, secondaryHears: true)
        case .linkStall:
            strike(kind, "")
            wire.stalledUntil = now + random(50_000_000...2_500_000_000)
        case .linkHalfOpen:
            strike(kind, "")
            let first = chance(1, in: 2)
            wire.cut(primaryHears: first, secondaryHears: !first)
        case .garbledBytes:
            strike(kind, "")
            wire.garbleIn = pick(0...30_000)
        case .lostFrame: arm(.lostFrame)
        default:
            strike(kind, "")
            connectAgain()
        }
    }

    /// A second connection for the same guest, while the first one stands.
    private func connectAgain() {
        guard let guest else { return }
        let target = 1 - guestHost
        let other = AgentModel(
            guest: ModelGuest(name: guest.name + "b", shape: options.shape, random: fork()), host: guestHost,
            session: identifier(), wire: connect(to: target), world: self, budget: options.budget)
        after(400_000_000) { other.end("the second connection gives up") }
    }

    // MARK: People

    private func injectOperator(_ kind: FaultKind) {
        let target = 1 - guestHost
        switch kind {
        case .failoverWhileAlive:
            guard let agent, !agent.isOver, agent.committed > .none, hosts[target].daemon?.hasLiveSession == true,
                agent.wire.isOpen, now > agent.wire.stalledUntil
            else { return }
            strike(kind, "")
            // The secondary may rightly believe that the primary is gone; then it is a failover.
            _ = failover(target, force: false)
        case .forcedFailover, .secondFailover:
            strike(kind, "")
            _ = failover(target, force: true)
        case .failoverWithinCommit:
            after(random(0...100_000_000)) { [weak self] in
                guard let self, !isHealed else { return }
                if (hosts[1 - guestHost].daemon?.uncommitted ?? 0) > 0 { strike(kind, "") }
                _ = failover(1 - guestHost, force: true)
            }
        case .oldPrimaryReturns:
            guard let stale, staleAgent?.isOver ?? true else { return }
            strike(kind, "")
            staleAgent = AgentModel(
                guest: stale.guest, host: stale.host, session: identifier(), wire: connect(to: 1 - stale.host),
                world: self, budget: options.budget)
        case .attachTwice:
            strike(kind, "")
            connectAgain()
        case .removeWhileConnected:
            guard hosts[target].daemon?.hasLiveSession == true else { return }
            strike(kind, "")
            removeReplica(target)
        default:
            guard let agent, !agent.isOver else { return }
            strike(kind, "")
            agent.detach()
        }
    }
}
