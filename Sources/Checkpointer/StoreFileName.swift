import Units

/// The names of files in a guest's folder, and what they mean.
public enum StoreFileName: Equatable, Sendable {
    /// `secondary.raw`: the secondary disk.
    case secondary
    /// `active.qcow2`: the writes of the guest since failover.
    case active
    /// `hidden-N.qcow2`: what the secondary disk held under blocks overwritten in epoch N.
    case hidden(Epoch)
    /// `scratch-ANYTHING.qcow2`: the writes of a rehearsal.
    case scratch(String)
    /// `view-ANYTHING.raw`: what an exported view of a checkpoint has set aside, or its client written.
    case view(String)
    /// `base-N.ram`: a full image of guest RAM.
    case base(Epoch)
    /// `base-N.sum`: its checksums.
    case sums(Epoch)
    /// `delta-N.log`: changes behind a base.
    case log(Epoch)
    /// `state-N`: the device state of checkpoint N.
    case deviceState(Epoch)
    /// `NAME.new`: a file that is not complete yet, whatever it was to become.
    case unfinished(String)

    public var name: String {
        switch self {
        case .secondary: "secondary.raw"
        case .active: "active.qcow2"
        case .hidden(let epoch): "hidden-\(epoch).qcow2"
        case .scratch(let label): "scratch-\(label).qcow2"
        case .view(let label): "view-\(label).raw"
        case .base(let epoch): "base-\(epoch).ram"
        case .sums(let epoch): "base-\(epoch).sum"
        case .log(let epoch): "delta-\(epoch).log"
        case .deviceState(let epoch): "state-\(epoch)"
        case .unfinished(let name): "\(name).new"
        }
    }

    /// Recognises a name; nil for every other one, numbers with leading zeroes among them.
    public init?(_ name: String) {
        func middle(_ prefix: String, _ suffix: String) -> Substring? {
            guard name.count > prefix.count + suffix.count, name.hasPrefix(prefix), name.hasSuffix(suffix) else {
                return nil
            }
            return name.dropFirst(prefix.count).dropLast(suffix.count)
        }
        func number(_ prefix: String, _ suffix: String) -> Epoch? {
            guard let digits = middle(prefix, suffix), let value = UInt64(digits), digits == "\(value)" else {
                return nil
            }
            return Epoch(value)
        }
        if name == "secondary.raw" {
            self = .secondary
        } else if name == "active.qcow2" {
            self = .active
        } else if let epoch = number("hidden-", ".qcow2") {
            self = .hidden(epoch)
        } else if let label = middle("scratch-", ".qcow2") {
            self = .scratch(String(label))
        } else if let label = middle("view-", ".raw") {
            self = .view(String(label))
        } else if let epoch = number("base-", ".ram") {
            self = .base(epoch)
        } else if let epoch = number("base-", ".sum") {
            self = .sums(epoch)
        } else if let epoch = number("delta-", ".log") {
            self = .log(epoch)
        } else if let epoch = number("state-", "") {
            self = .deviceState(epoch)
        } else if let unfinished = middle("", ".new") {
            self = .unfinished(String(unfinished))
        } else {
            return nil
        }
    }
}
