/// An NBD export by name of scheme, place and export: `nbd://HOST:PORT/EXPORT`, `nbd+unix:///EXPORT?socket=PATH`, and the
/// same with `nbds` where the connection must be encrypted. The form is that of the NetworkBlockDevice project's URI
/// document, which qemu-img, nbdinfo, nbdcopy and fio understand.
public struct NBDURI: Hashable, Sendable, CustomStringConvertible {
    public enum Place: Hashable, Sendable {
        /// An absolute path.
        case unix(path: String)
        /// A host's name or address, an IPv6 address without brackets.
        case tcp(host: String, port: Int)
    }

    /// A text is no NBD URI that is understood here.
    public struct Malformed: Error, Equatable, CustomStringConvertible {
        public let text: String
        public let reason: String

        public var description: String {
            "'\(text)' is not an NBD URI: \(reason); write nbd://HOST:PORT/EXPORT or nbd+unix:///EXPORT?socket=/PATH"
        }
    }

    /// The port that IANA gave to NBD.
    public static let defaultPort = 10809

    public var place: Place
    /// Empty for the server's default export.
    public var export: String
    /// `nbds`: the client wants TLS or no connection.
    public var isEncrypted: Bool
    /// Whom a pre-shared key belongs to.
    public var user: String?
    /// `tls-certificates`: a directory with the client's certificates.
    public var certificates: String?
    /// `tls-psk-file`: a file with the client's pre-shared keys.
    public var keyFile: String?

    public init(_ place: Place, export: String = "", isEncrypted: Bool = false) {
        self.place = place
        self.export = export
        self.isEncrypted = isEncrypted
    }

    /// Parses a text. Query items that are not known here are left out.
    public init(parsing text: String) throws(Malformed) {
        func malformed(_ reason: String) -> Malformed { Malformed(text: text, reason: reason) }
        guard let mark = text.firstRange(of: "://") else { throw malformed("it has no scheme") }
        let isUnix: Bool
        switch text[..<mark.lowerBound].lowercased() {
        case "nbd": (isUnix, isEncrypted) = (false, false)
        case "nbds": (isUnix, isEncrypted) = (false, true)
        case "nbd+unix": (isUnix, isEncrypted) = (true, false)
        case "nbds+unix": (isUnix, isEncrypted) = (true, true)
        default: throw malformed("its scheme is none of nbd, nbds, nbd+unix, nbds+unix")
        }
        var rest = text[mark.upperBound...]
        guard !rest.contains("#") else { throw malformed("a fragment has no meaning here") }
        var items: [Substring] = []
        if let question = rest.firstIndex(of: "?") {
            items = rest[rest.index(after: question)...].split(separator: "&")
            rest = rest[..<question]
        }
        let slash = rest.firstIndex(of: "/")
        var authority = rest[..<(slash ?? rest.endIndex)]
        let path = slash.map { rest[rest.index(after: $0)...] } ?? ""
        guard let export = PercentCoding.decode(path) else { throw malformed("the export's name is not UTF-8") }
        self.export = export
        if let at = authority.lastIndex(of: "@") {
            guard let user = PercentCoding.decode(authority[..<at]) else { throw malformed("the user is not UTF-8") }
            self.user = user
            authority = authority[authority.index(after: at)...]
        }
        var socket: String?
        for item in items {
            let parts = item.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
            guard let value = PercentCoding.decode(parts.count == 2 ? parts[1] : "") else {
                throw malformed("the value of '\(parts[0])' is not UTF-8")
            }
            switch parts[0].lowercased() {
            case "socket": socket = value
            case "tls-certificates": certificates = value
            case "tls-psk-file": keyFile = value
            default: break
            }
        }
        if isUnix {
            guard authority.isEmpty else { throw malformed("a unix socket has no host: three slashes") }
            guard let socket, !socket.isEmpty else { throw malformed("?socket=PATH is missing") }
            place = .unix(path: socket)
        } else {
            guard socket == nil else { throw malformed("?socket= goes with nbd+unix") }
            guard let host = Self.host(authority) else { throw malformed("HOST:PORT is not right") }
            place = .tcp(host: host.name, port: host.port)
        }
    }

    /// `HOST`, `HOST:PORT`, `[IPV6]` or `[IPV6]:PORT`.
    private static func host(_ text: Substring) -> (name: String, port: Int)? {
        var name = text
        var port = Self.defaultPort
        let bracket = text.lastIndex(of: "]")
        if let colon = text.lastIndex(of: ":"), bracket.map({ colon > $0 }) ?? true {
            let digits = text[text.index(after: colon)...]
            guard let number = Int(digits), (1...65535).contains(number), digits.first != "+" else { return nil }
            port = number
            name = text[..<colon]
        }
        if name.hasPrefix("[") {
            guard name.hasSuffix("]"), name.count > 2 else { return nil }
            return (String(name.dropFirst().dropLast()), port)
        }
        guard !name.isEmpty, !name.contains(":"), let plain = PercentCoding.decode(name) else { return nil }
        return (plain, port)
    }

    public var description: String {
        var text = isEncrypted ? "nbds" : "nbd"
        var items: [String] = []
        let user = user.map { PercentCoding.encode($0) + "@" } ?? ""
        switch place {
        case .unix(let path):
            text += "+unix://" + user
            items.append("socket=" + PercentCoding.encode(path, keeping: "/"))
        case .tcp(let host, let port):
            let name = host.contains(":") ? "[\(host)]" : PercentCoding.encode(host)
            text += "://" + user + name + (port == Self.defaultPort ? "" : ":\(port)")
        }
        text += "/" + PercentCoding.encode(export, keeping: "/")
        if let certificates { items.append("tls-certificates=" + PercentCoding.encode(certificates, keeping: "/")) }
        if let keyFile { items.append("tls-psk-file=" + PercentCoding.encode(keyFile, keeping: "/")) }
        return items.isEmpty ? text : text + "?" + items.joined(separator: "&")
    }
}

/// `%41` for `A`, as URIs write bytes that mean something else.
enum PercentCoding {
    /// Nil when a percent sign is not followed by two hexadecimal digits, or when the bytes are not UTF-8.
    static func decode(_ text: some StringProtocol) -> String? {
        var bytes: [UInt8] = []
        var left = text.utf8.makeIterator()
        while let byte = left.next() {
            guard byte == UInt8(ascii: "%") else {
                bytes.append(byte)
                continue
            }
            guard let high = left.next().flatMap(digit), let low = left.next().flatMap(digit) else { return nil }
            bytes.append(high << 4 | low)
        }
        return String(validating: bytes, as: UTF8.self)
    }

    /// Encodes everything but letters, digits, `-._~` and what is in `keeping`.
    static func encode(_ text: String, keeping: String = "") -> String {
        var encoded = ""
        for byte in text.utf8 {
            let character = Character(UnicodeScalar(byte))
            if character.isASCII,
                character.isLetter || character.isNumber || "-._~".contains(character)
                    || keeping.contains(character)
            {
                encoded.append(character)
            } else {
                let digits = String(byte, radix: 16, uppercase: true)
                encoded += "%" + (digits.count == 1 ? "0" : "") + digits
            }
        }
        return encoded
    }

    private static func digit(_ byte: UInt8) -> UInt8? {
        switch byte {
        case UInt8(ascii: "0")...UInt8(ascii: "9"): byte - UInt8(ascii: "0")
        case UInt8(ascii: "a")...UInt8(ascii: "f"): byte - UInt8(ascii: "a") + 10
        case UInt8(ascii: "A")...UInt8(ascii: "F"): byte - UInt8(ascii: "A") + 10
        default: nil
        }
    }
}
