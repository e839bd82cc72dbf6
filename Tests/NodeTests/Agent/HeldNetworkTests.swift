import Glibc
import Logging
import NIOCore
import NIOPosix
import QEMU
import Synchronization
import Testing
import Units

@testable import Node

/// The packets' way through the agent, over the sockets that QEMU would have.
@Suite(.serialized) struct HeldNetworkTests {
    /// QEMU's end of a network card's filter.
    private final class Filter {
        let loop: any EventLoop = MultiThreadedEventLoopGroup.singleton.next()
        let network: NIOLoopBound<HeldNetwork>
        let out: CInt
        let back: CInt
        /// What the session was told, in order.
        let told = Told()

        final class Told: Sendable {
            let words = Mutex<[String]>([])
            var all: [String] { words.withLock { $0 } }
        }

        init(isClosed: Bool = false, closesOnLoss: Bool = false, limit: UInt64 = 1 << 20) async throws {
            let told = told
            let log = Logger(label: "test", factory: { _ in SwiftLogNoOpLogHandler() })
            let loop = loop
            let (network, card) = try await loop.submit {
                let network = HeldNetwork(
                    limit: limit, first: Epoch(1), isClosed: isClosed, closesOnLoss: closesOnLoss, log: log)
                network.onHeld = { told.words.withLock { $0.append("held") } }
                network.onInForce = { told.words.withLock { $0.append("in force") } }
                network.onFailure = { words in told.words.withLock { $0.append("failure: \(words)") } }
                network.onRelease = { words in told.words.withLock { $0.append(words) } }
                return (
                    NIOLoopBound(network, eventLoop: loop), NIOLoopBound(network.add("n0"), eventLoop: loop)
                )
            }.get()
            self.network = network
            out = try await Self.connect(loop) { PacketHandler(network: network.value, card: card.value) }
            back = try await Self.connect(loop) { PacketWay(network: network.value, card: card.value) }
            let isConnected = try await loop.submit { card.value.isConnected }.get()
            #expect(isConnected)
        }

        private static func connect(
            _ loop: any EventLoop, _ handler: @escaping @Sendable () -> any ChannelHandler
        ) async throws -> CInt {
            var ends: [CInt] = [-1, -1]
            guard socketpair(AF_UNIX, CInt(SOCK_STREAM.rawValue), 0, &ends) == 0 else {
                throw IOError(errnoCode: errno, reason: "socketpair")
            }
            _ = try await ClientBootstrap(group: loop).channelInitializer { channel in
                channel.eventLoop.makeCompletedFuture { try channel.pipeline.syncOperations.addHandler(handler()) }
            }.withConnectedSocket(ends[0]).get()
            return ends[1]
        }

        func close() {
            _ = Glibc.close(out)
            _ = Glibc.close(back)
        }

        func on(_ body: @escaping @Sendable (HeldNetwork) -> Void) async throws {
            try await loop.submit { [network] in body(network.value) }.get()
        }

        static func frame(_ number: UInt8, length: Int = 20) -> [UInt8] {
            withUnsafeBytes(of: UInt32(length).bigEndian, Array.init) + [0, 0, 0, 12]
                + [UInt8](repeating: number, count: length)
        }

        func send(_ bytes: [UInt8]) { #expect(Glibc.write(out, bytes, bytes.count) == bytes.count) }

        /// Sends, and waits until the agent holds or has dropped so many more.
        func sendHeld(_ numbers: [UInt8]) async throws {
            let before = try await seen()
            for number in numbers { send(Self.frame(number)) }
            for _ in 0..<500 {
                if try await seen() == before + UInt64(numbers.count) { return }
                try await Task.sleep(for: .milliseconds(2))
            }
            Issue.record("the packets did not arrive")
        }

        private func seen() async throws -> UInt64 {
            let figures = try await loop.submit { [network] in network.value.figures }.get()
            return UInt64(figures.packets) + figures.dropped
        }

        /// The packets that come back within some time: their first byte. Each must be what was sent.
        func received(_ count: Int) -> [UInt8] {
            var bytes: [UInt8] = []
            var entry = pollfd(fd: back, events: Int16(POLLIN), revents: 0)
            let wanted = count == 0 ? 1 : count * 28
            while bytes.count < wanted, poll(&entry, 1, count == 0 ? 50 : 2000) == 1 {
                var buffer = [UInt8](repeating: 0, count: 65536)
                let got = Glibc.read(back, &buffer, buffer.count)
                guard got > 0 else { break }
                bytes += buffer[..<got]
            }
            var numbers: [UInt8] = []
            while bytes.count >= 28 {
                numbers.append(bytes[8])
                #expect(Array(bytes[..<28]) == Self.frame(bytes[8]))
                bytes.removeFirst(28)
            }
            #expect(bytes.isEmpty)
            return numbers
        }
    }

