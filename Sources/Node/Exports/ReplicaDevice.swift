import AsyncIO
import BlockReplica
import Dispatch
import NBD
import Units

/// The live disk of a replica as an NBD export: writes go straight into the buffer of the newest epoch, reads see what
/// was written last, whether it has reached the files or not.
///
/// ```
/// event loops ─► perform(batch) ─► the device's own thread ─► DiskReplica ═► its file queue
/// ```
/// A write is answered when it is in the buffer; it waits for room when the buffer's budget is used up, and that is the
/// pressure that reaches the client. What was answered survives what the epoch's seal and its commit make it survive, not
/// more: a flush in disk durability makes the newest contents of the secondary disk durable, but after a crash the disk
/// goes back to its last checkpoint all the same.
///
/// Unchecked: the replica and the scratch memory are reached on the serial queue only; all else is immutable.
public final class ReplicaDevice: ExportDevice, @unchecked Sendable {
    public let size: UInt64
    public let isReadOnly = false
    public let capabilities: ExportCapabilities = [.usual, .fastZero]
    private let queue = DispatchQueue(label: "colo-blk.replica-device", qos: .userInitiated)
    private let replica: DiskReplica
    /// Of a read's answer. Touched on the queue only.
    private var scratch = AlignedBuffer(minimumCount: 64 << 10)
    /// Two sectors of zeroes.
    private let zeroes = AlignedBuffer(minimumCount: 2 * Sizes.sector)
    /// Told of each failure of the disk, on the device's thread.
    private let failed: @Sendable (DiskReplicaError) -> Void
    /// Batches so far, and whether somebody waits for their end. Touched on the queue only.
    private var batches = 0
    private var watchesForIdle = false
    /// When so long nothing came, what waits in memory goes to the disk, so that the next checkpoint finds little to do.
    private static let idle = DispatchTimeInterval.milliseconds(20)

    /// Takes the replica over: it is reached through ``perform(_:)-(_)`` and ``withReplica(_:)`` only from now on.
    public init(_ replica: sending DiskReplica, failed: @escaping @Sendable (DiskReplicaError) -> Void = { _ in }) {
        size = replica.size
        self.replica = replica
        self.failed = failed
    }

    /// Does something with the replica on the device's thread, between two batches: epochs begin and end, checkpoints are
    /// committed there. The caller's thread is not blocked.
    public func withReplica<Value: Sendable>(
        _ body: @escaping @Sendable (DiskReplica) throws -> Value
    ) async throws -> Value {
        try await withCheckedThrowingContinuation { continuation in
            queue.async { [self] in continuation.resume(with: Result { try body(replica) }) }
        }
    }

    public func perform(_ batch: ExportBatch) {
        queue.async { [self] in
            batches &+= 1
            defer { drainWhenIdle() }
            for request in batch.requests {
                do throws(DiskReplicaError) {
                    try perform(request, batch.replies)
                } catch {
                    failed(error)
                    batch.replies.fail(request, error.isNoSpace ? .noSpace : .io)
                }
            }
        }
    }

    private func drainWhenIdle() {
        guard !watchesForIdle else { return }
        watchesForIdle = true
        let seen = batches
        queue.asyncAfter(deadline: .now() + Self.idle) { [weak self] in
            guard let self else { return }
            watchesForIdle = false
            if seen == batches { replica.drainLater() } else { drainWhenIdle() }
        }
    }

    private func perform(_ request: ExportRequest, _ replies: ExportReplies) throws(DiskReplicaError) {
        switch request.operation {
        case .read:
            return try read(request, replies)
        case .blockStatus:
            return replies.extents(request, try replica.newestExtents(request.range))
        case .write:
            let epoch = replica.state.newest
            let outcome: Result<Void, DiskReplicaError> = request.withPayload { bytes in
                do throws(DiskReplicaError) {
                    try write(epoch, request.offset, bytes)
                    return .success(())
                } catch { return .failure(error) }
            }
            try outcome.get()
        case .zero:
            try zero(replica.state.newest, request.range)
        case .trim:
            // Only a hint: what is not a whole sector stays.
            let inner = Self.sectors(inside: request.range)
            if !inner.isEmpty { try replica.discard(epoch: replica.state.newest, range: inner) }
        case .flush:
            try replica.flushNewest()
        case .cache:
            break
        }
        if request.isForced { try replica.flushNewest() }
        replies.done(request)
    }

    /// Waits for the disk before it asks for room in the answer, for which the connection's loop may wait.
    private func read(_ request: ExportRequest, _ replies: ExportReplies) throws(DiskReplicaError) {
        if scratch.count < request.byteCount { scratch = AlignedBuffer(minimumCount: request.byteCount) }
        let bytes = scratch.slice(0, request.byteCount)
        try replica.readNewest(offset: request.offset, into: bytes)
        replies.read(request, bytes: UnsafeRawBufferPointer(bytes))
    }

    // MARK: Parts of sectors

    /// Writes whole sectors as they are; what lies around the others is read and written with them. Nothing comes in
    /// between, since all writes are made on this thread.
    private func write(
        _ epoch: Epoch, _ offset: UInt64, _ bytes: UnsafeRawBufferPointer
    ) throws(DiskReplicaError) {
        let sector = UInt64(Sizes.sector)
        guard (offset | UInt64(bytes.count)) % sector != 0 else {
            return try replica.write(epoch: epoch, offset: offset, bytes: bytes)
        }
        var done = 0
        while done < bytes.count {
            let place = offset + UInt64(done)
            let rest = UInt64(bytes.count - done)
            let count: Int
            if place % sector == 0, rest >= sector {
                count = Int(rest / sector * sector)
                let part = UnsafeRawBufferPointer(rebasing: bytes[done..<done + count])
                try replica.write(epoch: epoch, offset: place, bytes: part)
            } else {
                let start = place / sector * sector
                count = Int(min(start + sector - place, rest))
                let whole = scratch.slice(0, Sizes.sector)
                try replica.readNewest(offset: start, into: whole)
                UnsafeMutableRawBufferPointer(rebasing: whole[Int(place - start)...]).copyMemory(
                    from: UnsafeRawBufferPointer(rebasing: bytes[done..<done + count]))
                try replica.write(epoch: epoch, offset: start, bytes: UnsafeRawBufferPointer(whole))
            }
            done += count
        }
    }

    private func zero(_ epoch: Epoch, _ range: ByteRange) throws(DiskReplicaError) {
        let inner = Self.sectors(inside: range)
        guard inner.length < range.length else { return try replica.writeZeroes(epoch: epoch, range: range) }
        let edges =
            inner.isEmpty
            ? [range]
            : [
                ByteRange(offset: range.offset, length: inner.offset - range.offset),
                ByteRange(offset: inner.end, length: range.end - inner.end),
            ]
        for edge in edges where !edge.isEmpty {
            // Less than two sectors.
            try write(epoch, edge.offset, UnsafeRawBufferPointer(zeroes.slice(0, Int(edge.length))))
        }
        if !inner.isEmpty { try replica.writeZeroes(epoch: epoch, range: inner) }
    }

    private static func sectors(inside range: ByteRange) -> ByteRange {
        let sector = UInt64(Sizes.sector)
        let start = (range.offset + sector - 1) / sector * sector
        let end = range.end / sector * sector
        return ByteRange(offset: start, length: end > start ? end - start : 0)
    }
}
