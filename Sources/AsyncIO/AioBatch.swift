import CAio
import Glibc
import SystemPackage

/// Transfers of one file that run at the same time, while the caller does something else (io_submit(2),
/// io_getevents(2)). Its memory is kept from batch to batch.
///
/// ```
/// begin(file, .read) ─► add ─► add ... ─► start ─► (other work) ─► finish
/// ```
/// Transfers of one batch run in any order; ranges that overlap need two batches. Memory that was added must stay valid
/// until ``finish()``. Confined to one thread at a time.
public final class AioBatch {
    public enum Direction: Sendable { case read, write }

    /// The longest single transfer in bytes; longer ones are cut, so that they run side by side.
    public static let longest = 1 << 20

    /// Made when a batch first gains from it: the kernel takes some 20 ms to take a context back.
    private var context: OpaquePointer?
    private let depth: Int
    private var operations: UnsafeMutablePointer<caio_operation>
    private var room: Int
    private var count = 0
    private var started = 0
    private var file: DirectFile?
    private var direction = Direction.read
    private var failure: IOError?

    /// `depth`: transfers in flight at most, 1 to 4096. Traps otherwise.
    public init(depth: Int) {
        precondition((1...4096).contains(depth))
        self.depth = depth
        room = depth
        operations = .allocate(capacity: room)
    }

    deinit {
        // Nothing may be in flight when the memory goes.
        while inFlight > 0 { reap() }
        if let context { caio_context_destroy(context) }
        operations.deallocate()
    }

    /// Begins a batch of this file. The one before must have been finished.
    public func begin(_ file: DirectFile, _ direction: Direction) {
        precondition(inFlight == 0 && started == count, "the last batch is not finished")
        self.file = file
        self.direction = direction
        count = 0
        started = 0
        failure = nil
    }

    /// Adds a transfer. An offset, length or address that is no multiple of 4 KiB goes through the page cache.
    public func add(at offset: UInt64, _ memory: UnsafeRawBufferPointer) {
        guard let file, let base = memory.baseAddress else { return }
        var done = 0
        while done < memory.count {
            let part = UnsafeRawBufferPointer(start: base + done, count: min(Self.longest, memory.count - done))
            if count == room { grow() }
            (operations + count).initialize(
                to: caio_operation(
                    descriptor: file.descriptor(offset: offset + UInt64(done), buffer: part),
                    is_write: direction == .write ? 1 : 0,
                    buffer: UnsafeMutableRawPointer(mutating: part.baseAddress), length: part.count,
                    offset: Int64(clamping: offset + UInt64(done)), result: 0))
            count += 1
            done += part.count
        }
    }

    /// Sets the transfers going, as many as fit. Few transfers, those through the page cache and those of files that are
    /// observed are performed at once, one after the other; so are all where the kernel has no context to give.
    public func start() {
        guard let file else { return }
        if file.observer != nil || !file.isDirect || count <= 2 || !hasContext() { perform(file) } else { pump() }
    }

    private func hasContext() -> Bool {
        if context == nil {
            var reason: CInt = 0
            context = caio_context_create(CUnsignedInt(depth), &reason)
        }
        return context != nil
    }

    private var inFlight: CUnsignedInt { context.map { caio_context_in_flight($0) } ?? 0 }

    /// Waits for all transfers. When any failed, the rest still ends before the first failure is thrown; what reached
    /// the file is then unknown.
    public func finish() throws(IOError) {
        while started < count || inFlight > 0 {
            if inFlight > 0 { reap() }
            pump()
        }
        if failure == nil, let file { judge(file) }
        count = 0
        started = 0
        file = nil
        if let failure {
            self.failure = nil
            throw failure
        }
    }

    // MARK: Parts

    private func grow() {
        let larger = UnsafeMutablePointer<caio_operation>.allocate(capacity: room * 2)
        larger.moveInitialize(from: operations, count: count)
        operations.deallocate()
        operations = larger
        room *= 2
    }

    private func pump() {
        guard let context else {
            if let file { perform(file) }
            return
        }
        while started < count {
            let answer = caio_context_submit(context, operations + started, CUnsignedInt(count - started))
            if answer > 0 {
                started += Int(answer)
            } else if caio_context_in_flight(context) > 0 {
                return
            } else {
                // The kernel refuses this one: a failed submission is an ordinary completion.
                operations[started].result = answer == -EAGAIN ? slowly(operations[started]) : Int64(answer)
                started += 1
            }
        }
    }

    private func reap() {
        guard let context else { return }
        let answer = caio_context_reap(context, 1)
        precondition(answer >= 0, "io_getevents refused its own context: errno \(-answer)")
    }

    private func slowly(_ operation: caio_operation) -> Int64 {
        operation.is_write != 0
            ? caio_pwrite(operation.descriptor, operation.buffer, operation.length, operation.offset)
            : caio_pread(operation.descriptor, operation.buffer, operation.length, operation.offset)
    }

    private func perform(_ file: DirectFile) {
        while started < count, failure == nil {
            if file.observer == nil { operations[started].result = slowly(operations[started]) }
            let operation = operations[started]
            started += 1
            if file.observer != nil || operation.result < Int64(operation.length) { rest(of: operation, file) }
        }
        started = count
    }

    /// Looks at the results of what the kernel did by itself.
    private func judge(_ file: DirectFile) {
        for index in 0..<count where operations[index].result != Int64(operations[index].length) {
            if failure != nil { return }
            if file.observer == nil, file.isDirect, count > 2 { rest(of: operations[index], file) }
        }
    }

    /// Finishes a short transfer by ordinary calls; notes a failed one.
    private func rest(of operation: caio_operation, _ file: DirectFile) {
        guard operation.result >= 0 else {
            failure = IOError(
                operation: operation.is_write != 0 ? "aio write" : "aio read", path: file.path,
                offset: UInt64(operation.offset), errno: Errno(rawValue: CInt(-operation.result)))
            return
        }
        let done = Int(operation.result)
        let memory = UnsafeMutableRawBufferPointer(
            start: operation.buffer.map { $0 + done }, count: operation.length - done)
        do throws(IOError) {
            if operation.is_write != 0 {
                try file.write(at: UInt64(operation.offset) + UInt64(done), from: UnsafeRawBufferPointer(memory))
            } else {
                try file.read(at: UInt64(operation.offset) + UInt64(done), into: memory)
            }
        } catch { failure = error }
    }
}
