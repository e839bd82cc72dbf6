import AsyncIO
import Glibc
import RamCache
import SystemPackage
import Testing
import Units

@testable import Node

@Suite struct RamStoreTests {
    private static func layout() throws -> RamLayout { try RamLayout(blocks: RamTestGuest.blocks) }

    @Test func `the former session stays until the new one's first epoch is committed`() throws {
        let place = RamTestPlace()
        let layout = try Self.layout()
        var random = RamTestRandom(seed: 31)
        let guest = RamTestGuest(layout)
        let first = Identifier(high: 1, low: 1)
        let old = try RamStore.create(
            place.configuration(.disk), session: first, layout: layout, firstEpoch: Epoch(1))
        _ = guest.run(changes: 100, &random)
        try old.take(Epoch(1), guest.encode(0..<layout.pageCount, &random))
        let contents = guest.memory
        let files = old.recoveryFiles

        // A second session that ends within its initial copy.
        for (number, ending) in ["dropped", "discarded"].enumerated() {
            let session = Identifier(high: 2, low: UInt64(number))
            let store = try RamStore.create(
                place.configuration(.disk), session: session, layout: layout, firstEpoch: Epoch(2))
            guest.forgetShadow()
            try store.beginEpoch(Epoch(2))
            try store.stage(Epoch(2), guest.encode(0..<layout.pageCount, &random))
            if ending == "discarded" {
                _ = try store.seal(epoch: Epoch(2))
                try store.discardOpenEpoch()
            }
            let reopened = try RamStore.open(
                place.configuration(.disk), session: first, layout: layout, committed: Epoch(1), files: files)
            #expect(reopened.holds(contents), "\(ending)")
            #expect(RamTestDirectory.names(place.memory.path) == ["cache-" + first.hex], "\(ending)")
            #expect(RamTestDirectory.names(place.disk.path) == ["delta-1.log"], "\(ending)")
        }

        // A third one that is committed.
        let third = Identifier(high: 3, low: 3)
        let store = try RamStore.create(
            place.configuration(.disk), session: third, layout: layout, firstEpoch: Epoch(2))
        guest.forgetShadow()
        _ = guest.run(changes: 20, &random)
        try store.take(Epoch(2), guest.encode(0..<layout.pageCount, &random))
        #expect(store.holds(guest.memory))
        #expect(RamTestDirectory.names(place.memory.path) == ["cache-" + third.hex])
        while try !store.compactSlice(maxBytes: 1 << 20) {}
        #expect(!RamTestDirectory.names(place.disk.path).contains("delta-1.log"))
        place.loseSharedMemory()
        let again = try RamStore.open(
            place.configuration(.disk), session: third, layout: layout, committed: Epoch(2), files: store.recoveryFiles)
        #expect(again.holds(guest.memory))
    }

    @Test func `a wrong batch breaks its epoch only`() throws {
        let place = RamTestPlace()
        let layout = try Self.layout()
        var random = RamTestRandom(seed: 32)
        let guest = RamTestGuest(layout)
        let store = try RamStore.create(
            place.configuration(.disk), session: Identifier(high: 1, low: 1), layout: layout, firstEpoch: Epoch(1))
        _ = guest.run(changes: 50, &random)
        try store.take(Epoch(1), guest.encode(0..<layout.pageCount, &random))
        let contents = guest.memory
        _ = guest.run(changes: 30, &random)
        var batches = guest.encode(0..<layout.pageCount, &random)
        let last = batches.count - 1
        batches[last][batches[last].count - 1] ^= 1
        try store.beginEpoch(Epoch(2))
        do {
            try store.stage(Epoch(2), batches)
            Issue.record("a damaged batch was taken")
        } catch let error as RamStoreError {
            guard case .batch(let fault) = error.fault else {
                Issue.record("\(error)")
                return
            }
            #expect(fault.fault == .checksum)
            #expect(error.epoch == Epoch(2))
        }
        do throws(RamStoreError) {
            _ = try store.seal(epoch: Epoch(2))
            Issue.record("a broken epoch was sealed")
        } catch {
            #expect(error.fault == .brokenEpoch)
        }
        try store.discardOpenEpoch()
        #expect(store.holds(contents))
        guest.roll(back: contents)
        let dirty = guest.run(changes: 10, &random)
        try store.take(Epoch(2), guest.encode(dirty.sorted(), &random))
        #expect(store.holds(guest.memory))
    }

