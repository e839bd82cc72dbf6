/// One writable disk of a guest, as the primary's QEMU describes it.
public struct GuestDisk: Sendable, Equatable, Codable {
    /// Our name of the disk: stable over the guest's life, unique within it, and of the letters `[A-Za-z0-9_.-]`, so
    /// that it can be a directory.
    public var id: String
    /// Name of the block backend (the id of `-drive`); empty for a disk made with `-blockdev`.
    public var device: String
    /// QOM path or id of the device that the guest sees; nil for a backend without a device.
    public var qdev: String?
    /// The top node, which is what `blockdev-mirror` takes as its device.
    public var node: String
    public var filename: String
    public var format: String
    /// What the guest sees, in bytes.
    public var size: UInt64
    /// The command line asked for `discard=unmap`.
    public var discard: Bool

    public init(
        id: String, device: String, qdev: String?, node: String, filename: String, format: String, size: UInt64,
        discard: Bool
    ) {
        self.id = id
        self.device = device
        self.qdev = qdev
        self.node = node
        self.filename = filename
        self.format = format
        self.size = size
        self.discard = discard
    }

    /// Turns any text into an id; never empty and never "." or "..".
    static func sanitised(_ text: String) -> String {
        let allowed = text.unicodeScalars.prefix(64).map { scalar -> Character in
            switch scalar {
            case "a"..."z", "A"..."Z", "0"..."9", "_", ".", "-": return Character(scalar)
            default: return "_"
            }
        }
        let trimmed = String(allowed.drop { $0 == "." || $0 == "-" })
        return trimmed.isEmpty ? "disk" : trimmed
    }
}

/// A network back end of a guest.
public struct GuestNetwork: Sendable, Equatable, Codable {
    /// Id of the `-netdev`.
    public var id: String
    /// "user", "tap", …
    public var kind: String
    public var vhost: Bool

    public init(id: String, kind: String, vhost: Bool) {
        self.id = id
        self.kind = kind
        self.vhost = vhost
    }
}
