import Glibc
import RamCache
import Testing
import Units

@testable import Node

@Suite struct RamStoreDiskTests {
    /// A store after some epochs, with its files in a state that has a base and logs.
    private struct Fixture {
        let place = RamTestPlace()
        let session = Identifier(high: 3, low: 4)
        let guest: RamTestGuest
        let store: RamStore
        var epoch: Epoch
        var random: RamTestRandom

        /// Bytes of background work that an epoch allows; nil: until nothing is left.
        var slice: Int?

        init(seed: UInt64, epochs: Int, logLimitBytes: UInt64? = nil, slice: Int? = nil) throws {
            self.slice = slice
            let layout = try RamLayout(blocks: RamTestGuest.blocks)
            guest = RamTestGuest(layout)
            random = RamTestRandom(seed: seed)
            epoch = Epoch(1)
            var configuration = place.configuration(.disk)
            configuration.logLimitBytes = logLimitBytes
            store = try RamStore.create(configuration, session: session, layout: layout, firstEpoch: epoch)
            _ = guest.run(changes: 200, &random)
            try store.take(epoch, guest.encode(0..<layout.pageCount, &random))
            for _ in 0..<epochs { try next(changes: 100) }
        }

        mutating func next(changes: Int) throws {
            epoch = epoch.next
            let dirty = guest.run(changes: changes, &random)
            try store.take(epoch, guest.encode(dirty.sorted(), &random))
            if let slice {
                _ = try store.compactSlice(maxBytes: slice)
                return
            }
            while try !store.compactSlice(maxBytes: 100_000) {}
        }

        var archive: RamArchive {
            RamArchive(
                directory: place.disk.path, session: session, layout: guest.layout, epoch: epoch,
                files: store.recoveryFiles)
        }
    }

    @Test func `a flipped bit anywhere in a needed file is found and the file is named`() throws {
        let fixture = try Fixture(seed: 1, epochs: 6)
        var random = RamTestRandom(seed: 2)
        let files = fixture.store.recoveryFiles
        #expect(Set(files.map(\.kind)) == [.base, .log])
        #expect(files.count >= 2)
        var targets: [(name: String, length: Int)] = files.map { ($0.name, Int($0.length)) }
        for file in files where file.kind == .base {
            let name = RamFileReference.sumName(file.epoch)
            targets.append((name, RamTestDirectory.size(fixture.place.disk.path + "/" + name)))
        }
        let intact = try fixture.archive.verify()
        #expect(intact.bytes > 0)
        for target in targets {
            let path = fixture.place.disk.path + "/" + target.name
            for round in 0..<20 {
                let offset = round < 2 ? round : Int.random(in: 0..<target.length, using: &random)
                let bit = UInt8.random(in: 0..<8, using: &random)
                RamTestDirectory.flip(path, at: offset, bit: bit)
                do throws(RamStoreError) {
                    try fixture.archive.verify()
                    Issue.record("seed 2: bit \(bit) of byte \(offset) of \(target.name) was not found")
                } catch {
                    #expect(error.path == path, "seed 2, byte \(offset) of \(target.name)")
                    #expect(error.epoch != nil)
                    guard case .damaged = error.fault else {
                        Issue.record("\(error)")
                        continue
                    }
                }
                RamTestDirectory.flip(path, at: offset, bit: bit)
            }
        }
        #expect(try fixture.archive.verify() == intact)
    }

    @Test func `a hole in a base where data was is found`() throws {
        let fixture = try Fixture(seed: 9, epochs: 6)
        let base = try #require(fixture.store.recoveryFiles.first { $0.kind == .base })
        let path = fixture.place.disk.path + "/" + base.name
        try fixture.archive.verify()
        // The same length, and nothing in it.
        truncate(path, 0)
        truncate(path, off_t(base.length))
        do throws(RamStoreError) {
            try fixture.archive.verify()
            Issue.record("a base that was emptied was not found")
        } catch {
            guard case .damaged = error.fault, error.path == path else {
                Issue.record("\(error)")
                return
            }
        }
    }

    @Test func `a damaged or missing file stops the rebuild`() throws {
        let fixture = try Fixture(seed: 3, epochs: 5)
        let files = fixture.store.recoveryFiles
        func open(_ files: [RamFileReference]) throws -> RamStore {
            fixture.place.loseSharedMemory()
            return try RamStore.open(
                fixture.place.configuration(.disk), session: fixture.session, layout: fixture.guest.layout,
                committed: fixture.epoch, files: files)
        }
        let log = try #require(files.last)
        let path = fixture.place.disk.path + "/" + log.name
        RamTestDirectory.flip(path, at: Int(log.length) - 10, bit: 3)
        #expect(throws: RamStoreError.self) { _ = try open(files) }
        RamTestDirectory.flip(path, at: Int(log.length) - 10, bit: 3)
        #expect(throws: RamStoreError.self) { _ = try open(Array(files.dropFirst())) }
        #expect(throws: RamStoreError.self) { _ = try open([]) }
        #expect(try open(files).holds(fixture.guest.memory))
        truncate(path, off_t(log.length) - 1)
        #expect(throws: RamStoreError.self) { _ = try open(files) }
        // Also when the cache is still there: nothing may be appended to a log that was cut.
        unlink(path)
        #expect(throws: RamStoreError.self) { _ = try open(files) }
    }

