import Foundation
import Glibc
import Synchronization

/// Watches a guest's ticks, which come every 100 ms, from a thread of its own: how long the guest stood still.
final class TickWatch: Sendable {
    private struct State {
        var last = monotonicSeconds()
        var longest = 0.0
        /// When the newest ticks were seen, 64 at most.
        var seen: [Double] = []
        var isOver = false
    }

    private let state = Mutex(State())

    /// Watches until it is let go.
    init(_ guest: Guest) {
        let log = SerialLog(path: guest.serial.path)
        log.read()
        let number = log.lastTick?.number ?? 0
        let thread = Reader(log: log, number: number, watch: self)
        Thread.detachNewThread { thread.run() }
    }

    /// The longest time without a tick since the last call, in seconds, the tick's own tenth not counted.
    func takeLongest() -> Double {
        state.withLock { state in
            let now = monotonicSeconds()
            let longest = max(state.longest, now - state.last)
            state.longest = 0
            return max(0, longest - 0.1)
        }
    }

    /// Ticks that were seen since a moment, 64 at most.
    func ticks(since start: Double) -> Int { state.withLock { $0.seen.filter { $0 > start }.count } }

    func stop() { state.withLock { $0.isOver = true } }

    /// Returns whether it goes on.
    fileprivate func saw(_ hasTicked: Bool) -> Bool {
        state.withLock { state in
            let now = monotonicSeconds()
            if hasTicked {
                state.longest = max(state.longest, now - state.last)
                state.last = now
                if state.seen.count == 64 { state.seen.removeFirst() }
                state.seen.append(now)
            }
            return !state.isOver
        }
    }

    /// `@unchecked Sendable`: used by its thread alone.
    private final class Reader: @unchecked Sendable {
        private let log: SerialLog
        private var number: Int
        private weak let watch: TickWatch?

        init(log: SerialLog, number: Int, watch: TickWatch) {
            self.log = log
            self.number = number
            self.watch = watch
        }

        func run() {
            while true {
                log.read()
                let now = log.lastTick?.number ?? 0
                guard let watch, watch.saw(now != number) else { return }
                number = now
                pause(milliseconds: 5)
            }
        }
    }
}
