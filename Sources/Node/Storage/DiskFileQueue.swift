import BlockReplica
import Dispatch
import Synchronization
import Units

/// A disk's files, and the one thread at a time that may touch them.
///
/// Frozen buffers are drained here in the background, a batch at a time; other work on the files gets its turn between
/// two batches.
///
/// Unchecked: the drain is reached through the serial queue only; all else is immutable or atomic.
final class DiskFileQueue: @unchecked Sendable {
    private let queue: DispatchQueue
    private let drain: DiskDrain
    /// Signalled once for each buffer that has been drained or dropped, in the order in which they were added.
    private let finished: DispatchSemaphore
    private let failed = Atomic<Bool>(false)
    /// Hidden disks up to this epoch are of no more use; whoever has the files next drops them.
    private let dropped = Atomic<UInt64>(0)
    /// A step is on the queue. Touched on the queue only.
    private var isScheduled = false

    /// `drain` must report to `finished`.
    init(label: String, drain: sending DiskDrain, finished: DispatchSemaphore) {
        queue = DispatchQueue(label: label, qos: .userInitiated)
        self.drain = drain
        self.finished = finished
    }

    /// Whether the drain has met an error that has not been recovered from.
    var hasFailed: Bool { failed.load(ordering: .relaxed) }

    /// Adds a frozen buffer and returns at once.
    func add(_ job: DiskDrain.Job) {
        queue.async { [self] in
            drain.add(job)
            schedule()
        }
    }

    /// Whether another buffer has been drained since the last call that said so. With `wait`, blocks until one has.
    func takeFinished(wait: Bool) -> Bool {
        if wait {
            finished.wait()
            return true
        }
        return finished.wait(timeout: .now()) == .success
    }

    /// Does something with the files, between two batches of the drain, and waits for it.
    func perform<Value>(_ body: (DiskDrain) throws(DiskReplicaError) -> Value) throws(DiskReplicaError) -> Value {
        let outcome: Result<Value, DiskReplicaError> = queue.sync {
            let outcome: Result<Value, DiskReplicaError>
            dropUseless()
            do throws(DiskReplicaError) {
                outcome = .success(try body(drain))
            } catch { outcome = .failure(error) }
            failed.store(drain.failure != nil, ordering: .relaxed)
            return outcome
        }
        return try outcome.get()
    }

    /// Does something with the files later.
    func later(_ body: @escaping @Sendable (DiskDrain) -> Void) {
        queue.async { [self] in
            dropUseless()
            body(drain)
        }
    }

    /// Notes that hidden disks up to this epoch are of no more use; waits for nobody.
    func drop(upTo epoch: Epoch) { dropped.store(epoch.rawValue, ordering: .releasing) }

    private func dropUseless() { drain.drop(upTo: Epoch(dropped.load(ordering: .acquiring))) }

    private func schedule() {
        failed.store(drain.failure != nil, ordering: .relaxed)
        guard !isScheduled, drain.isBusy else { return }
        isScheduled = true
        queue.async { [self] in
            isScheduled = false
            dropUseless()
            drain.step()
            schedule()
        }
    }
}