    @Test func packetsPassThenWaitForTheirEpochAndComeBackByteForByte() async throws {
        let filter = try await Filter()
        defer { filter.close() }
        filter.send(Filter.frame(1) + Filter.frame(2)[..<9])
        #expect(filter.received(1) == [1])
        filter.send(Array(Filter.frame(2)[9...]))
        #expect(filter.received(1) == [2])
        try await filter.on { network in
            network.boundary()
            network.committed(Epoch(1))
        }
        try await filter.sendHeld([3, 4])
        #expect(filter.told.all == ["held"])
        try await filter.on { $0.boundary() }
        try await filter.sendHeld([5])
        #expect(filter.received(0) == [])
        try await filter.on { $0.committed(Epoch(2)) }
        #expect(filter.received(2) == [3, 4])
        #expect(filter.received(0) == [])
        try await filter.on { network in
            network.boundary()
            network.committed(Epoch(3))
        }
        #expect(filter.received(1) == [5])
        #expect(filter.told.all == ["held", "held", "in force"])
    }

    @Test func theEndLetsThemOutInOrderAndWhatComesLaterPasses() async throws {
        let filter = try await Filter(isClosed: true)
        defer { filter.close() }
        try await filter.sendHeld([1])
        try await filter.on { $0.boundary() }
        try await filter.sendHeld([2, 3])
        try await filter.on { $0.end(.linkLost("cut")) }
        filter.send(Filter.frame(4))
        #expect(filter.received(4) == [1, 2, 3, 4])
        #expect(filter.told.all.last?.contains("OPEN") == true)
        let loop = filter.loop
        let network = filter.network
        try await loop.flatSubmit { network.value.settle(within: .seconds(5), loop: loop) }.get()
    }

    @Test(
        arguments: [
            (AgentEnding.linkLost("cut"), true, true), (.congested("slow"), true, true),
            (.secondaryRefused("no"), true, true), (.fenced("it became the guest"), true, true),
            (.fenced("it became the guest"), false, true), (.linkLost("cut"), false, false),
            (.detach("wish"), true, false), (.mirrorLost("ours"), true, false), (.guardianGone, true, false),
        ])
    func whyItEndsDecidesWhetherTheyLeave(_ ending: AgentEnding, closesOnLoss: Bool, closed: Bool) async throws {
        let filter = try await Filter(isClosed: true, closesOnLoss: closesOnLoss)
        defer { filter.close() }
        try await filter.sendHeld([1, 2])
        try await filter.on { $0.end(ending) }
        filter.send(Filter.frame(3))
        let left: [UInt8] = closed ? [] : [1, 2, 3]
        #expect(filter.received(left.count) == left)
        let wanted = closed ? "CLOSED" : "OPEN"
        #expect(filter.told.all.last?.contains(wanted) == true)
    }

    @Test func aLossBeforeTheFirstCommitClosesNothing() async throws {
        let filter = try await Filter(closesOnLoss: true)
        defer { filter.close() }
        try await filter.on { $0.end(.linkLost("cut")) }
        filter.send(Filter.frame(1))
        #expect(filter.received(1) == [1])
    }

    @Test func aGuestThatSendsMoreThanThereIsRoomForIsNotKeptWaiting() async throws {
        let filter = try await Filter(isClosed: true, limit: 2 * (28 + 32))
        defer { filter.close() }
        try await filter.sendHeld([1, 2, 3, 4])
        try await filter.on { network in
            network.boundary()
            network.committed(Epoch(1))
        }
        #expect(filter.received(2) == [1, 2])
        #expect(filter.received(0) == [])
        let network = filter.network
        let dropped = try await filter.loop.submit { network.value.figures.dropped }.get()
        #expect(dropped == 2)
    }

    @Test func nonsenseAndAFilterThatGoesEndTheSession() async throws {
        for gone in [false, true] {
            let filter = try await Filter()
            if gone { filter.close() } else { filter.send([0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0]) }
            for _ in 0..<500 where filter.told.all.isEmpty { try await Task.sleep(for: .milliseconds(2)) }
            let words = filter.told.all.first ?? "nothing"
            #expect(words.hasPrefix("failure: ") && words.contains("'n0'"), "\(words)")
            if !gone { filter.close() }
        }
    }
}
