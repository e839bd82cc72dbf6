/// The names of everything that we add to somebody's guest. Whatever bears the prefix is ours to remove; nothing else
/// ever is.
public enum GuestNames {
    public static let prefix = "colo-blk-"

    /// Node of the NBD client that carries disk `index`.
    public static func nbdNode(_ index: Int) -> String { "\(prefix)nbd-\(index)" }
    /// Job that mirrors disk `index`.
    public static func mirrorJob(_ index: Int) -> String { "\(prefix)mirror-\(index)" }
    /// Filter node that the mirror puts above disk `index`; it goes with the job.
    public static func filterNode(_ index: Int) -> String { "\(prefix)top-\(index)" }
    /// NBD export through which disk `index` is read for a comparison.
    public static func readExport(_ index: Int) -> String { "\(prefix)read-\(index)" }
    /// Net filter (a QOM object) that holds the packets of network card `index`.
    public static func netFilter(_ index: Int) -> String { "\(prefix)net-\(index)" }
    /// Character devices of that filter: packets from the guest, and released packets.
    public static func netOut(_ index: Int) -> String { "\(prefix)net-out-\(index)" }
    public static func netIn(_ index: Int) -> String { "\(prefix)net-in-\(index)" }

    /// Net filter that lets no packet out of a guest whose secondary is lost, and the character device that swallows them.
    public static func netGate(_ index: Int) -> String { "\(gatePrefix)\(index)" }
    public static func netGateOut(_ index: Int) -> String { "\(gatePrefix)out-\(index)" }
    private static let gatePrefix = "\(prefix)gate-"

    /// Whether it belongs to a filter of ``netGate(_:)``.
    public static func isGate(_ name: String) -> Bool { name.hasPrefix(gatePrefix) }

    public static func isOurs(_ name: String) -> Bool { name.hasPrefix(prefix) }
}
