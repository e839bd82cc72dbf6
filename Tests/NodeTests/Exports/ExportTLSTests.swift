import Foundation
import NBD
import NIOCore
import TestSupport
import Testing

@testable import Node

/// Certificates of one test: an authority, a server for localhost, a client, and a stranger's authority and client.
private struct Certificates {
    let folder: URL

    var own: String { folder.appending(path: "own").path }
    var stranger: String { folder.appending(path: "stranger").path }

    init(in folder: URL) throws {
        self.folder = folder
        try Data(
            """
            [req]
            distinguished_name = name
            [name]
            [ca]
            basicConstraints = critical,CA:TRUE
            keyUsage = critical,keyCertSign
            [server]
            basicConstraints = critical,CA:FALSE
            keyUsage = critical,digitalSignature
            extendedKeyUsage = serverAuth
            subjectAltName = DNS:localhost,IP:127.0.0.1
            [client]
            basicConstraints = critical,CA:FALSE
            keyUsage = critical,digitalSignature
            extendedKeyUsage = clientAuth
            """.utf8
        ).write(to: folder.appending(path: "openssl.cnf"))
        for directory in [own, stranger] {
            try FileManager.default.createDirectory(atPath: directory, withIntermediateDirectories: true)
            try make("ca", directory, signed: false)
            try make("server", directory, signed: true)
            try make("client", directory, signed: true)
        }
    }

    private func make(_ name: String, _ directory: String, signed: Bool) throws {
        var arguments = [
            "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj",
            "/CN=\(name)", "-config", folder.appending(path: "openssl.cnf").path, "-extensions", name, "-keyout",
            "\(directory)/\(name)-key.pem", "-out", "\(directory)/\(name)-cert.pem",
        ]
        if signed { arguments += ["-CA", "\(directory)/ca-cert.pem", "-CAkey", "\(directory)/ca-key.pem"] }
        let outcome = try Program.run("openssl", arguments)
        try #require(outcome.succeeded, "\(outcome.errors)")
    }
}

@Suite("NBD exports and TLS", .serialized, .enabled(if: !ExportFixture.missing("openssl"), "openssl is missing"))
struct ExportTLSTests {
    private static let message = Array("over the wire".utf8)

