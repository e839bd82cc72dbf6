import AsyncIO
import BlockReplica
import Foundation
import TestSupport
import Testing
import Units

@testable import Node

/// The naive model: one byte array per checkpoint, and what each open epoch still has to change.
private struct NaiveDisk {
    /// As the newest sealed epoch, or the recovery, left it.
    var disk: [UInt8]
    var pending: [UInt64: [(start: Int, bytes: [UInt8])]] = [:]
    /// Checkpoints that can be read: the committed one and those that are sealed.
    var checkpoints: [UInt64: [UInt8]] = [:]

    mutating func seal(_ epoch: UInt64) {
        for change in pending.removeValue(forKey: epoch) ?? [] {
            disk.replaceSubrange(change.start..<change.start + change.bytes.count, with: change.bytes)
        }
        checkpoints[epoch] = disk
    }

    mutating func commit(_ epoch: UInt64) { checkpoints = checkpoints.filter { $0.key >= epoch } }

    mutating func rollBack(to epoch: UInt64) {
        pending = [:]
        checkpoints = checkpoints.filter { $0.key == epoch }
        if let bytes = checkpoints[epoch] { disk = bytes }
    }
}

/// A replica and its model, driven by the same random choices.
private final class PropertyRun {
    private let directory: String
    private let size: Int
    private let durable: Bool
    private var random: SplitMix64
    private var replica: DiskReplica
    private var model: NaiveDisk
    private var committed: UInt64 = 0
    private var sealed: UInt64 = 0
    private var newest: UInt64 = 0
    private(set) var log: [String] = []
    private(set) var comparisons = 0

    init(_ directory: String, size: Int, seed: UInt64) throws {
        self.directory = directory
        self.size = size
        random = SplitMix64(seed: seed)
        durable = random.next() % 2 == 0
        replica = try DiskReplica.create(
            directory: directory, size: UInt64(size), durable: durable, limits: Self.limits(&random))
        model = NaiveDisk(disk: [UInt8](repeating: 0, count: size))
        try begin(preserve: false)
    }

    private static func limits(_ random: inout SplitMix64) -> DiskReplica.Limits {
        var limits = DiskReplica.Limits()
        limits.batchBlocks = Int.random(in: 1...40, using: &random)
        limits.bufferBytes = Int.random(in: 1...8, using: &random) << 20
        return limits
    }

    private func note(_ text: String) { log.append(text) }
    private func chance(_ one: Int) -> Bool { Int.random(in: 0..<one, using: &random) == 0 }

    func step() throws {
        switch Int.random(in: 0..<20, using: &random) {
        case 0..<11: try change()
        case 11, 12: try replica.drain()
        case 13, 14: try boundary()
        case 15, 16: try seal()
        case 17: try commit()
        case 18: try compareSome()
        default: if chance(2) { try reopen() } else { try recover() }
        }
    }

    private func begin(preserve: Bool = true) throws {
        newest += 1
        note("begin \(newest)")
        try replica.beginEpoch(Epoch(newest), preserve: preserve)
    }

    /// Two epochs may be sealed and uncommitted, and two may be open.
    private func boundary() throws {
        if newest - sealed < 2 { try begin() }
    }

    private func seal() throws {
        guard sealed - committed < 2 else { return }
        try boundary()
        sealed += 1
        note("seal \(sealed)")
        model.seal(sealed)
        _ = try replica.seal(epoch: Epoch(sealed))
    }

    private func commit() throws {
        guard committed < sealed else { return }
        committed += 1
        note("commit \(committed)")
        try replica.committed(Epoch(committed))
        model.commit(committed)
        if chance(2) { try replica.reclaim(count: Int.random(in: 0...2, using: &random)) }
    }

    private func change() throws {
        // Either open epoch; the younger one waits in memory.
        let epoch = newest - sealed == 2 && chance(3) ? sealed + 1 : newest
        let sectors = size / 512
        let first = Int.random(in: 0..<sectors, using: &random)
        let longest = min(sectors - first, [1, 8, 40, 400][Int.random(in: 0..<4, using: &random)])
        var start = first * 512
        var count = Int.random(in: 1...longest, using: &random) * 512
        if chance(3) {
            start = start / 4096 * 4096
            count = min((count + 4095) / 4096 * 4096, size - start)
        }
        let range = ByteRange(offset: UInt64(start), length: UInt64(count))
        switch Int.random(in: 0..<8, using: &random) {
        case 0:
            note("zero \(epoch) \(start)+\(count)")
            try replica.writeZeroes(epoch: Epoch(epoch), range: range)
            model.pending[epoch, default: []].append((start, [UInt8](repeating: 0, count: count)))
        case 1:
            note("discard \(epoch) \(start)+\(count)")
            try replica.discard(epoch: Epoch(epoch), range: range)
            model.pending[epoch, default: []].append((start, [UInt8](repeating: 0, count: count)))
        case 2:
            // What is there already: nothing may change, and nothing may be lost either.
            note("rewrite \(epoch) \(start)+\(count)")
            try write(epoch, start, Array(model.disk[start..<start + count]))
        default:
            note("write \(epoch) \(start)+\(count)")
            let value = UInt8.random(in: 0...255, using: &random)
            try write(epoch, start, Self.fill(start..<start + count, value))
        }
    }