    @Test func `the seal counts what the primary counted`() throws {
        let place = RamTestPlace()
        let layout = try Self.layout()
        var random = RamTestRandom(seed: 33)
        let guest = RamTestGuest(layout, useDelta: false)
        let store = try RamStore.create(
            place.configuration(.memory), session: Identifier(high: 1, low: 1), layout: layout, firstEpoch: Epoch(1))
        _ = guest.run(changes: 100, &random)
        let batches = guest.encode(0..<layout.pageCount, &random)
        var digest = RamEpochDigest()
        for batch in batches { batch.withUnsafeBytes { digest.add($0) } }
        let sealed = try store.take(Epoch(1), batches)
        #expect(sealed.digest == digest.value)
        #expect(sealed.batches == digest.batches)
        #expect(sealed.pages == UInt64(layout.pageCount))
        #expect(sealed.bytes == UInt64(batches.reduce(0) { $0 + $1.count }))
        #expect(store.holds(guest.memory))
        #expect(store.recoveryFiles.isEmpty)
        #expect(store.diskBytes == 0)
        #expect(RamTestDirectory.names(place.disk.path).isEmpty)
    }

    @Test func `zero pages take no memory and staging gives back what it does not keep`() throws {
        let place = RamTestPlace()
        let layout = try RamLayout(blocks: [.init(name: "pc.ram", length: 16 << 20)])
        var random = RamTestRandom(seed: 34)
        let guest = RamTestGuest(layout)
        let store = try RamStore.create(
            place.configuration(.memory), session: Identifier(high: 1, low: 1), layout: layout, firstEpoch: Epoch(1))
        try store.take(Epoch(1), guest.encode(0..<layout.pageCount, &random))
        #expect(store.statistics.cacheBytes == 0)
        // Every page is sent at once, then none.
        let sender = RamTestGuest(layout, useDelta: false)
        _ = sender.run(changes: 1500, &random)
        try store.beginEpoch(Epoch(2))
        try store.stage(Epoch(2), sender.encode(0..<layout.pageCount, &random))
        _ = try store.seal(epoch: Epoch(2))
        #expect(store.statistics.stagingBytes > 1 << 20)
        try store.apply(epoch: Epoch(2))
        #expect(store.statistics.stagingBytes < 64 * 4096 + 2 * 65536)
        #expect(store.holds(sender.memory))
        try store.take(Epoch(3), [])
        #expect(store.holds(sender.memory))
    }

