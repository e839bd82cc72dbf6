import Glibc
import NBD
import NIOCore
import NIOSSL

/// TLS of an NBD server: certificates both ways, or keys that both sides know.
public struct ExportTLS: Sendable {
    /// `allow` leaves it to the client, `required` refuses clear connections.
    public let mode: NBDTLSMode
    let context: NIOSSLContext

    /// Something about certificates or keys is wrong.
    public struct Refused: Error, CustomStringConvertible {
        public let description: String
    }

    /// Certificates (X.509) from a directory, named as QEMU and nbdkit name them: `ca-cert.pem`, `server-cert.pem`,
    /// `server-key.pem`. TLS 1.2 or newer.
    ///
    /// - Parameter verifiesClients: clients must show a certificate that `ca-cert.pem` has signed.
    public init(certificates directory: String, mode: NBDTLSMode, verifiesClients: Bool = true) throws {
        let authority = "\(directory)/ca-cert.pem"
        let chain = "\(directory)/server-cert.pem"
        let key = "\(directory)/server-key.pem"
        for path in [authority, chain, key] where access(path, R_OK) != 0 {
            throw Refused(
                description:
                    "\(path) cannot be read; \(directory) must hold ca-cert.pem, server-cert.pem, server-key.pem")
        }
        do {
            var configuration = TLSConfiguration.makeServerConfiguration(
                certificateChain: try NIOSSLCertificate.fromPEMFile(chain).map { .certificate($0) },
                privateKey: .privateKey(try NIOSSLPrivateKey(file: key, format: .pem)))
            configuration.minimumTLSVersion = .tlsv12
            configuration.trustRoots = .file(authority)
            // A client's address says nothing about it; its certificate's chain does.
            configuration.certificateVerification = verifiesClients ? .noHostnameVerification : .none
            context = try NIOSSLContext(configuration: configuration)
        } catch {
            throw Refused(description: "the certificates in \(directory) cannot be used: \(error)")
        }
        self.mode = mode
    }

    /// Pre-shared keys from a file of lines `user:key`, the key in hexadecimal, as `psktool` writes it and nbdkit reads
    /// it. TLS 1.2 with ECDHE, which is the newest that BoringSSL offers with such keys.
    public init(keyFile path: String, mode: NBDTLSMode) throws {
        let keys = try PreSharedKeys(path: path)
        do {
            var configuration = TLSConfiguration.makePreSharedKeyConfiguration()
            configuration.minimumTLSVersion = .tlsv12
            configuration.maximumTLSVersion = .tlsv12
            configuration.cipherSuiteValues = [
                .TLS_ECDHE_PSK_WITH_AES_256_CBC_SHA, .TLS_ECDHE_PSK_WITH_AES_128_CBC_SHA,
            ]
            configuration.pskServerProvider = { context in
                guard let key = keys[context.clientIdentity] else {
                    throw Refused(description: "no pre-shared key of that user")
                }
                return PSKServerIdentityResponse(key: NIOSSLSecureBytes(key))
            }
            context = try NIOSSLContext(configuration: configuration)
        } catch {
            throw Refused(description: "the keys in \(path) cannot be used: \(error)")
        }
        self.mode = mode
    }
}

/// The keys of a file of lines `user:key`.
struct PreSharedKeys: Sendable {
    private static let fileMax = 1 << 20
    private var keys: [String: [UInt8]] = [:]

    init(path: String) throws(ExportTLS.Refused) {
        guard let file = fopen(path, "re") else {
            throw ExportTLS.Refused(description: "\(path) cannot be read: \(String(cString: strerror(errno)))")
        }
        defer { fclose(file) }
        var bytes = [UInt8](repeating: 0, count: Self.fileMax + 1)
        let count = fread(&bytes, 1, bytes.count, file)
        guard count <= Self.fileMax else {
            throw ExportTLS.Refused(description: "\(path) is longer than \(Self.fileMax) bytes: no file of keys")
        }
        try self.init(text: String(decoding: bytes[..<count], as: UTF8.self), path: path)
    }

    init(text: String, path: String) throws(ExportTLS.Refused) {
        for (index, line) in text.split(separator: "\n", omittingEmptySubsequences: false).enumerated() {
            let trimmed = line.hasSuffix("\r") ? line.dropLast() : line
            if trimmed.isEmpty || trimmed.hasPrefix("#") { continue }
            func wrong(_ reason: String) -> ExportTLS.Refused {
                ExportTLS.Refused(
                    description: "\(path), line \(index + 1): \(reason); write user:key, key in hexadecimal")
            }
            guard let colon = trimmed.lastIndex(of: ":"), colon > trimmed.startIndex else {
                throw wrong("there is no user and colon")
            }
            guard let key = Self.bytes(trimmed[trimmed.index(after: colon)...]) else {
                throw wrong("the key is not hexadecimal")
            }
            guard (16...64).contains(key.count) else { throw wrong("a key has 16 to 64 bytes, this one \(key.count)") }
            keys[String(trimmed[..<colon])] = key
        }
        guard !keys.isEmpty else { throw ExportTLS.Refused(description: "\(path) holds no key") }
    }

    subscript(user: String) -> [UInt8]? { keys[user] }

    private static func bytes(_ text: Substring) -> [UInt8]? {
        let digits = text.compactMap(\.hexDigitValue)
        guard digits.count == text.count, digits.count % 2 == 0 else { return nil }
        return stride(from: 0, to: digits.count, by: 2).map { UInt8(digits[$0] << 4 | digits[$0 + 1]) }
    }
}
