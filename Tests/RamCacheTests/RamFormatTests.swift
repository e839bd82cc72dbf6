import RamCache
import Testing
import Units

@Suite struct RamFormatTests {
    private static let session = Identifier(high: 1, low: 2)

    private static func layout() throws -> RamLayout {
        try RamLayout(blocks: [.init(name: "pc.ram", length: 64 * 4096)])
    }

    /// A log of `epochs` epochs from 5 on with three batches each; returns it and the end of every seal.
    private static func log(epochs: Int, layout: RamLayout) -> (bytes: [UInt8], ends: [Int], chains: [UInt32]) {
        var random = SplitMix64(seed: 21)
        let page = UnsafeMutableRawPointer.allocate(byteCount: Sizes.page, alignment: 64)
        defer { page.deallocate() }
        let encoder = PageBatchEncoder(useDelta: false)
        var bytes = DeltaLog.header(
            session: session, layoutDigest: layout.digest, firstEpoch: Epoch(5), beginsSession: true)
        var ends: [Int] = []
        var chains: [UInt32] = []
        var chain: UInt32 = 0
        for epoch in 5..<5 + UInt64(epochs) {
            var digest = RamEpochDigest()
            for index in 0..<UInt32(3) {
                PagePattern.fivePercent.fill(page, using: &random)
                encoder.add(block: 0, page: UInt64(index), data: UnsafeRawPointer(page), shadow: nil)
                var batch: [UInt8] = []
                _ = encoder.finish(into: &batch)
                batch.withUnsafeBytes { digest.add($0) }
                bytes += DeltaLog.batchHeader(
                    epoch: Epoch(epoch), index: index, length: batch.count, digest: digest.value)
                bytes += batch
            }
            chain = DeltaLog.chain(after: chain, epoch: Epoch(epoch), digest: digest)
            bytes += DeltaLog.seal(epoch: Epoch(epoch), digest: digest, chain: chain)
            ends.append(bytes.count)
            chains.append(chain)
        }
        return (bytes, ends, chains)
    }

    /// Reads to the end; returns the seals seen and the error, if any.
    private static func read(_ bytes: [UInt8], layout: RamLayout) -> (seals: [UInt64], error: RamFormatError?) {
        var seals: [UInt64] = []
        let error: RamFormatError? = bytes.withUnsafeBytes { buffer in
            do throws(RamFormatError) {
                var reader = try DeltaLogReader(header: buffer, session: session, layoutDigest: layout.digest)
                while let record = try reader.next(UnsafeRawBufferPointer(rebasing: buffer[Int(reader.offset)...])) {
                    switch record {
                    case .seal(let epoch, _, _, _): seals.append(epoch.rawValue)
                    case .batch(let batch, let epoch):
                        do throws(RamBatchError) {
                            try PageBatch.verify(batch)
                        } catch {
                            throw RamFormatError(.batch, offset: reader.offset, epoch: epoch, batch: error)
                        }
                    }
                }
                return nil
            } catch { return error }
        }
        return (seals, error)
    }

    @Test func `a delta log reads back epoch by epoch`() throws {
        let layout = try Self.layout()
        let log = Self.log(epochs: 3, layout: layout)
        let result = Self.read(log.bytes, layout: layout)
        #expect(result.seals == [5, 6, 7])
        #expect(result.error == nil)
        #expect(Set(log.chains).count == 3)
    }

    @Test func `a torn tail leaves the epochs before it`() throws {
        let layout = try Self.layout()
        let log = Self.log(epochs: 3, layout: layout)
        for count in DeltaLog.headerBytes..<log.bytes.count {
            let result = Self.read(Array(log.bytes[0..<count]), layout: layout)
            let sealed = log.ends.filter { $0 <= count }.count
            #expect(result.seals.count == sealed, "cut at \(count)")
        }
    }

