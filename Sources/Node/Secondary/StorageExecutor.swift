import Dispatch

/// One thread's worth of blocking storage work: the executor of one replica's actor.
///
/// Everything that a replica does to its disks, its RAM cache and its commit record blocks (libaio, fdatasync, mmap).
/// It must neither hold up the sockets' event loops nor the small pool that Swift's other tasks share.
final class StorageExecutor: SerialExecutor {
    private let queue: DispatchQueue

    init(label: String) {
        queue = DispatchQueue(label: label, qos: .userInitiated)
    }

    func enqueue(_ job: consuming ExecutorJob) {
        let job = UnownedJob(job)
        queue.async { job.runSynchronously(on: self.asUnownedSerialExecutor()) }
    }

    func asUnownedSerialExecutor() -> UnownedSerialExecutor {
        UnownedSerialExecutor(ordinary: self)
    }
}
