/// The seven COLO commands with QEMU's own values. This is the one table from which both protocol machines take who may
/// say what, after what; docs/wire-format.md shows the same.
public enum Command: UInt8, Sendable, CaseIterable, CustomStringConvertible {
    case ready = 0
    case request = 1
    case reply = 2
    case send = 3
    case size = 4
    case received = 5
    case loaded = 6

    /// Who says it.
    public enum Direction: Sendable {
        case toSecondary
        case toPrimary
    }

    /// Which epochs of a session it belongs to.
    public enum Scope: Sendable {
        /// The initial copy only.
        case first
        /// Every epoch but the initial copy.
        case later
        case every
    }

    /// One row of the table.
    public struct Rule: Sendable {
        public let name: String
        public let direction: Direction
        public let scope: Scope
        /// The command that must have been said before, for the same epoch; nil when there is none. In the first epoch
        /// a predecessor of scope ``Scope/later`` is not asked for.
        public let predecessor: Command?
    }

    public var rule: Rule {
        switch self {
        case .ready: Rule(name: "ready", direction: .toPrimary, scope: .first, predecessor: .size)
        case .request: Rule(name: "request", direction: .toSecondary, scope: .later, predecessor: nil)
        case .reply: Rule(name: "reply", direction: .toPrimary, scope: .later, predecessor: .request)
        case .send: Rule(name: "send", direction: .toSecondary, scope: .every, predecessor: .request)
        case .size: Rule(name: "size", direction: .toSecondary, scope: .every, predecessor: .send)
        case .received: Rule(name: "received", direction: .toPrimary, scope: .later, predecessor: .size)
        case .loaded: Rule(name: "loaded", direction: .toPrimary, scope: .later, predecessor: .received)
        }
    }

    public var description: String { rule.name }
}
