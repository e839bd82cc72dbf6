import Foundation
import NBD
import NIOCore
import TestSupport
import Testing

@testable import Node

/// Each client here misbehaves while another's traffic goes on and is verified.
@Suite("NBD exports and hostile clients", .serialized)
struct HostileClientTests {
    private static let size: UInt64 = 8 << 20

    /// Runs `attack` while a good client writes and reads its own first MiB; everything that it wrote must be there.
    private static func beside(
        configuration: ExportServer.Configuration = .init(),
        _ attack: @escaping @Sendable (String, ExportServer) throws -> Void
    ) async throws {
        let device = try MemoryDevice(size: size)
        try await ExportFixture.run([.init(name: "", device: device)], configuration: configuration) { fixture in
            let socket = fixture.socket
            let server = fixture.server
            let attacking = Task { try await ExportFixture.offThread { try attack(socket, server) } }
            let good = try await ExportFixture.offThread { () -> ExportClient in
                let client = try ExportClient(socket)
                try client.go()
                return client
            }
            let isOver = Flag()
            let rounds = Task {
                try await ExportFixture.offThread { () -> Int in
                    var random = SplitMix64(seed: 3)
                    var rounds = 0
                    repeat {
                        let offset = random.next() % (1 << 20 - 8192)
                        let data = (0..<1 + Int(random.next() % 8192)).map { UInt8(truncatingIfNeeded: rounds &+ $0) }
                        try good.write(data, at: offset)
                        guard try good.read(data.count, at: offset) == data else {
                            throw ExportClient.Failed(description: "round \(rounds) read something else")
                        }
                        rounds += 1
                    } while !isOver.isSet
                    return rounds
                }
            }
            let outcome = await attacking.result
            isOver.set()
            #expect(try await rounds.value > 0)
            good.close()
            try outcome.get()
        }
    }

    @Test("a client that leaves after each byte of the handshake, and in the middle of a write")
    func leaves() async throws {
        let write = ExportClient.request(
            1, offset: 4 << 20, length: 100_000, data: Array(repeating: 0xEE, count: 100_000))
        let all = ExportClient.handshake(structured: true) + write
        let begin = all.count - write.count
        let device = try MemoryDevice(size: Self.size)
        try await ExportFixture.run([.init(name: "", device: device)]) { fixture in
            let good = try ExportClient(fixture.socket)
            try good.go()
            let cuts = Array(0...begin + 28) + [begin + 29, begin + 70_000, all.count - 1]
            for cut in cuts {
                let client = try ExportClient(fixture.socket)
                client.send(Array(all[..<cut]))
                client.close()
                if cut % 16 == 0 { try good.write([UInt8(truncatingIfNeeded: cut)], at: 5) }
            }
            let last = try #require(cuts.last { $0 % 16 == 0 })
            #expect(try good.read(1, at: 5) == [UInt8(truncatingIfNeeded: last)])
            // Half a write was never written.
            #expect(try good.read(100_000, at: 4 << 20).allSatisfy { $0 == 0 })
            good.close()
        }
    }

    @Test("garbage instead of a handshake, and instead of requests", arguments: [UInt64(1), 2, 3])
    func garbage(seed: UInt64) async throws {
        try await Self.beside { socket, _ in
            var random = SplitMix64(seed: seed)
            for round in 0..<40 {
                let client = try ExportClient(socket)
                if round % 2 == 0 { try client.go(structured: round % 4 == 0) }
                client.send((0..<2000).map { _ in UInt8(truncatingIfNeeded: random.next()) })
                guard client.isClosedByServer() else {
                    throw ExportClient.Failed(description: "seed \(seed): the server kept round \(round)")
                }
            }
        }
    }

    @Test(
        "a write that announces more than 32 MiB ends its connection; one that announces 32 MiB takes no memory for it")
    func hugeLengths() async throws {
        try await Self.beside { socket, _ in
            for length in [UInt32.max, (32 << 20) + 1] as [UInt32] {
                let client = try ExportClient(socket)
                try client.go()
                client.send(ExportClient.request(1, length: length))
                guard client.isClosedByServer() else { throw ExportClient.Failed(description: "\(length) was taken") }
            }
            let before = try residentBytes()
            let clients = try (0..<40).map { _ in
                let client = try ExportClient(socket)
                try client.go()
                client.send(ExportClient.request(1, offset: 0, length: 8 << 20, data: Array(repeating: 1, count: 1000)))
                return client
            }
            usleep(200_000)
            let grown = try residentBytes() - before
            guard grown < 40 << 20 else { throw ExportClient.Failed(description: "\(grown) bytes for 40 KB of data") }
            for client in clients { client.close() }
        }
    }

    @Test("a client that asks for much and reads nothing holds up itself only, and gets everything when it reads")
    func slowReader() async throws {
        try await Self.beside { socket, server in
            let client = try ExportClient(socket)
            try client.go()
            let before = try residentBytes()
            let length: UInt32 = 64 << 10
            let total = 4000
            let requests = (0..<total).flatMap {
                ExportClient.request(0, cookie: UInt64($0), offset: UInt64($0 % 64) << 16, length: length)
            }
            var sent = client.sendSome(requests)
            usleep(300_000)
            // Only the good client and what the socket and the bounds hold were read: not 250 MiB.
            let grown = try residentBytes() - before
            guard grown < 32 << 20 else { throw ExportClient.Failed(description: "\(grown) bytes are held for it") }
            for number in 0..<total {
                if sent < requests.count { sent += client.sendSome(Array(requests[sent...].prefix(1 << 16))) }
                guard try client.receive(16) == ExportClient.simple(0, UInt64(number)) else {
                    throw ExportClient.Failed(description: "answer \(number) is another")
                }
                _ = try client.receive(Int(length))
            }
        }
    }

    @Test("a client that stays silent in the handshake is dropped in time, one in transmission is not")
    func silence() async throws {
        var configuration = ExportServer.Configuration()
        configuration.handshakeTimeout = .milliseconds(200)
        try await Self.beside(configuration: configuration) { socket, _ in
            let idle = try ExportClient(socket)
            try idle.go()
            let silent = try ExportClient(socket)
            silent.send(ExportClient.be(UInt32(3)))
            guard silent.isClosedByServer() else { throw ExportClient.Failed(description: "it was kept") }
            usleep(300_000)
            try idle.write([1], at: 2 << 20)
        }
    }

    @Test("more clients than allowed are turned away, and one may come when another has gone")
    func crowd() async throws {
        var configuration = ExportServer.Configuration()
        configuration.connections = 3
        try await Self.beside(configuration: configuration) { socket, server in
            while server.figures.connections == 0 { usleep(1000) }
            let one = try ExportClient(socket)
            try one.go()
            let two = try ExportClient(socket)
            try two.go()
            let three = try ExportClient(socket)
            guard three.isClosedByServer(), server.figures.turnedAway == 1 else {
                throw ExportClient.Failed(description: "a fourth client was let in")
            }
            two.close()
            while server.figures.connections > 2 { usleep(1000) }
            let four = try ExportClient(socket)
            try four.go()
        }
    }
}

/// A yes that one thread says to another.
final class Flag: @unchecked Sendable {
    // Unchecked: guarded by the lock.
    private let lock = NSLock()
    private var value = false
    var isSet: Bool { lock.withLock { value } }
    func set() { lock.withLock { value = true } }
}
