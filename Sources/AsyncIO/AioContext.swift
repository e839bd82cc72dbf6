import CAio
import Glibc
import SystemPackage

/// One transfer of a batch. The memory must stay valid until the batch has run.
public struct AioOperation {
    /// The file to read from or write to.
    public let file: DirectFile
    /// Offset in the file, in bytes.
    public let offset: UInt64
    /// The memory to fill, or to write.
    public let buffer: UnsafeMutableRawBufferPointer
    /// Whether the memory goes to the file.
    public let isWrite: Bool

    public static func read(
        _ file: DirectFile, at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer
    ) -> AioOperation {
        AioOperation(file: file, offset: offset, buffer: buffer, isWrite: false)
    }

    public static func write(
        _ file: DirectFile, at offset: UInt64, from buffer: UnsafeRawBufferPointer
    ) -> AioOperation {
        AioOperation(
            file: file, offset: offset, buffer: UnsafeMutableRawBufferPointer(mutating: buffer), isWrite: true)
    }

    /// Performs this one transfer and waits for it, without a context (pread(2), pwrite(2)).
    public func perform() throws(IOError) {
        if isWrite {
            try file.write(at: offset, from: UnsafeRawBufferPointer(buffer))
        } else {
            try file.read(at: offset, into: buffer)
        }
    }
}

/// Runs batches of transfers, many at a time, over libaio (io_submit(2), io_getevents(2)).
///
/// Transfers of one batch run in any order; ranges that overlap need two batches. Confined to one thread.
public final class AioContext {
    private let context: OpaquePointer
    private var slots: UnsafeMutableBufferPointer<caio_operation>

    /// Transfers in flight at most.
    public let depth: Int

    /// Traps when the depth is not within 1...4096.
    public init(depth: Int = 64) throws(IOError) {
        precondition((1...4096).contains(depth))
        var reason: CInt = 0
        guard let context = caio_context_create(CUnsignedInt(depth), &reason) else {
            throw IOError(operation: "io_setup", path: "(libaio)", errno: Errno(rawValue: reason))
        }
        self.context = context
        self.depth = depth
        self.slots = .allocate(capacity: depth)
        self.slots.initialize(repeating: caio_operation())
    }

    deinit {
        // The context goes first: the kernel may not touch memory that is freed behind it.
        caio_context_destroy(context)
        slots.deallocate()
    }

    /// Runs every operation and returns when all have ended. Short transfers are completed. When any fails, the rest
    /// still ends before the first failure in the batch's order is thrown; what reached the files is then unknown.
    ///
    /// Operations on files that are observed are performed one after the other.
    public func run(_ operations: [AioOperation]) throws(IOError) {
        if operations.contains(where: { $0.file.observer != nil }) {
            for operation in operations { try operation.perform() }
            return
        }
        var failure: IOError? = nil
        var start = 0
        while start < operations.count {
            let count = min(depth, operations.count - start)
            let error = runWindow(operations[start..<start + count])
            if failure == nil { failure = error }
            if failure != nil { break }
            start += count
        }
        if let failure { throw failure }
    }

    /// Runs up to `depth` operations to their end; returns the first failure.
    private func runWindow(_ operations: ArraySlice<AioOperation>) -> IOError? {
        for (slot, operation) in operations.enumerated() { slots[slot] = prepare(operation) }
        var started = 0
        while started < operations.count {
            let base = slots.baseAddress.map { $0 + started }
            let answer = caio_context_submit(context, base, CUnsignedInt(operations.count - started))
            if answer > 0 {
                started += Int(answer)
            } else if caio_context_in_flight(context) > 0 {
                reap(1)
            } else {
                // The kernel refuses this one: a failed submission is an ordinary completion.
                slots[started].result = answer == -EAGAIN ? slowly(slots[started]) : Int64(answer)
                started += 1
            }
        }
        while caio_context_in_flight(context) > 0 { reap(caio_context_in_flight(context)) }
        for (slot, operation) in operations.enumerated() {
            if let error = finish(operation, slots[slot].result) { return error }
        }
        return nil
    }

    private func prepare(_ operation: AioOperation) -> caio_operation {
        caio_operation(
            descriptor: operation.file.descriptor(
                offset: operation.offset, buffer: UnsafeRawBufferPointer(operation.buffer)),
            is_write: operation.isWrite ? 1 : 0, buffer: operation.buffer.baseAddress,
            length: operation.buffer.count, offset: Int64(clamping: operation.offset), result: 0)
    }

    private func reap(_ minimum: CUnsignedInt) {
        let answer = caio_context_reap(context, minimum)
        precondition(answer >= 0, "io_getevents refused its own context: errno \(-answer)")
    }

    /// The kernel has no room for one asynchronous operation: do it here.
    private func slowly(_ operation: caio_operation) -> Int64 {
        operation.is_write != 0
            ? caio_pwrite(operation.descriptor, operation.buffer, operation.length, operation.offset)
            : caio_pread(operation.descriptor, operation.buffer, operation.length, operation.offset)
    }

    /// Judges a result; a short transfer is finished by ordinary calls.
    private func finish(_ operation: AioOperation, _ result: Int64) -> IOError? {
        let name = operation.isWrite ? "aio write" : "aio read"
        guard result >= 0 else {
            return IOError(
                operation: name, path: operation.file.path, offset: operation.offset,
                errno: Errno(rawValue: CInt(-result)))
        }
        let done = Int(result)
        guard done < operation.buffer.count else { return nil }
        let rest = UnsafeMutableRawBufferPointer(rebasing: operation.buffer[done...])
        let offset = operation.offset + UInt64(done)
        do throws(IOError) {
            if operation.isWrite {
                try operation.file.write(at: offset, from: UnsafeRawBufferPointer(rest))
            } else {
                try operation.file.read(at: offset, into: rest)
            }
            return nil
        } catch {
            return error
        }
    }
}