    @Test func `an uncommitted tail of the log is cut when the store is opened`() throws {
        let fixture = try Fixture(seed: 4, epochs: 2)
        let files = fixture.store.recoveryFiles
        let contents = fixture.guest.memory
        var random = RamTestRandom(seed: 9)
        let next = fixture.epoch.next
        try fixture.store.beginEpoch(next)
        _ = fixture.guest.run(changes: 20, &random)
        try fixture.store.stage(next, fixture.guest.encode(0..<300, &random))
        _ = try fixture.store.seal(epoch: next)
        func logBytes() -> Int {
            let directory = fixture.place.disk.path
            return RamTestDirectory.names(directory).filter { $0.hasPrefix("delta-") }
                .reduce(0) { $0 + RamTestDirectory.size(directory + "/" + $1) }
        }
        let vouched = files.filter { $0.kind == .log }.reduce(0) { $0 + Int($1.length) }
        #expect(logBytes() > vouched)
        for lost in [false, true] {
            if lost { fixture.place.loseSharedMemory() }
            let store = try RamStore.open(
                fixture.place.configuration(.disk), session: fixture.session, layout: fixture.guest.layout,
                committed: fixture.epoch, files: files)
            #expect(store.holds(contents))
            #expect(logBytes() == vouched)
        }
    }

    @Test func `disk use stays within the stated bound and retired files go`() throws {
        var fixture = try Fixture(seed: 5, epochs: 0)
        let ram = fixture.guest.layout.total
        var compactionsSeen = 0
        for _ in 0..<30 {
            try fixture.next(changes: 100)
            let limit = 2 * ram + ram / 2 + ram / 2 + 101 * 4200 + 65536
            #expect(fixture.store.diskBytes <= limit)
            compactionsSeen = fixture.store.statistics.compactions
        }
        #expect(compactionsSeen > 3)
        // One more epoch vouches for the last base; then only what it names is left.
        try fixture.next(changes: 1)
        try fixture.next(changes: 1)
        var needed = Set(fixture.store.recoveryFiles.map(\.name))
        for file in fixture.store.recoveryFiles where file.kind == .base {
            needed.insert(RamFileReference.sumName(file.epoch))
        }
        #expect(Set(RamTestDirectory.names(fixture.place.disk.path)) == needed)
    }

    @Test(arguments: [16_000, 400_000, 3_000_000] as [UInt64])
    func `the length of log that was asked for bounds disk use and what a restart reads`(limit: UInt64) throws {
        // As the daemon does it: one bounded piece of background work after each epoch.
        var fixture = try Fixture(seed: 8, epochs: 0, logLimitBytes: limit, slice: 32 << 10)
        #expect(fixture.store.logLimitBytes == limit)
        let ram = fixture.guest.layout.total
        let epoch: UInt64 = 101 * 4200
        var mostRead: UInt64 = 0
        for round in 0..<32 {
            try fixture.next(changes: 100)
            // Two bases with their checksums, and logs.
            let logs = limit + ram / 2 + 4 * epoch
            #expect(fixture.store.diskBytes <= 2 * (ram + ram / 512) + logs + 131_072, "round \(round)")
            let files = fixture.store.recoveryFiles
            let read = files.reduce(0) { $0 + $1.length }
            mostRead = max(mostRead, read)
            #expect(read <= ram + logs, "round \(round)")
            if round % 16 == 15 { #expect(try fixture.archive.verify().bytes == read, "round \(round)") }
        }
        #expect(fixture.store.statistics.compactions > (limit < 1_000_000 ? 3 : 0))
        #expect(mostRead > limit)
    }

    @Test func `a compaction that fails is reported and tried again, and nothing is lost`() throws {
        var fixture = try Fixture(seed: 6, epochs: 0)
        // Something sits where every base of the next epochs would go.
        for epoch in 1...40 { mkdir(fixture.place.disk.path + "/base-\(epoch).ram", 0o700) }
        for _ in 0..<6 {
            try? fixture.next(changes: 100)
            // The directories cannot be unlinked either; the store says so and goes on.
        }
        #expect(fixture.store.statistics.compactions == 0)
        let failure = try #require(fixture.store.statistics.compactionFailure)
        #expect(failure.contains("base-"))
        for epoch in 1...40 { rmdir(fixture.place.disk.path + "/base-\(epoch).ram") }
        for _ in 0..<12 { try fixture.next(changes: 60) }
        #expect(fixture.store.statistics.compactions > 0)
        #expect(fixture.store.statistics.compactionFailure == nil)
        try fixture.archive.verify()
        fixture.place.loseSharedMemory()
        let store = try RamStore.open(
            fixture.place.configuration(.disk), session: fixture.session, layout: fixture.guest.layout,
            committed: fixture.epoch, files: fixture.store.recoveryFiles)
        #expect(store.holds(fixture.guest.memory))
    }

    @Test func `files of another session or layout are refused`() throws {
        let fixture = try Fixture(seed: 7, epochs: 4)
        let files = fixture.store.recoveryFiles
        let other = try RamLayout(blocks: [.init(name: "pc.ram", length: fixture.guest.layout.total)])
        for (session, layout) in [
            (Identifier(high: 1, low: 1), fixture.guest.layout), (fixture.session, other),
        ] {
            let archive = RamArchive(
                directory: fixture.place.disk.path, session: session, layout: layout, epoch: fixture.epoch,
                files: files)
            #expect(throws: RamStoreError.self) { try archive.verify() }
        }
    }
}
