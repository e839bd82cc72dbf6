import Glibc
import Synchronization
import Units

/// What a person sees of an attachment: one live line on a terminal, plain lines otherwise.
final class Progress: Sendable {
    private struct State {
        var isLive = false
        var lastPlain: UInt64 = 0
        /// The last commit before an outage that lasts.
        var outageSince: Moment?
    }

    /// Nanoseconds between two plain lines of the same kind.
    private static let plainInterval: UInt64 = 5_000_000_000

    private let isTerminal = isatty(2) == 1
    private let state: Mutex<State>

    /// - Parameter outageSince: the last commit before an outage; nil when the guest was never protected before.
    init(outageSince: Moment? = nil) {
        state = Mutex(State(outageSince: outageSince))
    }

    /// The first checkpoint is committed, with so many bytes on the link.
    func protected(_ figures: AgentFigures, sent: UInt64) {
        let outage = state.withLock { state in
            defer { state.outageSince = nil }
            return state.outageSince
        }
        let again = outage.map { ", after \(Self.age(of: $0)) without one; \(ByteText.text(sent)) were sent" }
        let known = ByteText.text(figures.firstIdentical * UInt64(Sizes.page))
        let had = figures.firstIdentical == 0 ? "" : "; \(known) of RAM were there already"
        say("protected: checkpoint \(figures.committed) is committed\(again ?? "")\(had)")
    }

    /// How long ago something was, for people.
    static func age(of moment: Moment) -> String {
        let seconds = Double(MonotonicClock.now().nanoseconds(since: moment)) / 1e9
        return "\(Fixed.text(seconds, seconds < 10 ? 1 : 0)) s"
    }

    /// Something happened: a line of its own.
    func say(_ line: String) {
        state.withLock { state in
            write((state.isLive ? "\r\u{1B}[K" : "") + line + "\n")
            state.isLive = false
            state.lastPlain = 0
        }
    }

    /// Something goes on: replaces the live line; elsewhere, a line every few seconds.
    func show(_ line: String) {
        state.withLock { state in
            let outage = state.outageSince
            let line = outage.map { "degraded: resyncing, last commit \(Self.age(of: $0)) ago: \(line)" } ?? line
            if isTerminal {
                write("\r\u{1B}[K" + line)
                state.isLive = true
                return
            }
            let now = MonotonicClock.now().nanoseconds
            guard now >= state.lastPlain + Self.plainInterval || state.lastPlain == 0 else { return }
            state.lastPlain = now
            write(line + "\n")
        }
    }

    func finish() {
        state.withLock { state in
            if state.isLive { write("\n") }
            state.isLive = false
        }
    }

    private func write(_ text: String) {
        var text = text
        text.withUTF8 { _ = Glibc.write(2, $0.baseAddress, $0.count) }
    }
}

/// Numbers as people read them.
public enum Fixed {
    /// With so many digits behind the point.
    public static func text(_ value: Double, _ digits: Int) -> String {
        guard value.isFinite, abs(value) < 1e15 else { return "-" }
        var scale = 1.0
        for _ in 0..<digits { scale *= 10 }
        let scaled = Int64((abs(value) * scale).rounded())
        let whole = scaled / Int64(scale)
        let sign = value < 0 && scaled != 0 ? "-" : ""
        guard digits > 0 else { return "\(sign)\(whole)" }
        let fraction = String(scaled % Int64(scale))
        return "\(sign)\(whole)." + String(repeating: "0", count: digits - fraction.count) + fraction
    }
}

/// Bytes in binary units.
public enum ByteText {
    public static func text(_ bytes: UInt64) -> String {
        if bytes < 1024 { return "\(bytes) B" }
        var value = Double(bytes) / 1024
        for unit in ["KiB", "MiB", "GiB"] {
            if value < 1024 { return "\(Fixed.text(value, value < 10 ? 1 : 0)) \(unit)" }
            value /= 1024
        }
        return "\(Fixed.text(value, 1)) TiB"
    }
}

enum Percent {
    static func text(_ part: UInt64, of total: UInt64) -> String {
        guard total > 0 else { return "-" }
        return "\(Fixed.text(Double(part) / Double(total) * 100, 0)) %"
    }
}
