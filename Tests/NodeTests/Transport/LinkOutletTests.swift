import Foundation
import NIOCore
import NIOPosix
import Synchronization
import Testing

@testable import Node

@Suite("Way out of the agent")
struct LinkOutletTests {
    /// Every piece is as long as the channel takes in advance, so that most of them wait.
    private static let length = 64 << 10
    private static let ahead: UInt64 = .max

    private static func frame(_ number: UInt64) -> ByteBuffer {
        var buffer = ByteBufferAllocator().buffer(capacity: length)
        buffer.writeInteger(number)
        buffer.writeRepeatingByte(7, count: length - 8)
        return buffer
    }

    /// Notes the numbers of what has come whole. Does not read until it is told to.
    private final class Reader: ChannelInboundHandler, Sendable {
        typealias InboundIn = ByteBuffer
        private let state = Mutex((bytes: ByteBuffer(), numbers: [UInt64](), ended: false))

        var numbers: [UInt64] { state.withLock { $0.numbers } }
        var hasEnded: Bool { state.withLock { $0.ended } }

        func channelRead(context: ChannelHandlerContext, data: NIOAny) {
            var input = unwrapInboundIn(data)
            state.withLock { state in
                state.bytes.writeBuffer(&input)
                while state.bytes.readableBytes >= length, var piece = state.bytes.readSlice(length: length) {
                    state.numbers.append(piece.readInteger(as: UInt64.self) ?? 0)
                }
                state.bytes.discardReadBytes()
            }
        }

        func channelInactive(context: ChannelHandlerContext) { state.withLock { $0.ended = true } }
    }

    /// Runs `body` on the loop of an outlet whose other end does not read yet; then reads until the end. When `last` is
    /// given, a farewell with its number is said as soon as so many frames have come, and the end follows it.
    private func numbers(
        rate: UInt64? = nil, last: (number: UInt64, after: Int)? = nil,
        _ body: @escaping @Sendable (LinkOutlet, any Channel) -> Void
    ) async throws -> [UInt64] {
        let group = MultiThreadedEventLoopGroup.singleton
        let path = FileManager.default.temporaryDirectory.appending(path: "o-\(UUID().uuidString.prefix(8))").path
        let reader = Reader()
        let accepted = Mutex<(any Channel)?>(nil)
        let server = try await ServerBootstrap(group: group)
            .childChannelOption(.autoRead, value: false)
            .childChannelInitializer { channel in
                accepted.withLock { $0 = channel }
                return channel.pipeline.addHandler(reader)
            }
            .bind(unixDomainSocketPath: path).get()
        defer { unlink(path) }
        let client = try await ClientBootstrap(group: group)
            .channelOption(.writeBufferWaterMark, value: LinkOutlet.watermark)
            .connect(unixDomainSocketPath: path).get()
        let outlet = try await client.eventLoop.submit {
            let outlet = LinkOutlet(channel: client, rate: rate)
            body(outlet, client)
            return NIOLoopBound(outlet, eventLoop: client.eventLoop)
        }.get()
        var child: (any Channel)?
        while child == nil {
            child = accepted.withLock { $0 }
            try await Task.sleep(for: .milliseconds(2))
        }
        try await child?.setOption(.autoRead, value: true).get()
        if let last {
            while reader.numbers.count < last.after { try await Task.sleep(for: .milliseconds(5)) }
            try await client.eventLoop.flatSubmit { outlet.value.farewell(Self.frame(last.number)) }.get()
            client.close(promise: nil)
        }
        while !reader.hasEnded { try await Task.sleep(for: .milliseconds(5)) }
        try await server.close()
        return reader.numbers
    }

    @Test("everything leaves, in its order, and a beat is not behind what waits")
    func order() async throws {
        let numbers = try await numbers(last: (65, after: 66)) { outlet, _ in
            for number in 0..<64 { outlet.send(Self.frame(UInt64(number))) }
            outlet.flush()
            outlet.sendAhead(Self.frame(Self.ahead))
            outlet.send(Self.frame(64))
        }
        #expect(numbers.filter { $0 != Self.ahead } == Array(0...65))
        let place = try #require(numbers.firstIndex(of: Self.ahead))
        #expect(place < 32, "\(place)")
    }

    @Test("a farewell is not behind what waits, which is given up for it")
    func farewell() async throws {
        let numbers = try await numbers { outlet, channel in
            for number in 0..<64 { outlet.send(Self.frame(UInt64(number))) }
            let said = outlet.farewell(Self.frame(1000))
            outlet.send(Self.frame(1001))
            said.whenComplete { _ in channel.close(promise: nil) }
        }
        #expect(numbers.last == 1000)
        #expect(Array(numbers.dropLast()) == Array(0..<UInt64(numbers.count - 1)))
        #expect(numbers.count < 32, "\(numbers.count)")
    }

    @Test("with a bound what waits leaves later, by itself and in its order")
    func paced() async throws {
        let numbers = try await numbers(rate: 2 << 20, last: (10, after: 11)) { outlet, _ in
            for number in 0..<10 { outlet.send(Self.frame(UInt64(number))) }
            outlet.sendAhead(Self.frame(Self.ahead))
        }
        #expect(numbers.filter { $0 != Self.ahead } == Array(0...10))
        let place = try #require(numbers.firstIndex(of: Self.ahead))
        #expect(place < 4, "\(place)")
    }
}
