import Foundation
import Logging
import NBD
import TestSupport
import Testing

@testable import Node

@Suite("NBD exports and what devices hold")
struct DeviceModelTests {
    /// Writes, zeroes and reads at random against plain bytes; block status must never call data zero.
    private static func compare(_ device: any ExportDevice, seed: UInt64, rounds: Int) async throws {
        try await ExportFixture.run([.init(name: "", device: device)]) { fixture in
            let client = try ExportClient(fixture.socket)
            try client.go(structured: true)
            var model = [UInt8](repeating: 0, count: Int(device.size))
            var random = SplitMix64(seed: seed)
            for round in 0..<rounds {
                let longest = round % 10 == 0 ? model.count : 20_000
                let start = Int(random.next() % UInt64(model.count))
                let count = 1 + Int(random.next() % UInt64(min(longest, model.count - start)))
                let offset = UInt64(start)
                let what = random.next() % 8
                switch what {
                case 0...2:
                    let data = [UInt8](repeating: UInt8(truncatingIfNeeded: random.next()), count: count)
                    client.send(
                        ExportClient.request(
                            1, flags: UInt16(what & 1), offset: offset, length: UInt32(count), data: data))
                    model.replaceSubrange(start..<start + count, with: data)
                    #expect(try client.receive(16) == ExportClient.simple(0, 1), "seed \(seed), round \(round)")
                case 3, 4:
                    let flags: UInt16 = what == 3 ? 2 : 0
                    client.send(ExportClient.request(6, flags: flags, offset: offset, length: UInt32(count)))
                    model.replaceSubrange(start..<start + count, with: repeatElement(0, count: count))
                    #expect(try client.receive(16) == ExportClient.simple(0, 1), "seed \(seed), round \(round)")
                case 5:
                    client.send(ExportClient.request(7, offset: offset, length: UInt32(count)))
                    var place = start
                    for extent in try client.blockStatus() {
                        let end = min(place + extent.count, model.count)
                        if extent.flags & 2 != 0 {
                            try #require(
                                model[place..<end].allSatisfy { $0 == 0 }, "seed \(seed), round \(round): no zeroes")
                        }
                        place = end
                    }
                    #expect(place > start && place <= start + count)
                default:
                    let flags: UInt16 = what == 6 ? 4 : 0
                    client.send(ExportClient.request(0, flags: flags, offset: offset, length: UInt32(count)))
                    let got = try client.structuredRead(count, at: offset, inOneChunk: flags != 0)
                    try #require(
                        got.elementsEqual(model[start..<start + count]),
                        "seed \(seed), round \(round): \(start)+\(count)")
                }
            }
            client.send(ExportClient.request(3))
            #expect(try client.receive(16) == ExportClient.simple(0, 1))
            client.close()
        }
    }

    @Test("memory holds what was written, whatever the offsets", arguments: [UInt64(11), 12])
    func memory(seed: UInt64) async throws {
        try await Self.compare(try MemoryDevice(size: 300_000 + seed), seed: seed, rounds: 400)
    }

    private static func withFile(_ size: Int, _ body: (String) async throws -> Void) async throws {
        let path = FileManager.default.temporaryDirectory.appending(path: "export-\(UUID().uuidString).raw").path
        try Data().write(to: URL(filePath: path))
        defer { try? FileManager.default.removeItem(atPath: path) }
        let handle = try FileHandle(forWritingTo: URL(filePath: path))
        try handle.truncate(atOffset: UInt64(size))
        try handle.close()
        try await body(path)
    }

    private static var silent: Logger {
        var log = Logger(label: "test")
        log.logLevel = .critical
        return log
    }

    @Test("a file holds what was written, past the page cache and through it", arguments: [true, false])
    func file(direct: Bool) async throws {
        try await Self.withFile(6_000_123) { path in
            let device = try FileDevice(path: path, isReadOnly: false, direct: direct, log: Self.silent)
            #expect(device.size == 6_000_123)
            try await Self.compare(device, seed: 21, rounds: 300)
        }
    }

    @Test("a file that is served read-only cannot be changed, and tells its holes")
    func readOnlyFile() async throws {
        try await Self.withFile(1 << 20) { path in
            let handle = try FileHandle(forWritingTo: URL(filePath: path))
            try handle.seek(toOffset: 512 << 10)
            try handle.write(contentsOf: Data(repeating: 9, count: 4096))
            try handle.close()
            let device = try FileDevice(path: path, isReadOnly: true, log: Self.silent)
            try await ExportFixture.run([.init(name: "", device: device)]) { fixture in
                let client = try ExportClient(fixture.socket)
                try client.go(structured: true)
                client.send(ExportClient.request(1, length: 1, data: [1]) + ExportClient.request(6, length: 1))
                #expect(try client.receive(32) == ExportClient.simple(1, 1) + ExportClient.simple(1, 1))
                client.send(ExportClient.request(7, offset: 0, length: 1 << 20))
                let extents = try client.blockStatus()
                #expect(extents.first?.flags == 3 && extents.reduce(0) { $0 + $1.count } == 1 << 20)
                #expect(extents.contains { $0.flags == 0 })
            }
        }
    }

    @Test("a file that was cut behind our back is an error at that byte, and only for those who ask there")
    func cutFile() async throws {
        try await Self.withFile(1 << 20) { path in
            let device = try FileDevice(path: path, isReadOnly: false, log: Self.silent)
            try await ExportFixture.run([.init(name: "", device: device)]) { fixture in
                let handle = try FileHandle(forWritingTo: URL(filePath: path))
                try handle.truncate(atOffset: 8192)
                try handle.close()
                let client = try ExportClient(fixture.socket)
                try client.go(structured: true)
                client.send(
                    ExportClient.request(0, cookie: 1, offset: 4096, length: 8192)
                        + ExportClient.request(0, cookie: 2, offset: 4096, length: 4096))
                let refused = ExportClient.chunk(
                    0x8002, 1, isLast: true,
                    ExportClient.be(UInt32(5)) + ExportClient.be(UInt16(0)) + ExportClient.be(UInt64(8192)))
                #expect(try client.receive(refused.count) == refused)
                #expect(try client.receive(20 + 8 + 4096).count == 4124)
            }
        }
    }
}

