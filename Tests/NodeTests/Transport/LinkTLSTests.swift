import Foundation
import Link
import NIOCore
import NIOPosix
import TestSupport
import Testing

@testable import Node

@Suite("Link and TLS", .serialized, .enabled(if: !ExportFixture.missing("openssl"), "openssl is missing"))
struct LinkTLSTests {
    private static func withKeys(_ body: (TestKeys) async throws -> Void) async throws {
        let keys = try await TestKeys()
        defer { keys.remove() }
        try await body(keys)
    }

    private static func withServer(
        _ files: TLSFiles?, helloTimeout: TimeAmount = .seconds(10), _ body: (TestLinkServer) async throws -> Void
    ) async throws {
        let server = try await TestLinkServer(files, helloTimeout: helloTimeout)
        do {
            try await body(server)
        } catch {
            await server.stop()
            throw error
        }
        await server.stop()
    }

    @Test("certificates of one authority, and one key, let a primary in")
    func letIn() async throws {
        try await Self.withKeys { keys in
            try await Self.withServer(keys.secondary) { server in
                await server.expectLetIn(keys.primary)
                await server.expectLetIn(keys.primary, name: "b.example")
                await server.expectLetIn(keys.primary, name: "localhost")
            }
            // Both folders are for both roles: the way back after a failover.
            try await Self.withServer(.certificates(directory: keys.path("own/primary"))) { server in
                await server.expectLetIn(keys.secondary, name: "a.example")
            }
            try await Self.withServer(keys.key) { server in await server.expectLetIn(keys.key) }
            try await Self.withServer(nil) { server in await server.expectLetIn(nil) }
        }
    }

    /// One row: credentials of the secondary and of the primary, and words that each of them must say.
    private struct Row {
        let what: String
        let secondary: TLSFiles?
        let primary: TLSFiles?
        var name: String?
        let primarySays: [String]
        let secondarySays: [String]
    }

