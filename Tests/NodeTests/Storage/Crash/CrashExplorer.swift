import TestSupport

/// Walks through everything that a crash can leave of a recorded run.
///
/// It stops before each sync and each change of what may be recovered: a crash between two writes leaves nothing that a
/// crash before the next sync cannot leave as well, with the later writes lost.
struct CrashExplorer {
    /// With so many pending changes, and fewer, all subsets are tried; with more, see ``fates(_:_:)``.
    var exhaustiveUpTo = 5
    /// Random subsets of larger sets.
    var randomSubsets = 24
    /// Random subsets in which a write is torn.
    var tornSubsets = 4

    /// A crash: the change before which it happened, what may be recovered, and what it did to pending changes.
    struct Crash {
        let index: Int
        let allowed: ClosedRange<UInt64>
        let fates: [ModelDisk.Fate]
        let image: CrashImage
    }

    /// Calls `body` with every crash of a run that began with `start`, until it returns false.
    func walk(
        from start: ModelDisk, _ events: [FileEvent], allowed first: ClosedRange<UInt64>, _ random: inout SplitMix64,
        _ body: (Crash) throws -> Bool
    ) throws {
        var disk = start
        var allowed = first
        var isNew = true
        for (index, event) in events.enumerated() {
            if event.isSync || event.isSyncDirectory || event.path.isEmpty && !event.isSyncDirectory, isNew {
                guard try stop(disk, index, allowed, &random, body) else { return }
                isNew = false
            }
            switch event {
            case .allow(let epochs):
                allowed = epochs
                isNew = true
            case .sync, .syncDirectory: break
            default: isNew = true
            }
            try disk.apply(event)
        }
        _ = try stop(disk, events.count, allowed, &random, body)
    }

    private func stop(
        _ disk: ModelDisk, _ index: Int, _ allowed: ClosedRange<UInt64>, _ random: inout SplitMix64,
        _ body: (Crash) throws -> Bool
    ) throws -> Bool {
        for fates in fates(disk, &random) {
            let crash = Crash(index: index, allowed: allowed, fates: fates, image: disk.crash(fates))
            guard try body(crash) else { return false }
        }
        return true
    }

    /// Of few changes all subsets; of many: none, all, every prefix, all but one, only one, and random ones. Torn writes
    /// come on top.
    private func fates(_ disk: ModelDisk, _ random: inout SplitMix64) -> [[ModelDisk.Fate]] {
        let count = disk.pending.count
        var all: [[ModelDisk.Fate]] = []
        func add(_ isMade: (Int) -> Bool) { all.append((0..<count).map { isMade($0) ? .made : .lost }) }
        if count <= exhaustiveUpTo {
            for subset in 0..<1 << count { add { subset >> $0 & 1 == 1 } }
        } else {
            for length in 0...count { add { $0 < length } }
            for one in 0..<count {
                add { $0 == one }
                add { $0 != one }
            }
            for _ in 0..<randomSubsets {
                let seed = random.next()
                add { SplitMix64.bit(seed, $0) }
            }
        }
        let tearable = (0..<count).filter(disk.canTear)
        guard !tearable.isEmpty else { return all }
        for _ in 0..<tornSubsets {
            let seed = random.next()
            var fates = (0..<count).map { index -> ModelDisk.Fate in
                guard SplitMix64.bit(seed, index) else { return .lost }
                return disk.canTear(index) && SplitMix64.bit(~seed, index) ? .torn(random.next()) : .made
            }
            fates[tearable[Int(seed % UInt64(tearable.count))]] = .torn(random.next())
            all.append(fates)
        }
        return all
    }
}

/// What a crash of the process alone leaves: every change up to a point, in order.
struct ProcessCrashes {
    static func walk(
        from start: ModelDisk, _ events: [FileEvent], allowed first: ClosedRange<UInt64>,
        _ body: (CrashExplorer.Crash) throws -> Bool
    ) throws {
        var disk = start
        var allowed = first
        for (index, event) in (events + [.allow(0...0)]).enumerated() {
            let fates = disk.pending.map { _ in ModelDisk.Fate.made }
            let crash = CrashExplorer.Crash(index: index, allowed: allowed, fates: fates, image: disk.crash(fates))
            guard try body(crash) else { return }
            if case .allow(let epochs) = event { allowed = epochs }
            try disk.apply(event)
        }
    }
}
