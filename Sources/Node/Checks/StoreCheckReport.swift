/// What `colo-blk check` found, for the whole store and for each guest.
public struct StoreCheckReport: Codable, Sendable, Equatable {
    /// From best to worst; the store's is the worst of its guests'.
    public enum Verdict: String, Codable, Sendable, CaseIterable {
        /// Everything that the commit record vouches for is there and is what it says.
        case consistent
        /// There is no checkpoint to be consistent with.
        case nothingCommitted = "nothing committed"
        /// Something could not be read, so that nothing can be said about it.
        case unreadable
        /// Something is missing, or is not what the commit record says.
        case damaged

        /// 0 is best.
        var rank: Int { Self.allCases.firstIndex(of: self) ?? 0 }
    }

    /// One file, or one thing that several files say together.
    public struct Item: Codable, Sendable, Equatable {
        public enum State: String, Codable, Sendable {
            /// Is what the committed checkpoint needs.
            case good
            /// Came after the commit, or is of no use any more: the next start takes it back, cuts or deletes it.
            case leftover
            /// Should be read by somebody, but the checkpoint can be had.
            case warning
            case damaged
            case unreadable
        }

        /// Below the guest's folder; absolute when it is elsewhere.
        public var file: String
        /// What it is.
        public var what: String
        public var state: State
        /// What was found, with what to do where something is wrong.
        public var text: String
    }

    public struct Guest: Codable, Sendable, Equatable {
        public var guest: String
        public var verdict: Verdict
        /// The committed checkpoint; absent: none, or the record cannot be read.
        public var epoch: UInt64?
        public var generation: UInt64?
        /// `replica` or `promoted`.
        public var role: String?
        public var durability: String?
        public var items: [Item]
    }

    /// The store's folder.
    public var store: String
    public var verdict: Verdict
    public var guests: [Guest]

    /// The report as JSON text.
    public func text() throws -> String { try JSONText.encode(self) }
}
