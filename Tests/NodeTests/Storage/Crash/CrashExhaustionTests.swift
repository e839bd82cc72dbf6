import Foundation
import TestSupport
import Testing

@testable import Node

/// How long the sequences are. Long ones take hours: they are asked for.
private let longest: Int = {
    #if DEBUG
        let usual = 2
    #else
        let usual = 3
    #endif
    return ProcessInfo.processInfo.environment["COLO_BLK_CRASH_LENGTH"].flatMap(Int.init) ?? usual
}()

@Suite("Every crash of every short life of a disk")
struct CrashExhaustionTests {
    private static let shards = 2

    /// Sequences of all lengths, those of this shard.
    private func sequences(durable: Bool, shard: Int) -> [DiskSequence] {
        if let text = ProcessInfo.processInfo.environment["COLO_BLK_CRASH_REPLAY"] {
            return DiskSequence(text, durable: durable).map { shard == 0 ? [$0] : [] } ?? []
        }
        let all = (0...longest).flatMap { DiskSequence.all(length: $0, durable: durable) }
        return all.enumerated().filter { $0.offset % Self.shards == shard }.map(\.element)
    }

    @Test(
        "disk durability: whatever a power loss leaves of unsynced writes, one allowed checkpoint is recovered",
        arguments: [UInt64(20_260_101)], 0..<shards)
    func powerLoss(seed: UInt64, shard: Int) throws {
        let lab = try DiskCrashLab(durable: true, seed: seed)
        lab.checkEvery = Program.path(of: "qemu-img") == nil ? 0 : 1009
        for sequence in sequences(durable: true, shard: shard) { try lab.examine(sequence) }
        print("crash exhaustion, disk, seed \(seed), shard \(shard): \(lab.figures)")
        #expect(lab.figures.crashes > lab.figures.sequences * 10)
        #expect(longest < 2 || lab.figures.secondCrashes > lab.figures.sequences)
    }

    @Test(
        "memory durability: wherever the process dies, one allowed checkpoint is recovered",
        arguments: [UInt64(20_260_102)], 0..<shards)
    func processCrash(seed: UInt64, shard: Int) throws {
        let lab = try DiskCrashLab(durable: false, seed: seed)
        lab.checkEvery = Program.path(of: "qemu-img") == nil ? 0 : 251
        for sequence in sequences(durable: false, shard: shard) { try lab.examine(sequence) }
        print("crash exhaustion, memory, seed \(seed), shard \(shard): \(lab.figures)")
        #expect(lab.figures.crashes > lab.figures.sequences * 5)
    }
}