    private static func withFolder(_ body: (URL) async throws -> Void) async throws {
        let folder = FileManager.default.temporaryDirectory.appending(path: "tls-\(UUID().uuidString.prefix(8))")
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(at: folder) }
        try await body(folder)
    }

    private static func run(_ tls: ExportTLS, _ body: (ExportFixture, MemoryDevice) async throws -> Void) async throws {
        let device = try MemoryDevice(size: 1 << 20)
        device.set(message, at: 4096)
        var configuration = ExportServer.Configuration()
        configuration.tls = tls
        try await ExportFixture.run(
            [.init(name: "", device: device)], configuration: configuration,
            address: try Address(parsing: "127.0.0.1:0")
        ) { try await body($0, device) }
    }

    private static func outcome(_ name: String, _ arguments: [String]) async throws -> Program.Outcome {
        try await ExportFixture.offThread { try Program.run(name, arguments) }
    }

    @Test(
        "certificates: the right client reads and writes, a stranger, one without any and a clear one are refused",
        .enabled(if: !ExportFixture.missing("nbdcopy", "nbdinfo"), "libnbd's tools are missing"))
    func certificates() async throws {
        try await Self.withFolder { folder in
            let certificates = try Certificates(in: folder)
            let tls = try ExportTLS(.certificates(directory: certificates.own), mode: .required)
            try await Self.run(tls) { fixture, device in
                var uri = fixture.server.uri(of: "")
                #expect(uri.isEncrypted)
                uri.certificates = certificates.own
                let file = folder.appending(path: "copy").path
                try await fixture.tool("nbdcopy", ["\(uri)", file])
                #expect(try [UInt8](Data(contentsOf: URL(filePath: file)))[4096..<4109].elementsEqual(Self.message))
                try Data(repeating: 0x5A, count: 1 << 20).write(to: URL(filePath: file))
                try await fixture.tool("nbdcopy", ["--flush", file, "\(uri)"])
                #expect(device.bytes(at: 0, count: 1 << 20).allSatisfy { $0 == 0x5A })
                uri.certificates = certificates.stranger
                #expect(try await !Self.outcome("nbdinfo", ["--size", "\(uri)"]).succeeded)
                uri.certificates = nil
                uri.isEncrypted = false
                let clear = try await Self.outcome("nbdinfo", ["--size", "\(uri)"])
                #expect(!clear.succeeded)
                #expect(clear.errors.contains("TLS"), "\(clear.errors)")
            }
        }
    }

    @Test(
        "QEMU's own TLS credentials work",
        .enabled(if: !ExportFixture.missing("qemu-img"), "qemu-img is missing"))
    func qemu() async throws {
        try await Self.withFolder { folder in
            let certificates = try Certificates(in: folder)
            let tls = try ExportTLS(.certificates(directory: certificates.own), mode: .required)
            try await Self.run(tls) { fixture, _ in
                guard case .tcp(_, let port) = fixture.server.address.place else { return }
                let outcome = try await Self.outcome(
                    "qemu-img",
                    [
                        "convert", "--object", "tls-creds-x509,id=t,endpoint=client,dir=\(certificates.own)", "-O",
                        "raw",
                        "--image-opts", "driver=nbd,host=127.0.0.1,port=\(port),tls-creds=t,export=",
                        folder.appending(path: "copy").path,
                    ])
                #expect(outcome.succeeded, "\(outcome.errors)")
                let bytes = try Data(contentsOf: folder.appending(path: "copy"))
                #expect(bytes[4096..<4109].elementsEqual(Self.message))
            }
        }
    }

    @Test(
        "a pre-shared key: the right one reads, a wrong one and an unknown user are refused",
        .enabled(if: !ExportFixture.missing("nbdcopy", "nbdinfo"), "libnbd's tools are missing"))
    func preSharedKey() async throws {
        try await Self.withFolder { folder in
            let right = folder.appending(path: "keys").path
            let wrong = folder.appending(path: "wrong").path
            let key = String(repeating: "0123456789abcdef", count: 4)
            try Data("# keys\nbob:\(String(key.reversed()))\nalice:\(key)\n".utf8).write(to: URL(filePath: right))
            try Data("alice:\(String(key.reversed()))\neve:\(key)\n".utf8).write(to: URL(filePath: wrong))
            let open = #expect(throws: TLSRefused.self) { try ExportTLS(.sharedKey(file: right), mode: .required) }
            #expect(open?.description.contains("chmod 600") == true, "a file that others can read is used")
            chmod(right, 0o600)
            chmod(wrong, 0o600)
            try await Self.run(try ExportTLS(.sharedKey(file: right), mode: .required)) { fixture, _ in
                var uri = fixture.server.uri(of: "")
                uri.user = "alice"
                uri.keyFile = right
                let file = folder.appending(path: "copy").path
                try await fixture.tool("nbdcopy", ["\(uri)", file])
                #expect(try [UInt8](Data(contentsOf: URL(filePath: file)))[4096..<4109].elementsEqual(Self.message))
                uri.user = "bob"
                try await fixture.tool("nbdinfo", ["--size", "\(uri)"])
                uri.user = "alice"
                uri.keyFile = wrong
                #expect(try await !Self.outcome("nbdinfo", ["--size", "\(uri)"]).succeeded)
                uri.user = "eve"
                #expect(try await !Self.outcome("nbdinfo", ["--size", "\(uri)"]).succeeded)
            }
        }
    }

    @Test("allow serves clear and encrypted clients; what comes in the clear behind STARTTLS drops the connection")
    func allow() async throws {
        try await Self.withFolder { folder in
            let certificates = try Certificates(in: folder)
            var configuration = ExportServer.Configuration()
            configuration.tls = try ExportTLS(.certificates(directory: certificates.own), mode: .allow)
            let device = try MemoryDevice(size: 4096)
            try await ExportFixture.run([.init(name: "", device: device)], configuration: configuration) { fixture in
                let clear = try ExportClient(fixture.socket)
                try clear.go()
                try clear.write([1], at: 0)
                let sly = try ExportClient(fixture.socket)
                sly.send(ExportClient.be(UInt32(3)) + ExportClient.option(5) + ExportClient.option(3))
                #expect(sly.isClosedByServer())
                let broken = try ExportClient(fixture.socket)
                broken.send(ExportClient.be(UInt32(3)) + ExportClient.option(5))
                _ = try broken.receive(18 + 20)
                broken.send(Array("this is no TLS, but a long line of text".utf8))
                #expect(broken.isClosedByServer())
                try clear.write([2], at: 0)
                var uri = fixture.server.uri(of: "")
                uri.certificates = certificates.own
                if !ExportFixture.missing("nbdinfo") {
                    try await fixture.tool("nbdinfo", ["--size", "\(uri)"])
                    uri.isEncrypted = false
                    try await fixture.tool("nbdinfo", ["--size", "\(uri)"])
                }
            }
        }
    }

    @Test("missing or wrong files are refused with their names")
    func wrongFiles() async throws {
        try await Self.withFolder { folder in
            let missing = #expect(throws: TLSRefused.self) {
                try ExportTLS(.certificates(directory: folder.path), mode: .required)
            }
            #expect(missing?.description.contains("ca-cert.pem") == true)
            for name in ["ca-cert.pem", "server-cert.pem", "server-key.pem"] {
                try Data("no PEM".utf8).write(to: folder.appending(path: name))
            }
            #expect(throws: TLSRefused.self) { try ExportTLS(.certificates(directory: folder.path), mode: .required) }
        }
        for text in ["", "# nobody\n", "alice\n", ":00112233445566778899aabbccddeeff", "alice:0011", "alice:zz", "a:0"]
        {
            #expect(throws: TLSRefused.self, "\(text)") { try PreSharedKeys(text: text, path: "keys") }
        }
        #expect(throws: TLSRefused.self) { try ExportTLS(.sharedKey(file: "/nonexistent"), mode: .required) }
    }
}
