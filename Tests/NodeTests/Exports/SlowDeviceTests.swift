import Dispatch
import Foundation
import NBD
import NIOCore
import Testing

@testable import Node

/// A device that keeps what it is asked until a test says how to answer, on a thread of its own.
private final class PatientDevice: ExportDevice, @unchecked Sendable {
    // Unchecked: guarded by the lock.
    private let lock = NSCondition()
    private var kept: [(ExportRequest, ExportReplies)] = []
    private(set) var batches = 0
    let size: UInt64 = 64 << 20
    let isReadOnly = false
    let capabilities: ExportCapabilities = .usual

    func perform(_ batch: ExportBatch) {
        lock.lock()
        batches += 1
        kept += batch.requests.map { ($0, batch.replies) }
        lock.broadcast()
        lock.unlock()
    }

    var count: Int { lock.withLock { kept.count } }

    /// Waits for so many requests, and takes them.
    func take(_ count: Int) -> [(ExportRequest, ExportReplies)] {
        lock.lock()
        defer { lock.unlock() }
        let end = Date(timeIntervalSinceNow: 10)
        while kept.count < count, lock.wait(until: end) {}
        defer { kept = [] }
        return kept
    }
}

@Suite("NBD exports and devices that take their time")
struct SlowDeviceTests {
    @Test("answers may come in any order, from other threads, in parts, with holes and errors at their place")
    func order() async throws {
        let device = PatientDevice()
        try await ExportFixture.run([.init(name: "", device: device)]) { fixture in
            let client = try ExportClient(fixture.socket)
            try client.go(structured: true)
            typealias C = ExportClient
            client.send(
                C.request(1, cookie: 1, offset: 10, length: 3, data: [7, 8, 9])
                    + C.request(0, cookie: 2, offset: 100, length: 40) + C.request(0, cookie: 3, offset: 200, length: 9)
                    + C.request(7, cookie: 4, offset: 0, length: 5000) + C.request(7, flags: 8, cookie: 5, length: 5000)
                    + C.request(3, cookie: 6))
            let asked = device.take(6)
            #expect(asked.map { $0.0.operation } == [.write, .read, .read, .blockStatus, .blockStatus, .flush])
            #expect(asked[0].0.withPayload { Array($0) } == [7, 8, 9])
            let extents: [ExportExtent] = [.data(1000), .data(500), .hole(100), .data(1 << 40)]
            try await ExportFixture.offThread {
                let replies = asked[0].1
                replies.done(asked[5].0)
                _ = replies.part(asked[1].0, offset: 100, byteCount: 2) { memory in
                    memory.copyBytes(from: [1, 2])
                    return nil
                }
                replies.hole(asked[1].0, offset: 102, byteCount: 38)
                replies.done(asked[1].0)
                replies.fail(asked[2].0, .io, at: 203)
                replies.extents(asked[3].0, extents)
                replies.extents(asked[4].0, extents)
                replies.done(asked[0].0)
            }
            let told = C.be(UInt32(1)) + C.be(UInt32(1500)) + C.be(UInt32(0))
            let expected =
                C.simple(0, 6) + C.chunk(1, 2, isLast: false, C.be(UInt64(100)) + [1, 2])
                + C.chunk(2, 2, isLast: false, C.be(UInt64(102)) + C.be(UInt32(38))) + C.chunk(0, 2, isLast: true, [])
                + C.chunk(0x8002, 3, isLast: true, C.be(UInt32(5)) + C.be(UInt16(0)) + C.be(UInt64(203)))
                + C.chunk(
                    5, 4, isLast: true,
                    told + C.be(UInt32(100)) + C.be(UInt32(3)) + C.be(UInt32(3400)) + C.be(UInt32(0)))
                + C.chunk(5, 5, isLast: true, told) + C.simple(0, 1)
            #expect(try client.receive(expected.count) == expected)
        }
    }

    @Test("no more requests than the limit are in flight, and all are answered in the end")
    func bounds() async throws {
        let device = PatientDevice()
        var configuration = ExportServer.Configuration()
        configuration.requestsInFlight = 10
        try await ExportFixture.run([.init(name: "", device: device)], configuration: configuration) { fixture in
            let client = try ExportClient(fixture.socket)
            try client.go()
            client.send((0..<1000).flatMap { ExportClient.request(0, cookie: $0, offset: 0, length: 100) })
            try await Task.sleep(for: .milliseconds(100))
            #expect(device.count == 10)
            var answered = 0
            while answered < 1000 {
                let asked = device.take(1)
                try #require((1...10).contains(asked.count))
                for (request, replies) in asked.reversed() {
                    replies.read(request) { memory in
                        memory.initializeMemory(as: UInt8.self, repeating: 1)
                        return nil
                    }
                }
                answered += asked.count
            }
            #expect(try client.receive(1000 * 116).count == 116_000)
        }
    }

    @Test("no more data than the limit are in flight, but for the one request that goes beyond")
    func byteBounds() async throws {
        let device = PatientDevice()
        var configuration = ExportServer.Configuration()
        configuration.bytesInFlight = 1 << 20
        try await ExportFixture.run([.init(name: "", device: device)], configuration: configuration) { fixture in
            let client = try ExportClient(fixture.socket)
            try client.go()
            client.send((0..<4).flatMap { ExportClient.request(0, cookie: $0, offset: 0, length: 700_000) })
            try await Task.sleep(for: .milliseconds(100))
            for _ in 0..<2 {
                let asked = device.take(2)
                try #require(asked.count == 2)
                #expect(device.count == 0)
                for (request, replies) in asked { replies.zeroes(request) }
                #expect(try client.receive(2 * 700_016).count == 1_400_032)
            }
        }
    }

    @Test("a client that leaves while its requests are out harms nobody, and the server waits for the device")
    func gone() async throws {
        let device = PatientDevice()
        let isClosed = Flag()
        try await ExportFixture.run([.init(name: "", device: device)]) { fixture in
            let client = try ExportClient(fixture.socket)
            try client.go()
            client.send(
                ExportClient.request(1, cookie: 1, length: 5, data: [1, 2, 3, 4, 5])
                    + ExportClient.request(0, cookie: 2, length: 100_000))
            let asked = device.take(2)
            client.close()
            try await Task.sleep(for: .milliseconds(50))
            #expect(asked[0].0.withPayload { Array($0) } == [1, 2, 3, 4, 5])
            #expect(fixture.server.figures.connections == 1)
            let closing = Task {
                await fixture.server.close()
                isClosed.set()
            }
            try await Task.sleep(for: .milliseconds(50))
            #expect(!isClosed.isSet)
            try await ExportFixture.offThread {
                asked[0].1.done(asked[0].0)
                asked[1].1.zeroes(asked[1].0)
            }
            await closing.value
            #expect(isClosed.isSet)
        }
    }

    @Test("after DISC the replies that are owed still come, then the end")
    func goodbye() async throws {
        let device = PatientDevice()
        try await ExportFixture.run([.init(name: "", device: device)]) { fixture in
            let client = try ExportClient(fixture.socket)
            try client.go()
            client.send(ExportClient.request(0, cookie: 9, length: 3_000_000) + ExportClient.request(2))
            let asked = device.take(1)
            try await ExportFixture.offThread { asked[0].1.zeroes(asked[0].0) }
            #expect(try client.receive(16) == ExportClient.simple(0, 9))
            #expect(try client.receive(3_000_000).allSatisfy { $0 == 0 })
            #expect(client.isClosedByServer())
        }
    }
}
