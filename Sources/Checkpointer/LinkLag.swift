import Units

/// How far the other side of a link is behind, in time: the age of the oldest byte that it has not taken in. Reads no
/// clock.
///
/// Bytes are counted from the start of the session. When which of them was sent is remembered in steps of ``step``,
/// which grow when there are too many of them. The age that is told is never too small, and too large by a step at
/// most.
public struct LinkLag: Sendable, Equatable {
    /// Nanoseconds that one entry stands for, while there are few.
    public static let step: UInt64 = 20_000_000
    private static let marksMax = 128

    /// Bytes from `first` on were sent at `at` or later. Ascending in both.
    private struct Mark: Equatable {
        var first: UInt64
        var at: Moment
    }

    private struct Sample: Equatable {
        let at: Moment
        let total: UInt64
    }

    private var marks: [Mark] = []
    private var stepNow = step
    /// Nanoseconds over which ``recent`` counts.
    public static let recentTime: UInt64 = 500_000_000
    private static let sampleTime: UInt64 = 50_000_000
    /// What had been taken in at some moments of the last ``recentTime``, oldest first; the first one is older than
    /// that, or of the start.
    private var samples: [Sample] = []
    /// Bytes that were sent, and that the other side has taken in.
    public private(set) var sent: UInt64 = 0
    public private(set) var consumed: UInt64 = 0

    public init() {}

    /// Bytes on their way, or waiting for it.
    public var outstanding: UInt64 { sent - consumed }

    /// So many bytes were sent, or queued to be.
    public mutating func sent(bytes: UInt64, now: Moment) {
        guard bytes > 0 else { return }
        defer { sent += bytes }
        if let last = marks.last, now.nanoseconds(since: last.at) < stepNow { return }
        if marks.count == Self.marksMax {
            marks = marks.enumerated().filter { $0.offset % 2 == 0 }.map(\.element)
            stepNow *= 2
        }
        marks.append(Mark(first: sent, at: now))
    }

    /// The other side has taken in so many bytes since the start. Returns false when it cannot have: more than were
    /// sent, or fewer than it said before.
    public mutating func consumed(total: UInt64, now: Moment) -> Bool {
        guard total <= sent, total >= consumed else { return false }
        if samples.last.map({ now.nanoseconds(since: $0.at) >= Self.sampleTime }) ?? true {
            samples.append(Sample(at: now, total: consumed))
        }
        while samples.count > 1, now.nanoseconds(since: samples[1].at) >= Self.recentTime { samples.removeFirst() }
        consumed = total
        if total == sent {
            marks.removeAll(keepingCapacity: true)
            stepNow = Self.step
            return true
        }
        let kept = marks.lastIndex { $0.first <= total } ?? 0
        marks.removeFirst(kept)
        return true
    }

    /// Bytes that were taken in lately: about those of the last ``recentTime``. A window of this size keeps a link
    /// busy, and is all that a link takes in such a time.
    public var recent: UInt64 { consumed - (samples.first?.total ?? 0) }

    /// Nanoseconds since the oldest byte that was not taken in was sent; 0 when everything was.
    public func age(now: Moment) -> UInt64 {
        guard let oldest = marks.first else { return 0 }
        return now.nanoseconds(since: oldest.at)
    }
}
