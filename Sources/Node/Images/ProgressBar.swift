import Units

/// How far a long operation is, on standard error: a live line on a terminal, a line every few seconds elsewhere.
public final class ProgressBar {
    private let what: String
    private let isShown: Bool
    private let lines = Progress()
    private let started = MonotonicClock.now().nanoseconds
    private var lastShown: UInt64 = 0

    private static let width = 30

    public init(_ what: String, isShown: Bool) {
        self.what = what
        self.isShown = isShown
    }

    /// `done` of `total` bytes.
    public func show(_ done: UInt64, of total: UInt64) {
        guard isShown else { return }
        let now = MonotonicClock.now().nanoseconds
        guard now >= lastShown + 100_000_000 || done == total else { return }
        lastShown = now
        let filled = total == 0 ? Self.width : Int(Double(done) / Double(total) * Double(Self.width))
        let bar = String(repeating: "#", count: filled) + String(repeating: ".", count: Self.width - filled)
        let seconds = max(Double(now - started) / 1e9, 0.001)
        let rate = ByteText.text(UInt64(Double(done) / seconds))
        lines.show(
            "\(what) [\(bar)] \(Percent.text(done, of: total))  \(ByteText.text(done)) of \(ByteText.text(total))  "
                + "\(rate)/s")
    }

    public func finish() { lines.finish() }
}
