import NBD

/// What `colo-blk export` asks for.
public struct ExportOptions: Codable, Sendable {
    /// Where to listen: `unix:/PATH`, or `HOST:PORT`.
    public var address: String
    /// Clients may write; what they write is thrown away at the end.
    public var writable: Bool
    /// Credentials; nil is clear text.
    public var tls: TLSFiles?

    public init(address: String, writable: Bool = false, tls: TLSFiles? = nil) {
        self.address = address
        self.writable = writable
        self.tls = tls
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
