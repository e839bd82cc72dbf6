import NBD
import NIOCore

extension Address {
    /// The address as a socket has it: a TCP port of 0 is replaced by the real one.
    func bound(to channel: any Channel) throws -> Address {
        guard case .tcp(let host, 0) = place, let port = channel.localAddress?.port else { return self }
        return try Address(parsing: host.contains(":") ? "[\(host)]:\(port)" : "\(host):\(port)")
    }

    /// The same place in an NBD URI.
    var nbdPlace: NBDURI.Place {
        switch place {
        case .unix(let path): .unix(path: path)
        case .tcp(let host, let port): .tcp(host: host, port: port)
        }
    }

    /// Where an NBD URI leads.
    public init(_ uri: NBDURI) throws(Malformed) {
        switch uri.place {
        case .unix(let path): try self.init(parsing: "unix:\(path)")
        case .tcp(let host, let port):
            try self.init(parsing: host.contains(":") ? "[\(host)]:\(port)" : "\(host):\(port)")
        }
    }
}