    private static func rows(_ keys: TestKeys) throws -> [Row] {
        let named = TLSFiles.certificates(directory: keys.path("named/secondary"))
        let namedPrimary = TLSFiles.certificates(directory: keys.path("named/primary"))
        let strange = TLSFiles.certificates(directory: keys.path("strange/primary"))
        let wrongUse = try keys.copy(of: "own/primary") { copy in
            for name in ["cert", "key"] {
                try FileManager.default.removeItem(atPath: "\(copy)/client-\(name).pem")
                try FileManager.default.copyItem(
                    atPath: "\(copy)/server-\(name).pem", toPath: "\(copy)/client-\(name).pem")
            }
        }
        let wrongServerUse = try keys.copy(of: "own/secondary") { copy in
            for name in ["cert", "key"] {
                try FileManager.default.removeItem(atPath: "\(copy)/server-\(name).pem")
                try FileManager.default.copyItem(
                    atPath: "\(copy)/client-\(name).pem", toPath: "\(copy)/server-\(name).pem")
            }
        }
        // Believes the right authority, but is of another one.
        let halfStrange = try keys.copy(of: "strange/primary") { copy in
            try FileManager.default.removeItem(atPath: "\(copy)/ca-cert.pem")
            try FileManager.default.copyItem(
                atPath: keys.path("own/primary/ca-cert.pem"), toPath: "\(copy)/ca-cert.pem")
        }
        let otherUser = keys.path("other-user.psk")
        try "eve:\(String(repeating: "5a", count: 32))\n".write(toFile: otherUser, atomically: true, encoding: .utf8)
        chmod(otherUser, 0o600)
        return [
            Row(
                what: "a primary of another authority that believes its own", secondary: keys.secondary,
                primary: strange, primarySays: ["the secondary's certificate is not accepted", "keys create"],
                secondarySays: ["the primary does not accept this side's certificate"]),
            Row(
                what: "a primary whose certificate is of another authority", secondary: keys.secondary,
                primary: halfStrange, primarySays: ["the secondary does not accept this side's certificate"],
                secondarySays: ["the primary's certificate is not accepted", "ca-cert.pem"]),
            Row(
                what: "an expired primary", secondary: keys.secondary,
                primary: try keys.expired("primary", role: "client"),
                primarySays: ["the secondary does not accept this side's certificate", "expired"],
                secondarySays: ["the primary's certificate is not accepted", "expired on 20"]),
            Row(
                what: "an expired secondary", secondary: try keys.expired("secondary", role: "server"),
                primary: keys.primary,
                primarySays: ["the secondary's certificate is not accepted", "expired on 20"],
                secondarySays: ["the primary does not accept this side's certificate", "expired"]),
            Row(
                what: "a primary with a certificate for servers", secondary: keys.secondary, primary: wrongUse,
                primarySays: ["the secondary does not accept this side's certificate"],
                secondarySays: ["the primary's certificate is not accepted", "not for a primary"]),
            Row(
                what: "a secondary with a certificate for clients", secondary: wrongServerUse, primary: keys.primary,
                primarySays: ["the secondary's certificate is not accepted", "not for a secondary"],
                secondarySays: ["the primary does not accept this side's certificate"]),
            Row(
                what: "another host's certificate", secondary: named, primary: namedPrimary, name: "c.example",
                primarySays: ["not one of c.example", "--tls-name"],
                secondarySays: ["left after the TLS handshake"]),
            Row(
                what: "another address's certificate", secondary: named, primary: namedPrimary,
                primarySays: ["not one of the address", "--tls-name"], secondarySays: ["left after the TLS handshake"]),
            Row(
                what: "clear text to TLS", secondary: keys.secondary, primary: nil,
                primarySays: ["takes TLS only", "--tls-certificates"], secondarySays: ["speaks clear text"]),
            Row(
                what: "clear text to a shared key", secondary: keys.key, primary: nil,
                primarySays: ["takes TLS only", "--tls-psk"], secondarySays: ["speaks clear text"]),
            Row(
                what: "certificates to clear text", secondary: nil, primary: keys.primary,
                primarySays: ["takes clear text only", "serve"], secondarySays: ["speaks TLS", "serve"]),
            Row(
                what: "a shared key to clear text", secondary: nil, primary: keys.key,
                primarySays: ["takes clear text only"], secondarySays: ["speaks TLS"]),
            Row(
                what: "a shared key to certificates", secondary: keys.secondary, primary: keys.key,
                primarySays: ["the same kind"], secondarySays: ["the same kind"]),
            Row(
                what: "certificates to a shared key", secondary: keys.key, primary: keys.primary,
                primarySays: ["the same kind"], secondarySays: ["the same kind"]),
            Row(
                what: "another key", secondary: keys.key, primary: keys.strangeKey,
                primarySays: ["another shared key"], secondarySays: ["another shared key"]),
            Row(
                what: "another user", secondary: keys.key, primary: .sharedKey(file: otherUser),
                primarySays: ["no key of this side's user"], secondarySays: ["names a user"]),
        ]
    }