    /// Sectors that differ from each other.
    private static func fill(_ range: Range<Int>, _ value: UInt8) -> [UInt8] {
        var bytes: [UInt8] = []
        bytes.reserveCapacity(range.count)
        for sector in range.lowerBound / 512..<range.upperBound / 512 {
            bytes.append(contentsOf: repeatElement(value &+ UInt8(truncatingIfNeeded: sector), count: 512))
        }
        return bytes
    }

    private func write(_ epoch: UInt64, _ start: Int, _ bytes: [UInt8]) throws {
        try bytes.withUnsafeBytes { try replica.write(epoch: Epoch(epoch), offset: UInt64(start), bytes: $0) }
        model.pending[epoch, default: []].append((start, bytes))
    }

    private func recover() throws {
        guard committed > 0 else { return }
        note("recover \(committed)")
        _ = try replica.recover(committed: Epoch(committed))
        try restart()
    }

    /// The object is dropped without a word; a new one finds the files. Between the two its views can be read.
    private func reopen() throws {
        guard committed > 0 else { return }
        note("reopen, recover \(committed)")
        replica = try DiskReplica(directory: directory, durable: durable, limits: Self.limits(&random))
        try compare(committed, "the view of a disk that was found")
        _ = try replica.recover(committed: Epoch(committed))
        try restart()
    }

    private func restart() throws {
        model.rollBack(to: committed)
        sealed = committed
        newest = committed
        try compare(committed, "after the recovery")
        guard try Directory.names(in: directory) == ["secondary.raw"] else { throw Different("files were left behind") }
        try begin()
    }

    private func compareSome() throws {
        for epoch in model.checkpoints.keys.sorted() { try compare(epoch, "a view while protection goes on") }
    }

    func finish() throws {
        try compareSome()
        // Each seal begins a newer epoch; those that are there now are the last ones.
        let last = newest
        while committed < last {
            if sealed == committed { try seal() }
            try commit()
        }
        try compareSome()
        try recover()
    }

    private struct Different: Error, CustomStringConvertible {
        let description: String
        init(_ description: String) { self.description = description }
    }

    private func compare(_ epoch: UInt64, _ words: String) throws {
        guard let expected = model.checkpoints[epoch] else { return }
        comparisons += 1
        let found = try replica.contents(after: Epoch(epoch))
        if found != expected {
            let place = found.indices.first { found[$0] != expected[$0] } ?? 0
            throw Different("\(words): checkpoint \(epoch) differs first at byte \(place)")
        }
        // A piece that starts and ends anywhere.
        let start = Int.random(in: 0..<size, using: &random)
        let end = Int.random(in: start...size, using: &random)
        var piece = [UInt8](repeating: 0xEE, count: end - start)
        try piece.withUnsafeMutableBytes { try replica.readView(after: Epoch(epoch), offset: UInt64(start), into: $0) }
        if piece != Array(expected[start..<end]) { throw Different("\(words): bytes \(start)..<\(end) differ") }
        if try size < 1 << 18 && replica.digest(after: Epoch(epoch)) != CRC32C.checksum(expected) {
            throw Different("\(words): the digest of checkpoint \(epoch) differs")
        }
    }
}

@Suite("A replica's disk against a naive model")
struct DiskPropertyTests {
    /// Debug code takes its time to compare bytes.
    private static let largest: Int = {
        #if DEBUG
            (1 << 20) - 512
        #else
            (3 << 20) - 512
        #endif
    }()
    private static let sizes = [4096 + 512, 512, 4096, 61 * 4096 + 1536, (300 << 10) + 512, largest]

    @Test(
        "every checkpoint that is alive reads as the model says, through random epochs, overlaps, crashes and recoveries",
        arguments: sizes, [UInt64](1...4))
    func random(size: Int, seed: UInt64) throws {
        let scratch = try DiskScratch(
            below: FileManager.default.isWritableFile(atPath: "/dev/shm") && seed % 4 != 0 ? "/dev/shm" : "/tmp")
        let run = try PropertyRun(scratch.path, size: size, seed: seed)
        do {
            for _ in 0..<(size > 1 << 18 ? 30 : 120) { try run.step() }
            try run.finish()
        } catch {
            Issue.record("size \(size), seed \(seed): \(error)\n\(run.log.suffix(30).joined(separator: "\n"))")
        }
        #expect(run.comparisons > 0, "size \(size), seed \(seed)")
    }
}