    @Test func `nobody else can read the files`() throws {
        let place = RamTestPlace()
        let layout = try Self.layout()
        let store = try RamStore.create(
            place.configuration(.disk), session: Identifier(high: 1, low: 1), layout: layout, firstEpoch: Epoch(1))
        try store.take(Epoch(1), [])
        let cache = place.memory.path + "/cache-" + store.session.hex
        #expect(RamTestDirectory.mode(cache) == 0o700)
        for directory in [cache, place.disk.path] {
            let names = RamTestDirectory.names(directory)
            #expect(!names.isEmpty)
            for name in names { #expect(RamTestDirectory.mode(directory + "/" + name) == 0o600, "\(name)") }
        }
        #expect(store.mappedPath(block: 2) == cache + "/2-_rom_etc_acpi_tables.ram")
        #expect(store.contents(block: 1).count == 5 * 4096)
        #expect(RamTestDirectory.size(store.mappedPath(block: 0)) == 300 * 4096)
    }

    @Test func `a directory in shared memory that is not ours alone is refused`() throws {
        let place = RamTestPlace()
        let base = place.memory.path + "/base"
        #expect(try RamTmpfs.prepare(base: base, name: "store-guest") == base + "/store-guest")
        #expect(RamTestDirectory.mode(base) == 0o700)
        #expect(try RamTmpfs.prepare(base: base, name: "store-guest") == base + "/store-guest")
        func refusal() -> String? {
            do throws(RamStoreError) {
                _ = try RamTmpfs.prepare(base: base, name: "store-guest")
                return nil
            } catch {
                guard case .unsafeDirectory(let reason) = error.fault else { return "\(error)" }
                return "unsafe: " + reason
            }
        }
        chmod(base, 0o750)
        #expect(refusal() == "unsafe: others may enter it (mode 750)")
        chmod(base, 0o700)
        #expect(refusal() == nil)
        rename(base, base + "-moved")
        symlink(base + "-moved", base)
        #expect(refusal() == "unsafe: it is not a directory")
        unlink(base)
        close(open(base, O_CREAT | O_WRONLY, 0o600))
        #expect(refusal() == "unsafe: it is not a directory")
        if geteuid() == 0 {
            unlink(base)
            rename(base + "-moved", base)
            chown(base, 12345, 12345)
            #expect(refusal() == "unsafe: it belongs to user 12345")
            chown(base, 0, 0)
        }
    }

    @Test func `a full file system can be told from other failures`() {
        let full = IOError(operation: "fallocate", path: "/x", offset: 0, errno: .noSpace)
        #expect(RamStoreError(.io(full), path: "/x", epoch: Epoch(4)).isNoSpace)
        let broken = IOError(operation: "pwrite", path: "/x", offset: 0, errno: .ioError)
        #expect(!RamStoreError(.io(broken), path: "/x").isNoSpace)
        #expect(!RamStoreError(.brokenEpoch, path: "/x").isNoSpace)
        #expect(RamStoreError(.io(full), path: "/x", epoch: Epoch(4)).description.contains("epoch 4"))
    }

    @Test func `a sealed epoch that is damaged in shared memory is not applied`() throws {
        let place = RamTestPlace()
        let layout = try Self.layout()
        var random = RamTestRandom(seed: 35)
        let guest = RamTestGuest(layout)
        let session = Identifier(high: 1, low: 1)
        let store = try RamStore.create(
            place.configuration(.memory), session: session, layout: layout, firstEpoch: Epoch(1))
        _ = guest.run(changes: 50, &random)
        try store.take(Epoch(1), guest.encode(0..<layout.pageCount, &random))
        let dirty = guest.run(changes: 30, &random)
        try store.beginEpoch(Epoch(2))
        try store.stage(Epoch(2), guest.encode(dirty.sorted(), &random))
        _ = try store.seal(epoch: Epoch(2))
        let map = place.memory.path + "/cache-" + session.hex + "/staging.map"
        RamTestDirectory.flip(map, at: StagingMapHeader.entriesOffset + 3, bit: 1)
        do throws(RamStoreError) {
            _ = try RamStore.open(
                place.configuration(.memory), session: session, layout: layout, committed: Epoch(2), files: [])
            Issue.record("a damaged staging was applied")
        } catch {
            guard case .lost = error.fault else {
                Issue.record("\(error)")
                return
            }
        }
    }

    @Test func `a guest of a tebibyte takes only what it writes`() throws {
        let place = RamTestPlace()
        let layout = try RamLayout(blocks: [
            .init(name: "pc.ram", length: (1 << 40) - (2 << 20)), .init(name: "vga.vram", length: 1 << 20),
            .init(name: "/rom@etc/acpi/tables", length: 4096),
        ])
        let store = try RamStore.create(
            place.configuration(.memory), session: Identifier(high: 9, low: 9), layout: layout, firstEpoch: Epoch(1))
        let last = layout.blocks[0].pageCount - 1
        func batch(_ value: UInt8) -> [UInt8] {
            let encoder = PageBatchEncoder(useDelta: false)
            let contents = [UInt8](repeating: value, count: Sizes.page)
            var bytes: [UInt8] = []
            contents.withUnsafeBytes { page in
                for number in [0, last / 2, last] { encoder.add(block: 0, page: number, data: page, shadow: nil) }
            }
            _ = encoder.finish(into: &bytes)
            return bytes
        }
        try store.take(Epoch(1), [batch(1)])
        try store.take(Epoch(2), [batch(2)])
        for number in [0, last / 2, last] {
            #expect(store.page(block: 0, page: number).load(fromByteOffset: 77, as: UInt8.self) == 2)
        }
        #expect(store.page(block: 0, page: 5 << 20).load(as: UInt8.self) == 0)
        #expect(store.statistics.cacheBytes + store.statistics.stagingBytes < 8 << 20)
    }

    @Test func `many staged pages are copied by several threads, each to its place`() throws {
        let place = RamTestPlace()
        let layout = try RamLayout(blocks: [
            .init(name: "pc.ram", length: 3000 * 4096), .init(name: "vga.vram", length: 700 * 4096),
        ])
        for seed in UInt64(1)...3 {
            var random = RamTestRandom(seed: seed)
            let guest = RamTestGuest(layout)
            let store = try RamStore.create(
                place.configuration(.memory), session: Identifier(high: 3, low: seed), layout: layout,
                firstEpoch: Epoch(1))
            try store.take(Epoch(1), guest.encode(0..<layout.pageCount, &random))
            for epoch in UInt64(2)...4 {
                let dirty = guest.run(changes: 3000, &random)
                try store.take(Epoch(epoch), guest.encode(dirty, &random))
                #expect(store.holds(guest.memory), "seed \(seed), epoch \(epoch)")
            }
        }
    }
}