    @Test("wrong credentials are refused, finally, with the reason on both sides, and nothing of the link is read")
    func refused() async throws {
        try await Self.withKeys { keys in
            for row in try Self.rows(keys) {
                try await Self.withServer(row.secondary) { server in
                    // More than once: what is said last must not be lost with bytes that nobody reads.
                    for _ in 0..<3 {
                        let error = await server.greet(row.primary, name: row.name)
                        let isFinal = error is TLSRefused || (error as? Refuse)?.code == .protocol
                        #expect(isFinal, "\(row.what): \(error)")
                        for words in row.primarySays { #expect("\(error)".contains(words), "\(row.what): \(error)") }
                    }
                    for words in row.secondarySays {
                        #expect(await server.logs(words), "\(row.what): \(server.book.text)")
                    }
                    #expect(await server.logs("primary refused"), "\(row.what): \(server.book.text)")
                    // Whoever is right is not harmed by that.
                    if let right = right(row.secondary, keys) { await server.expectLetIn(right) }
                }
            }
        }
    }

    /// The credentials that a secondary with these lets in, when there are any.
    private func right(_ secondary: TLSFiles?, _ keys: TestKeys) -> TLSFiles? {
        if secondary == keys.secondary { return keys.primary }
        return secondary == keys.key ? keys.key : nil
    }

    @Test("a client without a certificate is refused")
    func noCertificate() async throws {
        try await Self.withKeys { keys in
            try await Self.withServer(keys.secondary) { server in
                let address = "\(server.address)"
                // It takes the handshake for done before it is refused, and may leave sooner than that.
                _ = try await ExportFixture.offThread {
                    try Program.run("openssl", ["s_client", "-connect", address, "-tls1_3"])
                }
                #expect(await server.logs("shows no certificate"), "\(server.book.text)")
                // TLS 1.2 with the right certificate is refused, too.
                let own = keys.path("own/primary")
                let old = try await ExportFixture.offThread {
                    try Program.run(
                        "openssl",
                        [
                            "s_client", "-connect", address, "-tls1_2", "-cert", "\(own)/client-cert.pem", "-key",
                            "\(own)/client-key.pem", "-CAfile", "\(own)/ca-cert.pem",
                        ])
                }
                #expect(old.errors.contains("protocol version"), "\(old.errors)")
                await server.expectLetIn(keys.primary)
            }
        }
    }

    @Test("a handshake that never ends is ended, and half-open connections are bounded in number")
    func halfOpen() async throws {
        try await Self.withKeys { keys in
            try await Self.withServer(keys.secondary, helloTimeout: .seconds(2)) { server in
                var connections: [any Channel] = []
                for index in 0..<LinkLobby.visitorsMax + 16 {
                    let channel = try await Self.connect(server.address)
                    // The beginning of a TLS record that is longer than what comes.
                    let bytes: [UInt8] = index % 2 == 0 ? [] : [22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3]
                    try await channel.writeAndFlush(ByteBuffer(bytes: bytes))
                    connections.append(channel)
                }
                #expect(await server.logs("more than 64 connections wait"), "\(server.book.text)")
                await server.expectLetIn(keys.primary, "a primary does not come in beside half-open connections")
                for (index, channel) in connections.enumerated() {
                    let ended = await Self.ends(channel, within: .seconds(8))
                    #expect(ended, "connection \(index) stays")
                }
                #expect(await server.logs("no hello has come within 2 s"), "\(server.book.text)")
                await server.expectLetIn(keys.primary)
            }
        }
    }

    private static func connect(_ address: Address) async throws -> any Channel {
        guard case .tcp(let host, let port) = address.place else { throw ChannelError.unknownLocalAddress }
        return try await ClientBootstrap(group: MultiThreadedEventLoopGroup.singleton).connect(host: host, port: port)
            .get()
    }

    private static func ends(_ channel: any Channel, within limit: Duration) async -> Bool {
        let begin = ContinuousClock.now
        while channel.isActive, ContinuousClock.now - begin < limit { try? await Task.sleep(for: .milliseconds(10)) }
        defer { channel.close(promise: nil) }
        return !channel.isActive
    }

    @Test("a key that others can read is not used, and a damaged or missing file is named")
    func files() async throws {
        try await Self.withKeys { keys in
            for (name, mode) in [("client-key.pem", 0o640), ("client-key.pem", 0o604)] as [(String, mode_t)] {
                let files = try keys.copy(of: "own/primary") { chmod("\($0)/\(name)", mode) }
                let refused = #expect(throws: TLSRefused.self) { try Self.primary(files) }
                let words = refused?.description ?? ""
                #expect(words.contains(name) && words.contains("chmod 600"), "\(words)")
            }
            for name in ["ca-cert.pem", "client-cert.pem", "client-key.pem"] {
                let damaged = try keys.copy(of: "own/primary") { copy in
                    try "no PEM".write(toFile: "\(copy)/\(name)", atomically: false, encoding: .utf8)
                }
                let refused = #expect(throws: TLSRefused.self) { try Self.primary(damaged) }
                #expect(refused?.description.contains(name) == true, "\(String(describing: refused))")
                let missing = try keys.copy(of: "own/primary") { copy in
                    try FileManager.default.removeItem(atPath: "\(copy)/\(name)")
                }
                let absent = #expect(throws: TLSRefused.self) { try Self.primary(missing) }
                #expect(absent?.description.contains(name) == true, "\(String(describing: absent))")
            }
            // A key of another certificate.
            let mixed = try keys.copy(of: "own/primary") { copy in
                try FileManager.default.removeItem(atPath: "\(copy)/client-key.pem")
                try FileManager.default.copyItem(atPath: "\(copy)/server-key.pem", toPath: "\(copy)/client-key.pem")
            }
            #expect(throws: TLSRefused.self) { try Self.primary(mixed) }
            #expect(throws: TLSRefused.self) { try Self.primary(keys.primary, name: "192.0.2.7") }
        }
    }

    private static func primary(_ files: TLSFiles, name: String? = nil) throws -> LinkTLS {
        try LinkTLS.primary(files, to: try Address(parsing: "127.0.0.1:1"), name: name)
    }

    @Test("an end that is near, or over, is told before the other host tells it")
    func warning() async throws {
        try await Self.withKeys { keys in
            let soon = try Self.primary(keys.primary).warning ?? ""
            #expect(soon.contains("expires on 20"), "\(soon)")
            let over = try Self.primary(try keys.expired("primary", role: "client")).warning ?? ""
            #expect(over.contains("expired on 20"), "\(over)")
            let key = try Self.primary(keys.key).warning
            #expect(key == nil)
        }
    }
}

@Suite("Making keys", .enabled(if: !ExportFixture.missing("openssl"), "openssl is missing"))
struct KeyMakerTests {
    private static func withFolder(_ body: (String) async throws -> Void) async throws {
        let folder = FileManager.default.temporaryDirectory.appending(path: "keys-\(UUID().uuidString.prefix(8))").path
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(atPath: folder) }
        try await body(folder)
    }

