/// One thing that somebody should know about a guest, and what to do about it.
public struct Finding: Sendable, Hashable, Codable, CustomStringConvertible {
    public enum Severity: String, Sendable, Codable, CaseIterable, Comparable {
        /// Looked at and good.
        case ok
        /// Good to know.
        case note
        /// Protection works, but something may go wrong later.
        case warning
        /// An attach is refused.
        case blocker

        public static func < (lhs: Severity, rhs: Severity) -> Bool { lhs.rank < rhs.rank }
        private var rank: Int { Self.allCases.firstIndex(of: self) ?? 0 }
    }

    public var severity: Severity
    /// A short stable name for programs and for docs/doctor.md.
    public var code: String
    /// What is so, in one sentence.
    public var text: String
    /// What to do about it; nil when nothing needs to be done.
    public var remedy: String?

    public init(_ severity: Severity, _ code: String, _ text: String, remedy: String? = nil) {
        self.severity = severity
        self.code = code
        self.text = text
        self.remedy = remedy
    }

    public var description: String {
        "\(severity.rawValue): \(text)" + (remedy.map { " -- \($0)" } ?? "") + " [\(code)]"
    }
}
