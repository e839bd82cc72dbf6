import Foundation
import Link
import Logging
import NIOCore
import NIOPosix
import Synchronization
import TestSupport
import Testing
import Units

@testable import Node

/// Keys of two pairs of hosts that know nothing of each other, made as an operator makes them, and what is made wrong.
struct TestKeys {
    let folder: URL

    init() async throws {
        folder = FileManager.default.temporaryDirectory.appending(path: "keys-\(UUID().uuidString.prefix(8))")
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        try await KeyMaker.create(
            .init(directory: path("named"), primary: ["a"], secondary: ["b.example"], days: 2, sharedKey: false))
        for name in ["own", "strange"] {
            try await KeyMaker.create(
                .init(
                    directory: path(name), primary: ["a.example"], secondary: ["b.example", "127.0.0.1"], days: 2,
                    sharedKey: false))
            try await KeyMaker.create(
                .init(directory: path("\(name)-psk"), primary: [], secondary: [], days: 2, sharedKey: true))
        }
    }

    func remove() { try? FileManager.default.removeItem(at: folder) }

    func path(_ name: String) -> String { folder.appending(path: name).path }

    var primary: TLSFiles { .certificates(directory: path("own/primary")) }
    var secondary: TLSFiles { .certificates(directory: path("own/secondary")) }
    var key: TLSFiles { .sharedKey(file: path("own-psk/primary/link.psk")) }
    var strangeKey: TLSFiles { .sharedKey(file: path("strange-psk/primary/link.psk")) }

    /// A copy of a host's folder, changed.
    func copy(of name: String, _ change: (String) throws -> Void) throws -> TLSFiles {
        let copy = path("copy-\(UUID().uuidString.prefix(8))")
        try FileManager.default.copyItem(atPath: path(name), toPath: copy)
        try change(copy)
        return .certificates(directory: copy)
    }

    /// The host's own certificate again, signed by the same authority, which ended yesterday.
    func expired(_ name: String, role: String) throws -> TLSFiles {
        try copy(of: "own/\(name)") { copy in
            try "extendedKeyUsage=\(role)Auth\nsubjectAltName=DNS:localhost,IP:127.0.0.1\n".write(
                toFile: "\(copy)/extensions", atomically: true, encoding: .utf8)
            try openssl(
                "req", "-new", "-key", "\(copy)/\(role)-key.pem", "-subj", "/CN=expired", "-out", "\(copy)/request")
            try openssl(
                "x509", "-req", "-in", "\(copy)/request", "-CA", path("own/authority/ca-cert.pem"), "-CAkey",
                path("own/authority/ca-key.pem"), "-set_serial", "7", "-days", "-1", "-extfile", "\(copy)/extensions",
                "-out", "\(copy)/\(role)-cert.pem")
        }
    }

    private func openssl(_ arguments: String...) throws {
        let outcome = try Program.run("openssl", arguments)
        try #require(outcome.succeeded, "\(outcome.errors)")
    }
}

/// Keeps what is logged.
final class LogBook: Sendable {
    typealias Line = (message: String, metadata: Logger.Metadata)
    private let all = Mutex<[Line]>([])

    var lines: [Line] { all.withLock { $0 } }
    var text: String { lines.map { "\($0.message) \($0.metadata)" }.joined(separator: "\n") }

    func logger() -> Logger {
        var logger = Logger(label: "test", factory: { _ in Handler(book: self) })
        logger.logLevel = .trace
        return logger
    }

    fileprivate func add(_ line: Line) { all.withLock { $0.append(line) } }

    private struct Handler: LogHandler {
        let book: LogBook
        var metadata: Logger.Metadata = [:]
        var logLevel = Logger.Level.trace

        subscript(metadataKey key: String) -> Logger.Metadata.Value? {
            get { metadata[key] }
            set { metadata[key] = newValue }
        }

        func log(event: LogEvent) {
            book.add(("\(event.level): \(event.message)", event.metadata ?? [:]))
        }
    }
}

/// A secondary's link, which refuses whoever says hello with these words: so far, and no further, came a primary.
final class TestLinkServer: Sendable {
    static let words = "you were let in"

    let address: Address
    let book: LogBook
    private let group: MultiThreadedEventLoopGroup
    private let task: Task<Void, any Error>

    init(_ files: TLSFiles?, helloTimeout: TimeAmount = .seconds(10)) async throws {
        let book = LogBook()
        let group = MultiThreadedEventLoopGroup(numberOfThreads: 1)
        var server = LinkServer(
            group: group, tls: try files.map { files throws(TLSRefused) in try LinkTLS.secondary(files) },
            log: book.logger()
        ) { hello in
            throw Refuse(code: .busy, message: Self.words)
        }
        server.helloTimeout = helloTimeout
        let listening = server
        let (addresses, address) = AsyncStream.makeStream(of: Address.self)
        task = Task.detached {
            defer { address.finish() }
            try await listening.run(address: Address(parsing: "127.0.0.1:0")) { channel in
                if let port = channel.localAddress?.port, let own = try? Address(parsing: "127.0.0.1:\(port)") {
                    address.yield(own)
                }
            }
        }
        var own: Address?
        for await address in addresses {
            own = address
            break
        }
        self.address = try #require(own)
        self.book = book
        self.group = group
    }

    func stop() async {
        task.cancel()
        _ = await task.result
        try? await group.shutdownGracefully()
    }

    /// What a primary with these credentials is told.
    func greet(_ files: TLSFiles?, name: String? = nil) async -> any Error {
        var random = SystemRandomNumberGenerator()
        let hello = Hello(
            guest: "g", session: Identifier(using: &random), durability: .disk, label: "test", disks: [],
            generation: Generation(0), agentVersion: "test")
        do {
            let tls = try files.map { files throws(TLSRefused) in
                try LinkTLS.primary(files, to: address, name: name)
            }
            _ = try await AgentLink.connect(
                to: address, hello: hello, tls: tls, loop: MultiThreadedEventLoopGroup.singleton.next())
            return Refuse(code: .internal, message: "welcome")
        } catch {
            return error
        }
    }

    func expectLetIn(_ files: TLSFiles?, name: String? = nil, _ what: Comment? = nil) async {
        let error = await greet(files, name: name)
        #expect((error as? Refuse)?.message == Self.words, what ?? "\(error)")
    }

    /// Waits until the log has these words.
    func logs(_ words: String) async -> Bool {
        for _ in 0..<300 {
            if book.text.contains(words) { return true }
            try? await Task.sleep(for: .milliseconds(10))
        }
        return false
    }
}