    private static func options(_ directory: String, psk: Bool = false) -> KeyMaker.Options {
        psk
            ? .init(directory: directory, primary: [], secondary: [], days: 2, sharedKey: true)
            : .init(directory: directory, primary: ["a"], secondary: ["b", "2001:db8::7"], days: 2, sharedKey: false)
    }

    @Test("everything that is made belongs to its maker alone", arguments: [true, false])
    func permissions(psk: Bool) async throws {
        try await Self.withFolder { folder in
            try await KeyMaker.create(Self.options("\(folder)/keys", psk: psk))
            var files = 0
            for path in try #require(FileManager.default.enumerator(atPath: folder)) {
                var status = stat()
                try #require(stat("\(folder)/\(path)", &status) == 0)
                let isFolder = status.st_mode & S_IFMT == S_IFDIR
                #expect(status.st_mode & 0o777 == (isFolder ? 0o700 : 0o600), "\(path)")
                files += isFolder ? 0 : 1
            }
            #expect(files == (psk ? 2 : 12))
        }
    }

    @Test("keys are never overwritten, and a failure leaves nothing behind")
    func neverOverwritten() async throws {
        try await Self.withFolder { folder in
            try FileManager.default.createDirectory(atPath: "\(folder)/keys", withIntermediateDirectories: true)
            try await KeyMaker.create(Self.options("\(folder)/keys/"))
            let before = try Data(contentsOf: URL(filePath: "\(folder)/keys/authority/ca-key.pem"))
            for psk in [true, false] {
                let refused = await #expect(throws: KeyMaker.Refused.self) {
                    try await KeyMaker.create(Self.options("\(folder)/keys", psk: psk))
                }
                #expect(refused?.description.contains("never overwritten") == true)
            }
            #expect(try Data(contentsOf: URL(filePath: "\(folder)/keys/authority/ca-key.pem")) == before)
            var wrong = Self.options("\(folder)/other")
            for name in ["", "a b", "a\n[x]", "DNS:a", "a,IP:1.2.3.4", String(repeating: "a", count: 300)] {
                wrong.primary = [name]
                await #expect(throws: KeyMaker.Refused.self, "\(name)") { try await KeyMaker.create(wrong) }
            }
            #expect(try FileManager.default.contentsOfDirectory(atPath: folder) == ["keys"])
        }
    }

    @Test("two shared keys are never the same, and both hosts have one")
    func sharedKeys() async throws {
        try await Self.withFolder { folder in
            var keys: Set<Data> = []
            for name in ["one", "two"] {
                try await KeyMaker.create(Self.options("\(folder)/\(name)", psk: true))
                let both = try ["primary", "secondary"].map {
                    try Data(contentsOf: URL(filePath: "\(folder)/\(name)/\($0)/link.psk"))
                }
                #expect(both[0] == both[1])
                keys.insert(both[0])
            }
            #expect(keys.count == 2)
        }
    }
}