extension ExportClient {
    private static func number(_ bytes: some Sequence<UInt8>) -> Int { bytes.reduce(0) { $0 << 8 | Int($1) } }

    /// One answer to block status.
    fileprivate func blockStatus() throws -> [(count: Int, flags: Int)] {
        let header = try receive(20)
        guard header[4..<8].elementsEqual([0, 1, 0, 5]) else { throw Failed(description: "no block status: \(header)") }
        let data = try receive(Self.number(header[16..<20]))
        return stride(from: 4, to: data.count, by: 8).map {
            (Self.number(data[$0..<$0 + 4]), Self.number(data[$0 + 4..<$0 + 8]))
        }
    }

    /// All chunks of one read, put together; every byte must come exactly once.
    fileprivate func structuredRead(_ count: Int, at offset: UInt64, inOneChunk: Bool) throws -> [UInt8] {
        var bytes = [UInt8](repeating: 0xEE, count: count)
        var covered = 0
        var chunks = 0
        while true {
            let header = try receive(20)
            let length = Self.number(header[16..<20])
            let body = try receive(length)
            let type = Self.number(header[6..<8])
            if type == 1 || type == 2 {
                let place = Self.number(body[0..<8]) - Int(offset)
                let part = type == 1 ? Array(body[8...]) : [UInt8](repeating: 0, count: Self.number(body[8..<12]))
                guard place >= 0, place + part.count <= count else { throw Failed(description: "a chunk lies outside") }
                bytes.replaceSubrange(place..<place + part.count, with: part)
                covered += part.count
                chunks += 1
            } else if type != 0 {
                throw Failed(description: "chunk of type \(type)")
            }
            if header[5] & 1 != 0 { break }
        }
        guard covered == count, !inOneChunk || chunks == 1 else {
            throw Failed(description: "\(covered) of \(count) bytes in \(chunks) chunks")
        }
        return bytes
    }
}
