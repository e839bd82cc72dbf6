import Checkpointer
import Link
import Logging
import QEMU
import RamCache
import Units

/// Looking at the RAM of a replica, and comparing it with the guest's.
extension GuestReplica {
    /// How long the answer to one question may take; the next checkpoint has to come by then.
    private static let answerSeconds: UInt64 = 90

    func ramInfo() throws -> RamInfo {
        let files = store.files
        let mapped = try files?.mappedBlocks() ?? []
        var info = RamInfo(
            guest: name, committedEpoch: store.record?.epoch.rawValue,
            durability: store.record.map { "\($0.durability)" } ?? "-",
            blocks: (files?.blocks ?? []).enumerated().map { index, block in
                RamInfo.Block(name: block.name, bytes: block.length, mapped: mapped.contains(index))
            }, total: history.total, epochs: history.epochs)
        guard let ram = store.ram else { return info }
        let figures = ram.statistics
        info.cacheBytes = figures.cacheBytes
        info.stagingBytes = figures.stagingBytes
        if ram.configuration.durability == .disk {
            info.logBytes = figures.logBytes
            info.baseEpoch = figures.baseEpoch?.rawValue
            info.logLimitBytes = ram.logLimitBytes
            info.diskBytes = ram.diskBytes
            info.compactions = figures.compactions
            info.compactionProgress = figures.compactionProgress
            info.compactionFailure = figures.compactionFailure
        }
        return info
    }

    /// Compares the cache with the guest, a run of pages at each checkpoint. Protection goes on meanwhile.
    func verifyRam(_ options: RamVerifyOptions) async throws -> RamVerifyReport {
        var report = RamVerifyReport(guest: name)
        guard let ram = store.ram, let first = session, store.sessionHasCheckpoint else {
            report.unavailable =
                session == nil
                ? "no primary is connected, so there is no running guest to compare with"
                : "the first checkpoint of this session is not committed yet"
            return report
        }
        guard !isVerifying else {
            throw GuestStore.Failed(description: "the RAM of '\(name)' is being compared already; wait for that")
        }
        isVerifying = true
        defer { isVerifying = false }
        let layout = ram.layout
        for ask in RamCheckPlan(layout: layout, guestMemory: options.guestMemory).asks {
            guard session === first else {
                report.unavailable = "the primary left while the RAM was compared"
                return report
            }
            do {
                report.take(try await compare(ask, with: first), of: ask, layout)
            } catch {
                report.unavailable = "\(error)"
            }
            if report.unavailable != nil { break }
        }
        if report.differentPages > 0 {
            log.error(
                "the RAM cache differs from the guest",
                metadata: ["guest": "\(name)", "pages": "\(report.differentPages)"])
        }
        return report
    }

    func compare(_ ask: RamVerify, with session: LinkSession) async throws -> RamCheck.Result {
        try await withCheckedThrowingContinuation { continuation in
            checks += 1
            let number = checks
            check = RamCheck(number: number, ask: ask, done: continuation)
            session.send(ask, generation: store.generation)
            Task {
                try? await Task.sleep(for: .seconds(Self.answerSeconds))
                guard check?.number == number else { return }
                giveUpCheck("the primary took no checkpoint within \(Self.answerSeconds) s")
            }
        }
    }

    /// Ends a comparison that waits for an answer, if there is one.
    func giveUpCheck(_ reason: String) {
        guard let waiting = check else { return }
        check = nil
        waiting.done.resume(throwing: GuestStore.Failed(description: reason))
    }

    /// Digests have come, of an epoch that is not committed yet.
    func keep(_ digests: RamDigests) throws {
        guard check?.ask == digests.ask else {
            // Asked for by a comparison that was given up: nobody waits for them any more.
            return
        }
        check?.answer = digests.outcome
    }

    /// The cache holds the epoch whose digests may have come with it.
    func compareApplied(_ epoch: Epoch) {
        guard let waiting = check, let answer = waiting.answer, let ram = store.ram else { return }
        check = nil
        var result = RamCheck.Result(epoch: epoch, different: [])
        switch answer {
        case .unavailable(let reason):
            result.unavailable = reason
        case .digests(let values):
            let first = Int(waiting.ask.first)
            for (index, value) in values.enumerated() {
                let place = ram.layout.location(ofGlobalPage: first + index)
                if PageDigest.of(ram.page(block: place.block, page: place.page)) != value {
                    result.different.append(first + index)
                }
            }
        }
        waiting.done.resume(returning: result)
    }
}

extension RamVerifyReport {
    /// Takes in what one run of pages came to.
    fileprivate mutating func take(_ result: RamCheck.Result, of ask: RamVerify, _ layout: RamLayout) {
        if let reason = result.unavailable {
            unavailable = reason
            return
        }
        firstEpoch = firstEpoch ?? result.epoch.rawValue
        lastEpoch = result.epoch.rawValue
        if ask.source == .guest { pagesOfGuest += UInt64(ask.count) } else { pagesOfCopy += UInt64(ask.count) }
        differentPages += UInt64(result.different.count)
        for page in result.different.prefix(Self.listedMax - differences.count) {
            let place = layout.location(ofGlobalPage: page)
            differences.append(
                Difference(
                    block: layout.blocks[place.block].name, offset: place.page * UInt64(Sizes.page),
                    epoch: result.epoch.rawValue))
        }
    }
}
