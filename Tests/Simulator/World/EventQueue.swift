/// What will happen, by virtual time; what is due at the same time happens in the order in which it was planned.
struct EventQueue {
    private struct Event {
        let time: UInt64
        let order: UInt64
        let action: () -> Void

        func isBefore(_ other: Event) -> Bool { time != other.time ? time < other.time : order < other.order }
    }

    private var heap: [Event] = []
    private var planned: UInt64 = 0

    /// Time of the next event in nanoseconds; nil when nothing is planned.
    var nextTime: UInt64? { heap.first?.time }

    mutating func plan(at time: UInt64, _ action: @escaping () -> Void) {
        planned += 1
        heap.append(Event(time: time, order: planned, action: action))
        var child = heap.count - 1
        while child > 0, heap[child].isBefore(heap[(child - 1) / 2]) {
            heap.swapAt(child, (child - 1) / 2)
            child = (child - 1) / 2
        }
    }

    mutating func take() -> (time: UInt64, action: () -> Void)? {
        guard let first = heap.first else { return nil }
        let last = heap.removeLast()
        if !heap.isEmpty {
            heap[0] = last
            sink()
        }
        return (first.time, first.action)
    }

    private mutating func sink() {
        var parent = 0
        while true {
            var best = parent
            for child in [2 * parent + 1, 2 * parent + 2] where child < heap.count && heap[child].isBefore(heap[best]) {
                best = child
            }
            if best == parent { return }
            heap.swapAt(parent, best)
            parent = best
        }
    }
}
