import Glibc
import NIOCore
import NIOSSL

/// Certificates or keys of one side of a TLS connection, read and understood.
struct TLSCredentials: Sendable {
    enum Role: String, Sendable { case server, client }

    private enum Kind: Sendable {
        case certificates(authority: [NIOSSLCertificate], chain: [NIOSSLCertificate], key: NIOSSLPrivateKey)
        case keys(PreSharedKeys)
    }

    let role: Role
    private let kind: Kind
    /// For people: where it came from.
    private let source: String

    init(_ files: TLSFiles, role: Role) throws(TLSRefused) {
        self.role = role
        switch files {
        case .certificates(let directory):
            source = "the certificates in \(directory)"
            kind = try Self.certificates(directory, role)
        case .sharedKey(let file):
            source = "the keys in \(file)"
            kind = .keys(try PreSharedKeys(path: file))
        }
    }

    private static func certificates(_ directory: String, _ role: Role) throws(TLSRefused) -> Kind {
        let names = ["ca-cert.pem", "\(role.rawValue)-cert.pem", "\(role.rawValue)-key.pem"]
        let help = "\(directory) must hold \(names.joined(separator: ", ")); 'colo-blk keys create' makes them"
        var files: [[UInt8]] = []
        for name in names {
            files.append(
                try CredentialFile.read("\(directory)/\(name)", isSecret: name.hasSuffix("-key.pem"), help: help))
        }
        var wrong = names[0]
        do {
            let authority = try NIOSSLCertificate.fromPEMBytes(files[0])
            wrong = names[1]
            let chain = try NIOSSLCertificate.fromPEMBytes(files[1])
            wrong = names[2]
            let key = try NIOSSLPrivateKey(bytes: files[2], format: .pem)
            guard !authority.isEmpty, !chain.isEmpty else { throw NIOSSLError.failedToLoadCertificate }
            return .certificates(authority: authority, chain: chain, key: key)
        } catch {
            throw TLSRefused(
                description: "\(directory)/\(wrong) cannot be used: \(TLSFailure.tokens(error)); \(help)")
        }
    }

    /// A context for many connections.
    ///
    /// - Parameters:
    ///   - minimum: for certificates; shared keys are TLS 1.2, the newest that BoringSSL has with them.
    ///   - verifiesPeer: whether the other side must show a certificate of the authority.
    ///   - verifiesName: for a client: whether the certificate must be of the host that it connects to.
    ///   - suites: for shared keys.
    func context(
        minimum: TLSVersion, verifiesPeer: Bool = true, verifiesName: Bool = false, suites: [NIOTLSCipher]
    ) throws(TLSRefused) -> NIOSSLContext {
        var configuration: TLSConfiguration
        switch kind {
        case .certificates(let authority, let chain, let key):
            switch role {
            case .server:
                configuration = .makeServerConfiguration(
                    certificateChain: chain.map { .certificate($0) }, privateKey: .privateKey(key))
            case .client:
                configuration = .makeClientConfiguration()
                configuration.certificateChain = chain.map { .certificate($0) }
                configuration.privateKey = .privateKey(key)
            }
            configuration.minimumTLSVersion = minimum
            configuration.trustRoots = .certificates(authority)
            configuration.certificateVerification =
                !verifiesPeer ? .none : verifiesName ? .fullVerification : .noHostnameVerification
        case .keys(let keys):
            configuration = Self.configuration(keys, role)
            configuration.cipherSuiteValues = suites
        }
        configuration.shutdownTimeout = .milliseconds(500)
        do {
            return try NIOSSLContext(configuration: configuration)
        } catch {
            throw TLSRefused(description: "\(source) cannot be used: \(TLSFailure.tokens(error))")
        }
    }

    private static func configuration(_ keys: PreSharedKeys, _ role: Role) -> TLSConfiguration {
        var configuration = TLSConfiguration.makePreSharedKeyConfiguration()
        configuration.minimumTLSVersion = .tlsv12
        configuration.maximumTLSVersion = .tlsv12
        switch role {
        case .server:
            configuration.pskServerProvider = { context in
                guard let key = keys[context.clientIdentity] else {
                    throw TLSRefused(description: "no pre-shared key of that user")
                }
                return PSKServerIdentityResponse(key: NIOSSLSecureBytes(key))
            }
        case .client:
            configuration.pskClientProvider = { _ in
                PSKClientIdentityResponse(key: NIOSSLSecureBytes(keys[keys.firstUser] ?? []), identity: keys.firstUser)
            }
        }
        return configuration
    }

    /// Something about the validity of this side's own certificate that people should read; nil when all is well.
    func warning(now: time_t = time(nil)) -> String? {
        guard case .certificates(_, let chain, _) = kind, let own = chain.first else { return nil }
        return Self.warning(of: own, now: now, name: source)
    }

    static let warningDays = 30

    private static func warning(of certificate: NIOSSLCertificate, now: time_t, name: String) -> String? {
        let remedy = "the other host will refuse it; make new ones with 'colo-blk keys create' and copy them to both"
        if certificate.notValidAfter < now {
            return "\(name): the certificate expired on \(date(certificate.notValidAfter)); \(remedy)"
        }
        if certificate.notValidBefore > now {
            return "\(name): the certificate is not valid before \(date(certificate.notValidBefore)); set the clock"
        }
        let days = (certificate.notValidAfter - now) / 86400
        guard days < warningDays else { return nil }
        return "\(name): the certificate expires on \(date(certificate.notValidAfter)), in \(days) days; from then on "
            + remedy
    }

    /// Year, month and day, UTC.
    static func date(_ seconds: time_t) -> String {
        var seconds = seconds
        var parts = tm()
        guard gmtime_r(&seconds, &parts) != nil else { return "an unknown day" }
        func digits(_ value: Int32) -> String { value < 10 ? "0\(value)" : "\(value)" }
        return "\(parts.tm_year + 1900)-\(digits(parts.tm_mon + 1))-\(digits(parts.tm_mday))"
    }
}
