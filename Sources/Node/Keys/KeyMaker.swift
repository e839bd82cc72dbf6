import AsyncIO
import Glibc
import NIOCore

/// Makes what two hosts need to trust each other and nobody else: an authority of their own with certificates for both,
/// or a key that both know.
public enum KeyMaker {
    public struct Options: Sendable {
        /// A folder that does not exist yet, or is empty.
        public var directory: String
        /// Names and addresses by which the primary is reached.
        public var primary: [String]
        /// Names and addresses by which the secondary is reached: what `attach --to` names.
        public var secondary: [String]
        /// Days from now for which the hosts' certificates hold.
        public var days: Int
        /// One key for both instead of certificates.
        public var sharedKey: Bool

        public init(directory: String, primary: [String], secondary: [String], days: Int, sharedKey: Bool) {
            self.directory = directory
            self.primary = primary
            self.secondary = secondary
            self.days = days
            self.sharedKey = sharedKey
        }
    }

    /// Nothing was made.
    public struct Refused: Error, CustomStringConvertible {
        public let description: String
    }

    public static let daysDefault = 730
    /// The authority holds for so long at least.
    private static let authorityDays = 3650
    /// Every host is also this to itself: the ends of a tunnel. One for 127.0.0.1 would be for every name there, since
    /// either the name or the address that is connected to must be in it.
    private static let ownNames = ["localhost"]
    static let sharedKeyFile = "link.psk"

    private enum Host: String, CaseIterable { case primary, secondary }

    /// Makes the folder with `authority`, `primary` and `secondary` in it, all or nothing, readable by this user alone.
    /// What is there already is never touched. Both hosts can be primary and secondary, for the way back after a
    /// failover.
    public static func create(_ options: Options) async throws(Refused) {
        var target = options.directory
        while target.count > 1, target.hasSuffix("/") { target.removeLast() }
        guard (1...36500).contains(options.days) else {
            throw Refused(description: "a certificate holds 1 to 36500 days")
        }
        for name in options.primary + options.secondary where !isName(name) {
            throw Refused(
                description: "'\(name)' is neither a host's name nor an address; write b.example or 192.0.2.7")
        }
        if Directory.exists(target) {
            guard let names = try? Directory.names(in: target), names.isEmpty else {
                throw Refused(
                    description: "\(target) is there and no empty folder: keys are never overwritten; name a new one")
            }
        }
        let temporary = "\(target).new-\(hexadecimal(4))"
        guard mkdir(temporary, 0o700) == 0 else { throw failed("mkdir", temporary) }
        do {
            if options.sharedKey {
                try makeSharedKey(temporary)
            } else {
                try await makeCertificates(temporary, options)
            }
            // An empty folder is replaced, anything else is not.
            guard rename(temporary, target) == 0 else { throw failed("rename", target) }
        } catch {
            try? FileTree.remove(temporary)
            throw error as? Refused ?? Refused(description: "\(error)")
        }
    }

    private static func failed(_ call: String, _ path: String) -> Refused {
        Refused(description: "\(call) \(path): \(String(cString: strerror(errno)))")
    }

    private static func isName(_ name: String) -> Bool {
        if isAddress(name) { return true }
        return (1...253).contains(name.utf8.count)
            && name.utf8.allSatisfy { byte in
                switch byte {
                case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"),
                    UInt8(ascii: "0")...UInt8(ascii: "9"), UInt8(ascii: "."), UInt8(ascii: "-"), UInt8(ascii: "_"):
                    true
                default: false
                }
            }
    }

    private static func isAddress(_ name: String) -> Bool { (try? SocketAddress(ipAddress: name, port: 0)) != nil }

    private static func hexadecimal(_ count: Int) -> String {
        var random = SystemRandomNumberGenerator()
        return (0..<count).map { _ in
            let byte = UInt8.random(in: 0...255, using: &random)
            return (byte < 16 ? "0" : "") + String(byte, radix: 16)
        }.joined()
    }

