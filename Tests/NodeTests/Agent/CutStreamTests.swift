import NIOCore
import QEMU
import TestSupport
import Testing

@testable import Node

@Suite("A stream that the socket has cut")
struct CutStreamTests {
    /// Takes whole items (a u16 length, then so many bytes) as the migration stream does, and nothing of others.
    private final class Reader {
        var items: [[UInt8]] = []

        func consume(_ bytes: UnsafeRawBufferPointer) -> Int {
            var position = 0
            while bytes.count - position >= 2 {
                let length = Int(bytes[position]) << 8 | Int(bytes[position + 1])
                guard bytes.count - position - 2 >= length else { break }
                items.append(Array(bytes[position + 2..<position + 2 + length]))
                position += 2 + length
            }
            return position
        }
    }

    private static func stream(_ lengths: [Int], _ random: inout SplitMix64) -> (items: [[UInt8]], bytes: [UInt8]) {
        let items = lengths.map { length in (0..<length).map { _ in UInt8.random(in: 0...255, using: &random) } }
        return (items, items.flatMap { [UInt8($0.count >> 8), UInt8($0.count & 255)] + $0 })
    }

    private func read(_ pieces: [ArraySlice<UInt8>]) throws -> (items: [[UInt8]], held: Int, left: Int) {
        var cut = CutStream()
        let reader = Reader()
        var held = 0
        for piece in pieces {
            try cut.take(ByteBuffer(bytes: piece)) { bytes throws(MigrationStreamError) in reader.consume(bytes) }
            held = max(held, cut.rest.readableBytes)
        }
        return (reader.items, held, cut.rest.readableBytes)
    }

    @Test("in two, at any byte, means the same")
    func everyCut() throws {
        var random = SplitMix64(seed: 1)
        let (items, bytes) = Self.stream([0, 1, 300, 0, 4104, 2, 4606, 17], &random)
        for place in 0...bytes.count {
            let result = try read([bytes[..<place], bytes[place...]])
            if result.items != items || result.left != 0 { Issue.record("cut at \(place)") }
        }
    }

    @Test(
        "in pieces of any lengths means the same, and never more than an item is kept",
        arguments: 1...40 as ClosedRange<UInt64>)
    func anyPieces(seed: UInt64) throws {
        var random = SplitMix64(seed: seed)
        let lengths = (0..<60).map { _ in
            Bool.random(using: &random) ? 4104 : Int.random(in: 0...CutStream.itemBytes - 2, using: &random)
        }
        let (items, bytes) = Self.stream(lengths, &random)
        let longest = seed % 4 == 0 ? 1 : seed % 4 == 1 ? 7 : seed % 4 == 2 ? 5000 : 100_000
        var pieces: [ArraySlice<UInt8>] = []
        var start = 0
        while start < bytes.count {
            let end = min(bytes.count, start + Int.random(in: 1...longest, using: &random))
            pieces.append(bytes[start..<end])
            start = end
        }
        let result = try read(pieces)
        #expect(result.items == items, "seed \(seed)")
        #expect(result.left == 0 && result.held < CutStream.itemBytes, "seed \(seed)")
    }

    @Test("that is wrong stops at once")
    func wrong() {
        struct Calls { var count = 0 }
        var cut = CutStream()
        var calls = Calls()
        #expect(throws: MigrationStreamError.self) {
            try cut.take(ByteBuffer(bytes: [1, 2, 3])) { _ throws(MigrationStreamError) in
                calls.count += 1
                throw MigrationStreamError.refusal("no")
            }
        }
        #expect(calls.count == 1)
    }
}
