import NBD

/// What `colo-blk export` asks for.
public struct ExportOptions: Codable, Sendable {
    /// Where to listen: `unix:/PATH`, or `HOST:PORT`.
    public var address: String
    /// Clients may write; what they write is thrown away at the end.
    public var writable: Bool
    /// Directory of certificates; see ``ExportTLS``.
    public var certificates: String?
    /// File of pre-shared keys.
    public var keys: String?

    public init(address: String, writable: Bool = false, certificates: String? = nil, keys: String? = nil) {
        self.address = address
        self.writable = writable
        self.certificates = certificates
        self.keys = keys
    }

    func tls() throws -> ExportTLS? {
        if let certificates { return try ExportTLS(certificates: certificates, mode: .required) }
        if let keys { return try ExportTLS(keyFile: keys, mode: .required) }
        return nil
    }
}

/// What `colo-blk export` has opened.
public struct ExportReport: Codable, Sendable {
    public struct Disk: Codable, Sendable {
        public var id: String
        public var bytes: UInt64
        /// How NBD clients name it.
        public var uri: String
    }

    public var guest: String
    /// The checkpoint that is shown.
    public var epoch: UInt64
    public var writable: Bool
    public var disks: [Disk]
}
