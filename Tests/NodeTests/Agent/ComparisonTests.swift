import AsyncIO
import BlockReplica
import Link
import NIOCore
import Testing
import TestSupport
import Units

@testable import Node

@Suite("The initial copy sends what the secondary does not have")
struct ComparisonTests {
    private static let block = 64 << 10
    /// What is compared, on disks as small as these.
    private static let unit = 4096
    /// Commands, device state and the like.
    private static let small: UInt64 = 20_000

    /// A disk with holes, blocks of zeroes and data; its last block is short.
    private func disk(_ random: inout SplitMix64, blocks: Int = 200) -> [UInt8] {
        var disk = [UInt8](repeating: 0, count: blocks * Self.block + 1536)
        for block in 0...blocks where block % 4 != 1 {
            let value = UInt8.random(in: 1...255, using: &random)
            let start = block * Self.block
            for index in start..<min(start + Self.block, disk.count) { disk[index] = value &+ UInt8(index & 7) }
        }
        return disk
    }

    @Test("a new replica gets data, not holes and zeroes, and a second attach gets nothing")
    func againIsFree() async throws {
        let place = try Place()
        defer { place.remove() }
        let protection = try await Protection(place)
        var random = SplitMix64(seed: 1)
        let disk = disk(&random)
        let data = UInt64((0...200).count { $0 % 4 != 1 } - 1) * UInt64(Self.block) + 1536
        let first = try await protection.protect(disk)
        #expect(first.bytes > data && first.bytes < data + data / 100 + Self.small)
        #expect(try protection.diskContents() == disk)
        let file = try DirectFile(path: protection.diskPath, mode: .readOnly)
        #expect(try file.allocatedBytes() < data + 1 << 20, "blocks of zeroes take no space")
        for zeroesFirst in [true, false] {
            let again = try await protection.protect(disk, zeroesFirst: zeroesFirst)
            #expect(again.bytes < Self.small, "\(again.bytes) bytes for nothing new")
            #expect(again.skipped == data - 1536 + UInt64(Self.unit))
            #expect(try protection.diskContents() == disk)
        }
        try await protection.stop()
    }

    @Test("what differs in k blocks costs about k blocks", arguments: [UInt64](1...6))
    func differences(seed: UInt64) async throws {
        let place = try Place()
        defer { place.remove() }
        let protection = try await Protection(place)
        var random = SplitMix64(seed: seed)
        var disk = disk(&random)
        _ = try await protection.protect(disk)
        for round in 0..<3 {
            var changed: Set<Int> = []
            for _ in 0..<Int.random(in: 0...20, using: &random) {
                let place = Int.random(in: 0..<disk.count, using: &random)
                let block = place / Self.unit
                changed.insert(block)
                switch Int.random(in: 0..<3, using: &random) {
                case 0:
                    for index in block * Self.unit..<min((block + 1) * Self.unit, disk.count) { disk[index] = 0 }
                case 1: disk[place] ^= 0x55
                default: disk[place] = UInt8.random(in: 0...255, using: &random)
                }
            }
            let zeroesFirst = Bool.random(using: &random)
            let traffic = try await protection.protect(disk, zeroesFirst: zeroesFirst)
            let most = UInt64(changed.count * (Self.unit + 200)) + Self.small
            #expect(traffic.bytes <= most, "seed \(seed), round \(round): \(changed.count) blocks")
            #expect(try protection.diskContents() == disk, "seed \(seed), round \(round)")
        }
        try await protection.stop()
    }

    @Test("writes of the guest during the copy are not skipped", arguments: [UInt64](1...8))
    func guestWrites(seed: UInt64) async throws {
        let place = try Place()
        defer { place.remove() }
        let protection = try await Protection(place)
        var random = SplitMix64(seed: seed)
        var disk = disk(&random, blocks: 40)
        _ = try await protection.protect(disk)
        // The guest writes behind the zeroing and before the copy reads; what it writes last is copied once more.
        var writes: [(offset: Int, bytes: [UInt8])] = []
        for _ in 0..<30 {
            let sectors = disk.count / 512
            let start = Int.random(in: 0..<sectors, using: &random)
            let count = Int.random(in: 1...min(200, sectors - start), using: &random)
            let value = UInt8.random(in: 0...1, using: &random)
            writes.append((start * 512, [UInt8](repeating: value, count: count * 512)))
        }
        for write in writes { disk.replaceSubrange(write.offset..<write.offset + write.bytes.count, with: write.bytes) }
        _ = try await protection.protect(disk) { [writes] core in
            for write in writes {
                write.bytes.withUnsafeBytes { core.diskWrite(disk: 0, offset: UInt64(write.offset), bytes: $0) }
            }
        }
        #expect(try protection.diskContents() == disk, "seed \(seed)")
        try await protection.stop()
    }

    @Test("digests of another disk, too many, too few, out of order or twice end the session")
    func hostileDigests() async throws {
        let place = try Place()
        defer { place.remove() }
        let protection = try await Protection(place)
        let size = UInt64(3 * Self.unit + 512)
        let digest = BlockDigest(high: 1, low: 2)
        let whole = DiskDigests(disk: 0, isLast: true, first: 0, runs: [.zeroes(3), .data([digest])])
        func digests(
            _ first: UInt64, _ runs: [DiskDigests.Run], last: Bool = false, disk: Int = 0
        ) -> DiskDigests { DiskDigests(disk: disk, isLast: last, first: first, runs: runs) }
        let wrong: [(String, [DiskDigests])] = [
            ("another disk", [digests(0, [.zeroes(1)], disk: 1)]),
            ("too many zeroes", [digests(0, [.zeroes(5)])]),
            ("very many zeroes", [digests(0, [.zeroes(Int(Int32.max)), .zeroes(Int(Int32.max))])]),
            ("too many digests", [digests(0, [.data([digest, digest, digest, digest, digest])])]),
            ("a gap", [digests(1, [.zeroes(1)])]),
            ("far away", [digests(.max, [.zeroes(1)])]),
            ("again", [digests(0, [.zeroes(1)]), digests(0, [.zeroes(1)])]),
            ("too few", [digests(0, [.zeroes(3)], last: true)]),
            ("behind the last", [whole, whole]),
            ("nothing", [digests(0, [], last: true)]),
        ]
        for (name, frames) in wrong + [("right", [whole])] {
            let (connected, core) = try await protection.connect(size: size)
            let generation = connected.welcome.generation
            let hasEnded = try await protection.loop.submit {
                for digests in frames {
                    var writer = ByteWriter()
                    let header = Frame.append(digests, generation: generation, epoch: .none, to: &writer)
                    let payload = ByteBuffer(bytes: writer.bytes[FrameHeader.length...])
                    core.value.received(LinkFrame(header: header, payload: payload))
                }
                return core.value.hasEnded
            }.get()
            #expect(hasEnded == (name != "right"), "\(name)")
            #expect(
                try await protection.loop.submit { core.value.isCompared }.get()
                    == (name == "right" || name == "behind the last"))
            try await connected.channel.close()
            try await protection.waitForIdle()
        }
        try await protection.stop()
    }
}
