import NIOCore

/// Where a link or a control socket lives: `unix:PATH`, `HOST:PORT` or `[IPV6]:PORT`.
public struct Address: Hashable, Sendable, CustomStringConvertible {
    public enum Place: Hashable, Sendable {
        case unix(path: String)
        case tcp(host: String, port: Int)
    }

    public struct Malformed: Error, CustomStringConvertible {
        public let text: String
        public let reason: String
        public var description: String {
            "'\(text)' is not an address: \(reason); write HOST:PORT, [IPV6]:PORT or unix:/PATH"
        }
    }

    /// Linux takes at most 107 bytes of path for a unix socket.
    public static let unixPathMax = 107

    public let place: Place

    public static func unix(_ path: String) -> Address { Address(place: .unix(path: path)) }

    private init(place: Place) { self.place = place }

    public init(parsing text: String) throws(Malformed) {
        if text.hasPrefix("unix:") {
            let path = String(text.dropFirst(5))
            guard !path.isEmpty else { throw Malformed(text: text, reason: "the socket path is empty") }
            guard path.utf8.count <= Self.unixPathMax else {
                throw Malformed(text: text, reason: "the socket path is longer than \(Self.unixPathMax) bytes")
            }
            place = .unix(path: path)
            return
        }
        guard let colon = text.lastIndex(of: ":") else { throw Malformed(text: text, reason: "the port is missing") }
        var host = String(text[..<colon])
        if host.hasPrefix("["), host.hasSuffix("]") {
            host = String(host.dropFirst().dropLast())
        } else if host.contains(":") {
            throw Malformed(text: text, reason: "an IPv6 address needs brackets")
        }
        guard let port = Int(text[text.index(after: colon)...]), (0...65535).contains(port) else {
            throw Malformed(text: text, reason: "the port is not a number from 0 to 65535")
        }
        guard !host.isEmpty else { throw Malformed(text: text, reason: "the host is empty") }
        place = .tcp(host: host, port: port)
    }

    /// Whether bytes to this address never leave the machine. Only literal addresses and `localhost` count.
    public var staysOnThisMachine: Bool {
        switch place {
        case .unix: return true
        case .tcp(let host, _):
            if host == "localhost" || host == "::1" { return true }
            guard host.hasPrefix("127."), let address = try? SocketAddress(ipAddress: host, port: 0) else {
                return false
            }
            if case .v4 = address { return true }
            return false
        }
    }

    public var description: String {
        switch place {
        case .unix(let path): return "unix:\(path)"
        case .tcp(let host, let port): return host.contains(":") ? "[\(host)]:\(port)" : "\(host):\(port)"
        }
    }
}
