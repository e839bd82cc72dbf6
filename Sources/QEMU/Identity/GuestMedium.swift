/// A drive of a guest whose medium can be changed while it runs, and what is in it now.
public struct GuestMedium: Sendable, Equatable, Codable {
    /// Name of the block backend; empty for one made with `-blockdev`.
    public var device: String
    /// QOM path or id of the device that the guest sees.
    public var qdev: String?
    /// The top node of what is in it.
    public var node: String?
    /// Nil when the drive is empty.
    public var filename: String?
    public var format: String?

    public init(device: String, qdev: String?, node: String? = nil, filename: String? = nil, format: String? = nil) {
        self.device = device
        self.qdev = qdev
        self.node = node
        self.filename = filename
        self.format = format
    }

    /// For messages.
    public var name: String { device.isEmpty ? qdev ?? "?" : device }

    /// Drives with a removable medium that is not written to, in QEMU's order. Media that are written are disks.
    static func all(in answers: GuestAnswers) -> [GuestMedium] {
        answers.list("query-block").compactMap { entry in
            guard entry["removable"]?.boolValue == true else { return nil }
            let inserted = entry["inserted"]
            guard inserted?["ro"]?.boolValue ?? true else { return nil }
            let image = inserted?["image"]
            return GuestMedium(
                device: entry["device"]?.stringValue ?? "", qdev: entry["qdev"]?.stringValue,
                node: inserted?["node-name"]?.stringValue,
                filename: image?["filename"]?.stringValue ?? inserted?["file"]?.stringValue,
                format: image?["format"]?.stringValue ?? inserted?["drv"]?.stringValue)
        }
    }
}
