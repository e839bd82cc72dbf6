import Glibc
import NIOCore
import NIOPosix
import QEMU
import Synchronization
import Testing

@testable import Node

@Suite struct QMPClientTests {
    private let loop: any EventLoop = MultiThreadedEventLoopGroup.singleton.next()

    private func kind(_ path: String) async -> QMPConnectError.Kind? {
        do {
            let client = try await QMPClient.connect(path: path, eventLoop: loop, greetingTimeout: .milliseconds(150))
            client.close()
            return nil
        } catch {
            #expect(error.path == path)
            return error.kind
        }
    }

    /// A server that says `words` to each client and then nothing, or closes.
    private func withServer(
        says words: String, closes: Bool = false, _ body: (String) async throws -> Void
    ) async throws {
        let directory = try FakeGuest.makeDirectory()
        let path = directory + "/s"
        let server = try await ServerBootstrap(group: loop)
            .childChannelInitializer { channel in
                if !words.isEmpty { channel.writeAndFlush(ByteBuffer(string: words), promise: nil) }
                if closes { channel.close(promise: nil) }
                return channel.eventLoop.makeSucceededVoidFuture()
            }
            .bind(unixDomainSocketPath: path).get()
        try await body(path)
        try await server.close()
        unlink(path)
        rmdir(directory)
    }

    @Test func aPathThatIsNotThereIsMissing() async {
        #expect(await kind("/tmp/colo-blk-no-such-directory/qmp") == .missing)
        #expect(await kind("/dev/null/qmp") == .missing)
    }

    @Test func aFileIsNoSocket() async {
        #expect(await kind("/dev/null") == .notSocket)
        #expect(await kind("/tmp") == .notSocket)
    }

    @Test func aSocketWhoseServerDiedRefuses() async throws {
        let directory = try FakeGuest.makeDirectory()
        let path = directory + "/s"
        let server = try await ServerBootstrap(group: loop).bind(unixDomainSocketPath: path).get()
        let moved = directory + "/left"
        #expect(rename(path, moved) == 0)
        try await server.close()
        #expect(await kind(moved) == .refused)
        unlink(moved)
        rmdir(directory)
    }

    @Test func aPathLongerThanASocketMayHaveIsNamed() async throws {
        let directory = try FakeGuest.makeDirectory()
        let short = directory + "/s"
        let server = try await ServerBootstrap(group: loop).bind(unixDomainSocketPath: short).get()
        let long = directory + "/" + String(repeating: "x", count: 110)
        #expect(rename(short, long) == 0)
        #expect(await kind(long) == .pathTooLong)
        try await server.close()
        unlink(long)
        rmdir(directory)
    }

    @Test func aMonitorThatSaysNothingIsBusy() async throws {
        try await withServer(says: "") { path in
            #expect(await kind(path) == .busy)
            let error = QMPConnectError(path: path, kind: .busy)
            #expect(error.description.contains("another client, libvirt perhaps, is connected"))
        }
    }

    @Test func aHumanMonitorIsNotQMP() async throws {
        try await withServer(says: "QEMU 7.2.22 monitor - type 'help' for more information\r\n(qemu) ") { path in
            guard case .notQMP = await kind(path) else {
                Issue.record("not recognised")
                return
            }
        }
    }

    @Test func halfAGreetingIsNotQMP() async throws {
        try await withServer(says: "{\"QMP\": {") { path in
            #expect(await kind(path) == .notQMP("part of a line and then nothing"))
        }
    }

    @Test func aPeerThatClosesAtOnceIsNamed() async throws {
        try await withServer(says: "", closes: true) { path in #expect(await kind(path) == .closed) }
    }

    @Test func commandsAreAnsweredByIdAndThePeerIsKnown() async throws {
        let guest = try await FakeGuest.start(eventLoop: loop)
        let client = try await QMPClient.connect(path: guest.path, eventLoop: loop)
        #expect(client.peerPID == getpid())
        #expect(client.peerUID == getuid())
        #expect(client.outOfBand)
        #expect(client.greeting.version == QEMUVersion(7, 2, 22, package: "fake"))
        async let status = client.execute("query-status")
        async let migration = client.execute("query-migrate")
        #expect(try await migration["status"] == "none")
        #expect(try await status["running"] == true)
        do {
            try await client.execute("no-such-command")
            Issue.record("accepted")
        } catch {
            guard case .refused("no-such-command", let reason) = error else {
                Issue.record("\(error)")
                return
            }
            #expect(reason.isUnknownCommand)
        }
        client.close()
        await guest.stop()
    }

    @Test func aCommandWithoutAnswerTimesOutAndOthersGoOn() async throws {
        var state = FakeGuest.State()
        state.unanswered = ["query-chardev"]
        let guest = try await FakeGuest.start(state, eventLoop: loop)
        let client = try await QMPClient.connect(path: guest.path, eventLoop: loop)
        await #expect(throws: QMPError.timedOut(command: "query-chardev", after: .milliseconds(50))) {
            try await client.execute("query-chardev", timeout: .milliseconds(50))
        }
        #expect(try await client.execute("query-migrate")["status"] == "none")
        client.close()
        await guest.stop()
    }

    @Test func aYankPassesAnyNumberOfStuckCommands() async throws {
        var state = FakeGuest.State()
        state.hangsOn = "colo-blk-nbd-0"
        state.nodes = ["colo-blk-nbd-0"]
        // The negotiation itself must not hang.
        let guest = try await FakeGuest.start(eventLoop: loop)
        let client = try await QMPClient.connect(path: guest.path, eventLoop: loop)
        guest.state.withLock { $0 = state }
        let stuck = (0..<20).map { _ in
            Task { try? await client.execute("query-status", timeout: .milliseconds(300)) }
        }
        try await Task.sleep(for: .milliseconds(50))
        #expect(guest.log.count == QMPConnection.wireLimit)
        try await client.execute(
            "yank", ["instances": [["type": "block-node", "node-name": "colo-blk-nbd-0"]]], oob: true)
        #expect(guest.log.last == "oob:yank")
        for task in stuck { _ = await task.value }
        client.close()
        await guest.stop()
    }

    @Test func everySubscriptionGetsTheEventsUntilTheEnd() async throws {
        let guest = try await FakeGuest.start(eventLoop: loop)
        let client = try await QMPClient.connect(path: guest.path, eventLoop: loop)
        let first = client.events
        let second = client.events
        try await client.execute("query-status")
        guest.send(event: "STOP")
        guest.send(event: "RESUME")
        guest.disconnect()
        var names: [[String]] = []
        for stream in [first, second] {
            var seen: [String] = []
            for await event in stream { seen.append(event.name) }
            names.append(seen)
        }
        #expect(names == [["STOP", "RESUME"], ["STOP", "RESUME"]])
        await #expect(throws: QMPError.self) { try await client.execute("query-status") }
        await guest.stop()
    }
}