    @Test func `a flipped bit anywhere is found and its epoch is named`() throws {
        let layout = try Self.layout()
        let log = Self.log(epochs: 3, layout: layout)
        var random = SplitMix64(seed: 22)
        for round in 0..<600 {
            let position = round < 200 ? round : Int.random(in: 0..<log.bytes.count, using: &random)
            var broken = log.bytes
            broken[position] ^= 1 << UInt8.random(in: 0..<8, using: &random)
            let result = Self.read(broken, layout: layout)
            let error = try #require(result.error, "seed 22, byte \(position)")
            let damaged = log.ends.firstIndex { position < $0 } ?? 0
            #expect(result.seals.count == (position < 64 ? 0 : damaged), "seed 22, byte \(position)")
            if position >= 64 { #expect(error.epoch == Epoch(5 + UInt64(damaged)), "seed 22, byte \(position)") }
        }
    }

    @Test func `a log of another session or layout is refused`() throws {
        let layout = try Self.layout()
        let other = try RamLayout(blocks: [.init(name: "pc.ram", length: 128 * 4096)])
        #expect(Self.read(Self.log(epochs: 1, layout: other).bytes, layout: layout).error?.fault == .layout)
        let foreign = DeltaLog.header(
            session: Identifier(high: 9, low: 9), layoutDigest: layout.digest, firstEpoch: Epoch(1), beginsSession: true
        )
        #expect(Self.read(foreign, layout: layout).error?.fault == .session)
    }

    @Test func `an epoch moved within a log is refused`() throws {
        let layout = try Self.layout()
        let log = Self.log(epochs: 3, layout: layout)
        let header = Array(log.bytes[0..<64])
        let first = Array(log.bytes[64..<log.ends[0]])
        let second = Array(log.bytes[log.ends[0]..<log.ends[1]])
        let third = Array(log.bytes[log.ends[1]...])
        #expect(Self.read(header + second, layout: layout).error?.fault == .epoch)
        let skipped = Self.read(header + first + third, layout: layout)
        #expect(skipped.seals == [5])
        #expect(skipped.error?.fault == .epoch)
        #expect(Self.read(header + first + first, layout: layout).error?.fault == .epoch)
    }

    @Test func `base checksums read back, and every flipped bit is found`() throws {
        let layout = try Self.layout()
        var sums = BaseImageSums(session: Self.session, layout: layout, epoch: Epoch(9))
        sums.pages[3] = 0x1234_5678
        let bytes = sums.encoded()
        #expect(UInt64(bytes.count) == BaseImageSums.fileBytes(pageCount: layout.pageCount))
        func decode(_ bytes: [UInt8]) -> BaseImageSums? {
            bytes.withUnsafeBytes { buffer in
                try? BaseImageSums(decoding: buffer, session: Self.session, layout: layout, epoch: Epoch(9))
            }
        }
        #expect(decode(bytes) == sums)
        for position in bytes.indices {
            var broken = bytes
            broken[position] ^= 0x10
            #expect(decode(broken) == nil, "byte \(position)")
        }
        #expect(decode(Array(bytes.dropLast())) == nil)
        #expect(decode(bytes + [0]) == nil)
        let digest = bytes.withUnsafeBytes { BaseImageSums.digest(ofFile: $0) }
        var other = sums
        other.pages[4] = 1
        #expect(other.encoded().withUnsafeBytes { BaseImageSums.digest(ofFile: $0) } != digest)
    }

    @Test func `the newer valid slot of a marker counts`() throws {
        func marker(_ sequence: UInt64, _ state: RamMarker.State) -> RamMarker {
            RamMarker(
                session: Self.session, layoutDigest: 7, epoch: Epoch(sequence), sequence: sequence, state: state)
        }
        var file = [UInt8](repeating: 0, count: 128)
        func put(_ marker: RamMarker) {
            file.replaceSubrange(Int(marker.offset)..<Int(marker.offset) + 64, with: marker.encoded())
        }
        func newest() -> RamMarker? { file.withUnsafeBytes { RamMarker.newest(in: $0) } }
        #expect(newest() == nil)
        put(marker(1, .filling))
        #expect(newest() == marker(1, .filling))
        put(marker(2, .filled))
        #expect(newest() == marker(2, .filled))
        put(marker(3, .applying))
        #expect(newest() == marker(3, .applying))
        file[Int(marker(3, .applying).offset) + 41] ^= 1
        #expect(newest() == marker(2, .filled))
    }

    @Test func `a staging map's header reads back and is guarded`() throws {
        var header = StagingMapHeader(session: Self.session, layoutDigest: 8, epoch: Epoch(4))
        header.entryCount = 77
        header.entryChecksum = 5
        header.state = .sealed
        header.batches = 3
        header.pages = 78
        header.batchBytes = 1000
        header.digest = 6
        let bytes = header.encoded()
        #expect(bytes.count == StagingMapHeader.bytes)
        #expect(try bytes.withUnsafeBytes { try StagingMapHeader(decoding: $0) } == header)
        for position in bytes.indices {
            var broken = bytes
            broken[position] ^= 1
            #expect(throws: RamFormatError.self) {
                try broken.withUnsafeBytes { _ = try StagingMapHeader(decoding: $0) }
            }
        }
    }

    @Test func `a staging entry keeps page, zero flag and slot apart`() {
        let entry = StagingEntry(page: 0xFFF_FFFF, isZero: true, slot: 12)
        #expect(entry.page == 0xFFF_FFFF)
        #expect(entry.isZero)
        #expect(entry.slot == 12)
        let data = StagingEntry(page: 1, isZero: false, slot: StagingEntry.noSlot)
        #expect(!data.isZero)
        #expect(data.slot == StagingEntry.noSlot)
        #expect(data.page == 1)
    }
}
