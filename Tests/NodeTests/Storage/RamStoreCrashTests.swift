import Glibc
import RamCache
import Testing
import Units

@testable import Node

/// A store that is dropped at random points against a naive model: after every reopening it holds exactly the
/// committed epoch.
@Suite struct RamStoreCrashTests {
    /// Where a round ends.
    private enum End: CaseIterable {
        case complete, whileStaging, sealed, committed, whileApplying, applied
    }

    private final class World {
        let place = RamTestPlace()
        let session: Identifier
        let guest: RamTestGuest
        let durability: Durability
        var random: RamTestRandom
        var store: RamStore?
        /// The commit record: epoch, files and, as the model, contents.
        var committed: (epoch: Epoch, files: [RamFileReference], contents: [[UInt8]])
        var compactions = 0
        var rebuilds = 0
        /// Above every sequence number that the store itself reaches in between.
        private var markerSequence: UInt64 = 0

        init(seed: UInt64, durability: Durability) throws {
            random = RamTestRandom(seed: seed)
            let layout = try RamTestGuest.randomLayout(&random)
            session = Identifier(high: seed, low: 1)
            // Without differences a page is sent whether it changed or not.
            guest = RamTestGuest(layout, useDelta: seed % 3 != 0)
            self.durability = durability
            committed = (Epoch(10), [], guest.memory)
            let store = try RamStore.create(
                place.configuration(durability), session: session, layout: layout, firstEpoch: Epoch(10))
            _ = guest.run(changes: 150, &random)
            let sealed = try store.take(Epoch(10), guest.encode(0..<layout.pageCount, &random))
            #expect(sealed.batches > 0)
            committed = (Epoch(10), store.recoveryFiles, guest.memory)
            self.store = store
        }

        /// One epoch, up to `end`; returns whether its commit record was written.
        func round(_ end: End) throws {
            guard let store else { return }
            let epoch = committed.epoch.next
            let dirty = guest.run(changes: Int.random(in: 0...120, using: &random), &random)
            var batches = guest.encode(dirty.sorted(), &random)
            // Pages that come twice in an epoch.
            let again = guest.run(changes: Int.random(in: 0...6, using: &random), &random)
            batches += guest.encode(again.sorted(), &random)
            try store.beginEpoch(epoch)
            try slice(store)
            if end == .whileStaging {
                try store.stage(epoch, Array(batches.prefix(batches.count / 2)))
                return
            }
            try store.stage(epoch, batches)
            let sealed = try store.seal(epoch: epoch)
            #expect(sealed.batches == batches.count)
            if end == .sealed { return }
            committed = (epoch, store.recoveryFiles, guest.memory)
            if end == .committed { return }
            if end == .whileApplying {
                try applyHalf(epoch, dirty.union(again))
                return
            }
            try store.apply(epoch: epoch)
            if end == .applied { return }
            try store.committed(epoch)
            try slice(store)
        }

        private func slice(_ store: RamStore) throws {
            guard random.chance(70) else { return }
            _ = try store.compactSlice(maxBytes: Int.random(in: 1...400_000, using: &random))
        }

        /// What a crash within `apply` leaves: the marker says so, and some pages are copied.
        private func applyHalf(_ epoch: Epoch, _ pages: Set<Int>) throws {
            let directory = place.memory.path + "/cache-" + session.hex
            let layout = guest.layout
            markerSequence += 1_000_001
            let marker = RamMarker(
                session: session, layoutDigest: layout.digest, epoch: epoch, sequence: markerSequence,
                state: .applying)
            marker.encoded().withUnsafeBytes {
                RamTestDirectory.write(directory + "/applied", at: Int(marker.offset), $0)
            }
            for page in pages where random.chance(50) {
                let place = layout.location(ofGlobalPage: page)
                let start = Int(place.page) * 4096
                guest.memory[place.block][start..<start + 4096].withUnsafeBytes { contents in
                    let path = directory + "/" + RamCacheFiles.fileName(layout, place.block)
                    RamTestDirectory.write(path, at: start, contents)
                }
            }
        }

        /// Ends the daemon, or the host, and starts again.
        func restart() throws {
            compactions += store?.statistics.compactions ?? 0
            store = nil
            if durability == .disk, random.chance(40) {
                place.loseSharedMemory()
                rebuilds += 1
            }
            store = try RamStore.open(
                place.configuration(durability), session: session, layout: guest.layout, committed: committed.epoch,
                files: committed.files)
            guest.roll(back: committed.contents)
        }
    }

    @Test(arguments: [Durability.memory, .disk])
    func `after a crash anywhere the cache holds exactly the committed epoch`(_ durability: Durability) throws {
        var compactions = 0
        var rebuilds = 0
        for seed in UInt64(1)...9 {
            let world = try World(seed: seed, durability: durability)
            for round in 0..<14 {
                let crashes = world.random.chance(40)
                let end = crashes ? End.allCases[Int.random(in: 0..<6, using: &world.random)] : .complete
                try world.round(end)
                if crashes { try world.restart() }
                let holds = world.store?.holds(world.committed.contents)
                #expect(holds == true, "seed \(seed), round \(round), \(durability), ended \(end)")
                #expect(world.store?.applied == world.committed.epoch, "seed \(seed), round \(round)")
            }
            compactions += world.compactions + (world.store?.statistics.compactions ?? 0)
            rebuilds += world.rebuilds
        }
        // The rounds above mean nothing for disk durability unless these happened.
        if durability == .disk {
            #expect(compactions > 3)
            #expect(rebuilds > 3)
        }
    }

    @Test func `discarding an epoch leaves the last commit and the session goes on`() throws {
        for durability in Durability.allCases {
            let world = try World(seed: 77, durability: durability)
            for round in 0..<6 {
                try world.round(round % 2 == 0 ? .whileStaging : .sealed)
                let store = try #require(world.store)
                try store.discardOpenEpoch()
                #expect(store.holds(world.committed.contents), "round \(round), \(durability)")
                world.guest.roll(back: world.committed.contents)
                try world.round(.complete)
                #expect(store.holds(world.committed.contents), "round \(round), \(durability)")
            }
            try world.restart()
            #expect(world.store?.holds(world.committed.contents) == true)
        }
    }

    @Test func `shared memory that is gone is said so in memory durability`() throws {
        let world = try World(seed: 5, durability: .memory)
        try world.round(.complete)
        world.store = nil
        world.place.loseSharedMemory()
        do {
            try world.restart()
            Issue.record("a lost cache was opened")
        } catch let error as RamStoreError {
            guard case .lost = error.fault else {
                Issue.record("\(error)")
                return
            }
            #expect(error.epoch == world.committed.epoch)
            #expect(error.description.contains("cannot take over"))
        }
    }

    @Test func `a cache of the wrong epoch is refused, or made again from disk`() throws {
        for durability in Durability.allCases {
            let world = try World(seed: 6, durability: durability)
            try world.round(.complete)
            let before = world.committed
            try world.round(.complete)
            // A commit record that went back in time: the cache is ahead of it.
            world.committed = before
            if durability == .memory {
                #expect(throws: RamStoreError.self) { try world.restart() }
            } else {
                world.committed.files = before.files
                try world.restart()
                #expect(world.store?.holds(before.contents) == true)
            }
        }
    }
}