    /// Writes a new file that only its owner can read.
    private static func write(_ path: String, _ text: String) throws(Refused) {
        let descriptor = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0o600)
        guard descriptor >= 0 else { throw failed("open", path) }
        defer { close(descriptor) }
        let bytes = Array(text.utf8)
        guard Glibc.write(descriptor, bytes, bytes.count) == bytes.count, fsync(descriptor) == 0 else {
            throw failed("write", path)
        }
    }

    private static func makeSharedKey(_ folder: String) throws(Refused) {
        // The generator of the system: getrandom(2).
        let line = "colo-blk:\(hexadecimal(32))\n"
        for host in Host.allCases {
            guard mkdir("\(folder)/\(host)", 0o700) == 0 else { throw failed("mkdir", folder) }
            try write("\(folder)/\(host)/\(sharedKeyFile)", line)
        }
    }

    // MARK: Certificates

    private static func makeCertificates(_ folder: String, _ options: Options) async throws {
        let authority = "\(folder)/authority"
        guard mkdir(authority, 0o700) == 0 else { throw failed("mkdir", authority) }
        try await certificate(
            folder, "\(authority)/ca", subject: "colo-blk authority \(hexadecimal(4))",
            extensions: [
                "basicConstraints = critical,CA:TRUE,pathlen:0", "keyUsage = critical,keyCertSign,cRLSign",
                "subjectKeyIdentifier = hash",
            ], days: max(authorityDays, options.days), authority: nil)
        for host in Host.allCases {
            let own = "\(folder)/\(host)"
            guard mkdir(own, 0o700) == 0 else { throw failed("mkdir", own) }
            let names = (host == .primary ? options.primary : options.secondary) + ownNames
            let alternatives = names.map { isAddress($0) ? "IP:\($0)" : "DNS:\($0)" }.joined(separator: ",")
            for role in [TLSCredentials.Role.server, .client] {
                try await certificate(
                    folder, "\(own)/\(role.rawValue)", subject: "colo-blk \(host)",
                    extensions: [
                        "basicConstraints = critical,CA:FALSE", "keyUsage = critical,digitalSignature",
                        "extendedKeyUsage = \(role.rawValue)Auth", "subjectAltName = \(alternatives)",
                        "subjectKeyIdentifier = hash", "authorityKeyIdentifier = keyid",
                    ], days: options.days, authority: "\(authority)/ca")
            }
            try write("\(own)/ca-cert.pem", try text(of: "\(authority)/ca-cert.pem"))
        }
    }

    /// Makes `PREFIX-cert.pem` and `PREFIX-key.pem`: P-256.
    private static func certificate(
        _ folder: String, _ prefix: String, subject: String, extensions: [String], days: Int, authority: String?
    ) async throws {
        let configuration = "\(folder)/openssl.cnf"
        try write(
            configuration,
            (["[req]", "distinguished_name = subject", "prompt = no", "[subject]", "CN = \(subject)", "[extensions]"]
                + extensions).joined(separator: "\n") + "\n")
        defer { unlink(configuration) }
        var arguments = [
            "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-sha256", "-batch",
            "-days", "\(days)", "-set_serial", "0x01\(hexadecimal(15))", "-config", configuration, "-extensions",
            "extensions", "-keyout", "\(prefix)-key.pem", "-out", "\(prefix)-cert.pem",
        ]
        if let authority { arguments += ["-CA", "\(authority)-cert.pem", "-CAkey", "\(authority)-key.pem"] }
        try await OpenSSLProgram.run(arguments)
        for file in ["\(prefix)-key.pem", "\(prefix)-cert.pem"] {
            guard chmod(file, 0o600) == 0 else { throw failed("chmod", file) }
        }
    }

    private static func text(of path: String) throws(TLSRefused) -> String {
        String(decoding: try CredentialFile.read(path, isSecret: false), as: UTF8.self)
    }
}
