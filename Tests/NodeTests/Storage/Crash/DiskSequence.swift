import AsyncIO
import BlockReplica
import TestSupport
import Units

@testable import Node

/// A short life of a tiny disk, told in letters.
struct DiskSequence: CustomStringConvertible {
    /// What can happen. Writes go to the newest epoch.
    enum Letter: Character, CaseIterable {
        /// All of block 0, the same bytes each time.
        case whole = "a"
        /// The end of block 0 and the beginning of block 1.
        case crossing = "b"
        /// Blocks 1 and 2 and the beginning of block 3; block 2 was a hole.
        case long = "c"
        /// The last half KiB, which is all that the disk has of block 4.
        case tail = "t"
        /// Zeroes over the end of block 0, block 1 and some of block 2.
        case zeroes = "z"
        /// Discard of blocks 2, 3 and the tail.
        case discard = "x"
        case drain = "D"
        /// The next epoch begins; with two in progress already, the older one is sealed first.
        case boundary = "B"
        /// The oldest open epoch is sealed, behind a boundary.
        case seal = "S"
        /// The oldest sealed epoch is committed, sealed first if there is none; dropped files are removed.
        case commit = "C"
    }

    static let size = 4 * 4096 + 512
    let letters: [Letter]
    let durable: Bool

    init(_ letters: [Letter], durable: Bool) {
        self.letters = letters
        self.durable = durable
    }

    init?(_ text: String, durable: Bool) {
        let letters = text.compactMap(Letter.init)
        guard letters.count == text.count else { return nil }
        self.init(letters, durable: durable)
    }

    var description: String { String(letters.map(\.rawValue)) + (durable ? "" : " (memory)") }

    /// Every sequence of exactly so many letters.
    static func all(length: Int, durable: Bool) -> [DiskSequence] {
        var texts: [[Letter]] = [[]]
        for _ in 0..<length { texts = texts.flatMap { text in Letter.allCases.map { text + [$0] } } }
        return texts.map { DiskSequence($0, durable: durable) }
    }

    static var limits: DiskReplica.Limits {
        var limits = DiskReplica.Limits()
        limits.batchBlocks = 2
        limits.bufferBytes = 1 << 20
        return limits
    }

    /// Checkpoint 1, at which every sequence starts: data in blocks 0, 1, 3 and the tail, a hole in block 2.
    static var checkpoint1: [UInt8] {
        var bytes = (0..<size).map { UInt8($0 / 512 + 200) }
        for index in 2 * 4096..<3 * 4096 { bytes[index] = 0 }
        return bytes
    }

    /// Makes the disk of checkpoint 1.
    static func prepare(_ directory: String, durable: Bool) throws {
        let replica = try DiskReplica.create(
            directory: directory, size: UInt64(size), durable: durable, limits: limits)
        try replica.beginEpoch(Epoch(1), preserve: false)
        try checkpoint1.withUnsafeBytes { bytes in
            for part in [0..<2 * 4096, 3 * 4096..<size] {
                try replica.write(
                    epoch: Epoch(1), offset: UInt64(part.lowerBound),
                    bytes: UnsafeRawBufferPointer(rebasing: bytes[part]))
            }
        }
        _ = try replica.seal(epoch: Epoch(1))
        try replica.committed(Epoch(1))
    }
}

/// Performs a sequence on a real disk and keeps what each checkpoint must be.
struct DiskTeller {
    private(set) var checkpoints: [UInt64: [UInt8]] = [1: DiskSequence.checkpoint1]
    private let replica: DiskReplica
    private let recorder: FileRecorder?
    private var disk = DiskSequence.checkpoint1
    private var pending: [UInt64: [(range: Range<Int>, bytes: [UInt8])]] = [:]
    private var committed: UInt64 = 1
    private var sealed: UInt64 = 1
    private var newest: UInt64 = 2
    private var writes = 0

    init(_ directory: String, durable: Bool, recorder: FileRecorder?) throws {
        replica = try DiskReplica(directory: directory, durable: durable, limits: DiskSequence.limits)
        self.recorder = recorder
        _ = try replica.recover(committed: Epoch(1))
        try replica.beginEpoch(Epoch(2))
    }

    /// The letters, and then a commit of all.
    mutating func tell(_ sequence: DiskSequence) throws {
        for letter in sequence.letters { try perform(letter) }
        let last = newest
        while committed < last { try perform(.commit) }
    }

    private mutating func perform(_ letter: DiskSequence.Letter) throws {
        switch letter {
        case .whole: try write(0..<4096) { _ in 99 }
        case .crossing: try write(2048..<2048 + 4096, fresh())
        case .long: try write(4096..<3 * 4096 + 1536, fresh())
        case .tail: try write(4 * 4096..<DiskSequence.size, fresh())
        case .zeroes:
            try zero(4096 - 512..<2 * 4096 + 1024) { try $0.writeZeroes(epoch: $1, range: $2) }
        case .discard: try zero(2 * 4096..<DiskSequence.size) { try $0.discard(epoch: $1, range: $2) }
        case .drain: try replica.drain()
        case .boundary:
            if newest - sealed >= 2 { try sealOldest() }
            newest += 1
            try replica.beginEpoch(Epoch(newest))
        case .seal: try seal()
        case .commit:
            if sealed == committed { try seal() }
            committed += 1
            try replica.committed(Epoch(committed))
            recorder?.allow(committed...min(committed + 1, sealed))
            try replica.reclaim()
        }
    }

    private mutating func seal() throws {
        if newest == sealed + 1 { try perform(.boundary) }
        try sealOldest()
    }

    private mutating func sealOldest() throws {
        for change in pending.removeValue(forKey: sealed + 1) ?? [] {
            disk.replaceSubrange(change.range, with: change.bytes)
        }
        checkpoints[sealed + 1] = disk
        _ = try replica.seal(epoch: Epoch(sealed + 1))
        sealed += 1
        // From here on the commit record may have been written.
        recorder?.allow(committed...committed + 1)
    }

    /// Bytes that no other write puts at the same place.
    private mutating func fresh() -> (Int) -> UInt8 {
        writes += 1
        let number = writes
        return { UInt8((number * 37 + $0 / 512) % 199 + 1) }
    }

    private mutating func write(_ range: Range<Int>, _ value: (Int) -> UInt8) throws {
        let bytes = range.map(value)
        try bytes.withUnsafeBytes {
            try replica.write(epoch: Epoch(newest), offset: UInt64(range.lowerBound), bytes: $0)
        }
        pending[newest, default: []].append((range, bytes))
    }

    private mutating func zero(_ range: Range<Int>, _ call: (DiskReplica, Epoch, ByteRange) throws -> Void) throws {
        let bytes = ByteRange(offset: UInt64(range.lowerBound), length: UInt64(range.count))
        try call(replica, Epoch(newest), bytes)
        pending[newest, default: []].append((range, [UInt8](repeating: 0, count: range.count)))
    }
}
