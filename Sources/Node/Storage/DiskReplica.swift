import AsyncIO
import BlockReplica
import Dispatch
import Qcow2
import SystemPackage
import Units

/// What a sealed epoch did to one disk.
public struct DiskSeal: Equatable, Sendable {
    public internal(set) var epoch: Epoch
    /// Bytes that were handed in with this epoch: data, and zeroes or discards.
    public internal(set) var bytesReceived: UInt64 = 0
    /// Bytes written to the secondary disk, zeroes left out.
    public internal(set) var bytesWritten: UInt64 = 0
    /// Bytes of the secondary disk that were made zero.
    public internal(set) var bytesZeroed: UInt64 = 0
    /// Blocks whose old contents went into the hidden disk.
    public internal(set) var blocksPreserved: UInt64 = 0
    /// Blocks left out because the disk held their contents already.
    public internal(set) var blocksUnchanged: UInt64 = 0

    /// Adds what the drain counted.
    mutating func add(_ counts: DiskSeal) {
        bytesWritten += counts.bytesWritten
        bytesZeroed += counts.bytesZeroed
        blocksPreserved += counts.blocksPreserved
        blocksUnchanged += counts.blocksUnchanged
    }
}

/// One disk of a replica: the secondary disk with the primary's writes, and the hidden disks that still know what each
/// checkpoint looked like.
///
/// ```
/// write, writeZeroes, discard ─► epoch buffer ═► read old ─► hidden-N.qcow2 ─► secondary.raw
///                                (memory)        (equal blocks end here)       └─ synced at seal
/// view of checkpoint e = hidden-(e+1) ─► hidden-(e+2) ─► ... ─► secondary.raw
/// ```
/// The caller's thread ends at the double line: buffers that hold enough are frozen and drained in the background, in
/// order, while new writes go into the next one. When all memory of the budget is in use a write waits for the drain.
///
/// Not Sendable: confined to one thread at a time, on which every call blocks until it is done. After an error while
/// draining, which the next call reports, nothing more reaches the disk until ``recover(committed:)``; the views of
/// checkpoints stay right.
public final class DiskReplica {
    /// Bounds of one disk's memory.
    public struct Limits: Sendable {
        /// Bytes of writes that wait in memory at most.
        public var bufferBytes = 64 << 20
        /// Blocks that are drained at a time; two staging areas of this size are held.
        public var batchBlocks = 2048
        /// log2 of the cluster size of hidden disks; nil chooses what fits the disk.
        public var hiddenClusterBits: Int?

        public init() {}
    }

    /// A buffer is drained as soon as it holds so many bytes, when the drain has nothing else to do.
    private static let eagerBytes = 1 << 20

    /// Closes dropped hidden disks, one at a time: where a file system tells its device about free space, that of a large
    /// file takes seconds to come back.
    private static let reclaimer = DispatchQueue(label: "colo-blk.reclaim", qos: .utility)

    /// What an epoch has written that is not on its way to the files.
    struct Pending {
        var seal: DiskSeal
        /// Full buffers that wait for an earlier epoch to be sealed.
        var full: [EpochBuffer] = []
        var current: EpochBuffer?
    }

    /// Directory of the disk's files.
    public let directory: String
    /// Size of the disk in bytes, a multiple of 512.
    public let size: UInt64
    public let limits: Limits
    let files: DiskFileQueue
    let durable: Bool
    /// For reads of the newest contents, which the drain does not touch.
    let newest: DirectFile
    private(set) lazy var staging = AlignedBuffer(minimumCount: 256 << 10)
    private var pipeline = DiskPipeline()
    private let pool: EpochBufferPool
    private(set) var pending: [Epoch: Pending] = [:]
    /// Frozen buffers on their way into the files, oldest first.
    private(set) var handed: [EpochBuffer] = []

    // MARK: Making and opening

    /// Makes a disk full of zeroes. The directory is made when it is missing; a disk in it is an error, unless it is a
    /// block device of just this size, which is zeroed.
    ///
    /// `durable`: whether what is sealed survives a power loss of this machine.
    public static func create(
        directory: String, size: UInt64, durable: Bool, limits: Limits = Limits()
    ) throws(DiskReplicaError) -> DiskReplica {
        do throws(Qcow2Error) {
            _ = try OverlayWriter(virtualSize: size, backingFile: DiskFiles.secondary, backingFormat: .raw)
        } catch { throw .overlay(path: directory, error) }
        do throws(IOError) {
            try Directory.create(directory)
            let path = "\(directory)/\(DiskFiles.secondary)"
            let io = DiskIO(durable: durable)
            if Directory.exists(path) {
                let device = try DirectFile(path: path, mode: .readWrite)
                guard device.isBlockDevice, try device.size() == size else {
                    throw IOError(operation: "create", path: path, errno: .fileExists)
                }
                try io.zero(device, at: 0, length: size)
                try io.sync(device)
            } else {
                _ = try io.createWhole(DiskFiles.secondary, in: directory, length: size, writes: [])
            }
        } catch { throw .io(error) }
        return try DiskReplica(directory: directory, durable: durable, limits: limits)
    }

    /// Opens an existing disk. When hidden disks of an earlier session are there, the disk takes writes only after
    /// ``recover(committed:)``; their views can be read before.
    public init(directory: String, durable: Bool, limits: Limits = Limits()) throws(DiskReplicaError) {
        precondition(limits.batchBlocks > 0)
        let secondary: DirectFile
        let size: UInt64
        let found: [Epoch]
        do throws(IOError) {
            let path = "\(directory)/\(DiskFiles.secondary)"
            secondary = try DirectFile(path: path, mode: .readWrite)
            newest = try DirectFile(path: path, mode: .readOnly)
            size = try secondary.size()
            found = try Directory.names(in: directory).compactMap(DiskFiles.hiddenEpoch).sorted()
        } catch { throw .io(error) }
        guard size > 0, size % UInt64(Sizes.sector) == 0, size <= OverlayWriter.largestDisk else {
            throw .overlay(path: secondary.path, .badDiskSize(size))
        }
        let io = DiskIO(durable: durable)
        let bits = limits.hiddenClusterBits ?? OverlayWriter.clusterBits(forDiskOf: size)
        let geometry = BlockGeometry(diskSize: size, unit: max(1 << bits, BlockGeometry.blockSize))
        let finished = DispatchSemaphore(value: 0)
        let drain = DiskDrain(
            directory: directory, io: io, secondary: secondary, geometry: geometry, clusterBits: bits,
            batchBlocks: max(limits.batchBlocks * BlockGeometry.blockSize / geometry.unit, 1),
            drained: { finished.signal() })
        for epoch in found { drain.overlays.append(try DiskOverlay.open(epoch, in: directory, size: size, io: io)) }
        self.directory = directory
        self.size = size
        self.limits = limits
        self.durable = durable
        pool = EpochBufferPool(geometry: geometry, byteLimit: limits.bufferBytes)
        files = DiskFileQueue(label: "colo-blk.disk", drain: drain, finished: finished)
        if found.isEmpty { try orThrow { () throws(PipelineError) in try pipeline.recovered(to: .none) } }
    }

    deinit {
        // Nothing may go on in the background when somebody else opens the files.
        try? files.perform { (drain) throws(DiskReplicaError) in drain.abandon() }
    }

    /// Stage and epochs of the disk; failed, too, when the drain has met an error that no call has reported yet.
    public var state: DiskPipeline {
        var state = pipeline
        if files.hasFailed { state.fail() }
        return state
    }

    /// Bytes of data that wait in memory.
    public var bufferedBytes: Int {
        collect(wait: false)
        var total = handed.reduce(0) { $0 + $1.byteCount }
        for epoch in pending.values {
            total += epoch.full.reduce(0) { $0 + $1.byteCount } + (epoch.current?.byteCount ?? 0)
        }
        return total
    }

    /// Bytes that the hidden disks and the secondary disk occupy.
    public func allocatedBytes() throws(DiskReplicaError) -> UInt64 {
        try files.perform { (drain) throws(DiskReplicaError) in
            do throws(IOError) {
                var total = try drain.secondary.allocatedBytes()
                for overlay in drain.overlays { total += try overlay.allocatedBytes() }
                return total
            } catch { throw .io(error) }
        }
    }

    // MARK: Epochs

    /// Begins an epoch newer than all before. `preserve` is false only before the first commit ever: then there is no
    /// checkpoint to come back to.
    public func beginEpoch(_ epoch: Epoch, preserve: Bool = true) throws(DiskReplicaError) {
        try checkDrain()
        try orThrow { () throws(PipelineError) in try pipeline.begin(epoch, preserve: preserve) }
        pending[epoch] = Pending(seal: DiskSeal(epoch: epoch))
    }

    /// Takes a write into the epoch's buffer; waits for the drain when there is no memory left. `offset` and the length
    /// are multiples of 512. The bytes are copied.
    public func write(
        epoch: Epoch, offset: UInt64, bytes: UnsafeRawBufferPointer
    ) throws(DiskReplicaError) {
        try check(epoch, offset, UInt64(bytes.count))
        var done = 0
        while done < bytes.count {
            let rest = UnsafeRawBufferPointer(rebasing: bytes[done...])
            let taken = try current(epoch).write(at: offset + UInt64(done), rest)
            done += taken
            if taken < rest.count { try retire(epoch) }
        }
        pending[epoch]?.seal.bytesReceived += UInt64(bytes.count)
        drainEagerly(epoch)
    }

    /// Takes a write of zeroes. Offset and length are multiples of 512.
    public func writeZeroes(epoch: Epoch, range: ByteRange) throws(DiskReplicaError) {
        try check(epoch, range.offset, range.length)
        while try !current(epoch).writeZeroes(range) { try retire(epoch) }
        pending[epoch]?.seal.bytesReceived += range.length
        drainEagerly(epoch)
    }

    /// Takes a discard: the range reads as zeroes afterwards.
    public func discard(epoch: Epoch, range: ByteRange) throws(DiskReplicaError) {
        try writeZeroes(epoch: epoch, range: range)
    }

    /// Drains what the oldest epoch that is not sealed has buffered so far, to make its seal short, and waits for it.
    /// Returns false when there was nothing to do.
    @discardableResult
    public func drain() throws(DiskReplicaError) -> Bool {
        guard let open = pipeline.drainable else { return false }
        try checkDrain()
        try orThrow { () throws(PipelineError) in try pipeline.checkWrite(open.epoch) }
        handOver(open)
        collect(wait: false)
        guard !handed.isEmpty else { return false }
        try onFiles { (drain) throws(DiskReplicaError) in try drain.finish() }
        return true
    }

    /// Has drained what the oldest epoch that is not sealed has buffered so far, and does not wait for it.
    public func drainLater() {
        guard let open = pipeline.drainable, !files.hasFailed else { return }
        handOver(open)
        collect(wait: false)
    }

    /// Drains all of the epoch; in disk durability it is on the platter when this returns. Epochs are sealed in order.
    public func seal(epoch: Epoch) throws(DiskReplicaError) -> DiskSeal {
        try checkDrain()
        try orThrow { () throws(PipelineError) in try pipeline.checkSeal(epoch) }
        if let open = pipeline.drainable { handOver(open) }
        let counts = try onFiles { (drain) throws(DiskReplicaError) in try drain.seal(epoch) }
        try orThrow { () throws(PipelineError) in try pipeline.seal(epoch) }
        collect(wait: false)
        var seal = pending.removeValue(forKey: epoch)?.seal ?? DiskSeal(epoch: epoch)
        seal.add(counts)
        pool.trim(keeping: 2)
        if let open = pipeline.drainable { handOverFull(open) }
        return seal
    }

    /// The epoch is committed: hidden disks up to it are dropped. Takes the same time whatever their size and whatever
    /// is being drained; their space comes back with ``reclaim()``.
    public func committed(_ epoch: Epoch) throws(DiskReplicaError) {
        try orThrow { () throws(PipelineError) in try pipeline.commit(epoch) }
        files.drop(upTo: epoch)
    }

    /// Removes the files of dropped hidden disks, at most `count` of them. Call it when nothing waits: freeing a large
    /// file takes milliseconds. Returns how many are left; a crash before it costs nothing, recovery removes them too.
    @discardableResult
    public func reclaim(count: Int = .max) throws(DiskReplicaError) -> Int {
        try files.perform { (drain) throws(DiskReplicaError) in
            for _ in 0..<min(count, drain.garbage.count) {
                do throws(IOError) { try drain.io.remove(drain.garbage[0].path) } catch { throw .io(error) }
                drain.garbage.removeFirst()
            }
            return drain.garbage.count
        }
    }

    /// Does what ``reclaim(count:)`` does in the background, where neither the caller nor the drain waits for it: the names
    /// go at once, the space when the last descriptor is closed. A file that cannot be removed is left to a recovery.
    public func reclaimLater() {
        files.later { drain in
            for overlay in drain.garbage { try? drain.io.remove(overlay.path) }
            let dropped = Dropped(overlays: drain.garbage)
            drain.garbage = []
            Self.reclaimer.async { _ = consume dropped }
        }
    }

    /// Hidden disks that are removed and only wait to be closed. Unchecked: nobody else has them.
    private struct Dropped: @unchecked Sendable {
        let overlays: [DiskOverlay]
    }

    /// A guest is about to run on this disk: what is buffered is forgotten, and no more writes are taken.
    public func beginFailover() throws(DiskReplicaError) {
        try orThrow { () throws(PipelineError) in try pipeline.beginFailover() }
        try forgetBuffers()
    }

    /// The guest runs on this disk, or it did not start.
    public func endFailover(succeeded: Bool) throws(DiskReplicaError) {
        try orThrow { () throws(PipelineError) in try pipeline.endFailover(succeeded: succeeded) }
    }

    // MARK: Recovery

    /// Makes the secondary disk show exactly this checkpoint: everything newer is rolled back in place, newest first,
    /// and buffered writes are forgotten. It may be interrupted and repeated. Returns the bytes that were rolled back.
    public func recover(committed: Epoch) throws(DiskReplicaError) -> UInt64 {
        guard pipeline.stage != .failover, pipeline.stage != .done else {
            throw .pipeline(.notRunning(pipeline.stage))
        }
        pipeline.fail()
        try forgetBuffers()
        let bytes = try files.perform { (drain) throws(DiskReplicaError) in
            let rollback = DiskRollback(
                io: drain.io, secondary: drain.secondary, directory: directory, geometry: BlockGeometry(diskSize: size))
            let bytes = try rollback.run(to: committed)
            // Not before: until all is rolled back, views of checkpoints need the hidden disks, removed or not.
            drain.garbage = []
            drain.overlays = []
            drain.recovered()
            return bytes
        }
        try orThrow { () throws(PipelineError) in try pipeline.recovered(to: committed) }
        return bytes
    }

    // MARK: Parts

    private func orThrow(_ body: () throws(PipelineError) -> Void) throws(DiskReplicaError) {
        do throws(PipelineError) { try body() } catch { throw .pipeline(error) }
    }

    /// Does something with the files; an error of it stops the pipeline.
    func onFiles<Value>(
        _ body: (DiskDrain) throws(DiskReplicaError) -> Value
    ) throws(DiskReplicaError) -> Value {
        do throws(DiskReplicaError) { return try files.perform(body) } catch {
            pipeline.fail()
            throw error
        }
    }

    /// Reports an error that the drain met in the background, once.
    private func checkDrain() throws(DiskReplicaError) {
        guard files.hasFailed, !pipeline.hasFailed else { return }
        try onFiles { (drain) throws(DiskReplicaError) in if let failure = drain.failure { throw failure } }
    }

    private func check(_ epoch: Epoch, _ offset: UInt64, _ length: UInt64) throws(DiskReplicaError) {
        try checkDrain()
        try orThrow { () throws(PipelineError) in try pipeline.checkWrite(epoch) }
        guard let range = ByteRange(checking: offset, length: length), range.fits(in: size) else {
            throw .outside(ByteRange(offset: min(offset, UInt64.max - length), length: length), size: size)
        }
        guard (offset | length) % UInt64(Sizes.sector) == 0 else { throw .misaligned(range) }
    }

    private func forgetBuffers() throws(DiskReplicaError) {
        try files.perform { (drain) throws(DiskReplicaError) in drain.abandon() }
        collect(wait: false)
        for epoch in pending.values {
            for buffer in epoch.full { pool.giveBack(buffer) }
            if let buffer = epoch.current { pool.giveBack(buffer) }
        }
        pending = [:]
    }

    /// Takes back buffers that have been drained.
    private func collect(wait: Bool) {
        var wait = wait
        while !handed.isEmpty, files.takeFinished(wait: wait) {
            pool.giveBack(handed.removeFirst())
            wait = false
        }
    }

    /// The buffer that takes the epoch's next write. One buffer is left for the epoch that can be drained, so that a
    /// later one cannot starve it.
    private func current(_ epoch: Epoch) throws(DiskReplicaError) -> EpochBuffer {
        if let buffer = pending[epoch]?.current { return buffer }
        let reserve = pipeline.drainable?.epoch == epoch ? 0 : 1
        while true {
            collect(wait: false)
            if pool.available > reserve, let buffer = pool.take() {
                pending[epoch]?.current = buffer
                return buffer
            }
            if let open = pipeline.drainable { handOver(open) }
            guard !handed.isEmpty else { throw .budgetExceeded(limitBytes: limits.bufferBytes) }
            collect(wait: true)
            try checkDrain()
        }
    }

    /// The epoch's buffer is full.
    private func retire(_ epoch: Epoch) throws(DiskReplicaError) {
        if let open = pipeline.drainable, open.epoch == epoch {
            handOver(open)
        } else if let buffer = pending[epoch]?.current {
            pending[epoch]?.full.append(buffer)
            pending[epoch]?.current = nil
        }
    }

    /// Hands what the epoch has buffered to the drain.
    private func handOver(_ open: DiskPipeline.OpenEpoch) {
        handOverFull(open)
        guard let buffer = pending[open.epoch]?.current, !buffer.isEmpty else { return }
        pending[open.epoch]?.current = nil
        handOver(buffer, open)
    }

    private func handOverFull(_ open: DiskPipeline.OpenEpoch) {
        for buffer in pending[open.epoch]?.full ?? [] { handOver(buffer, open) }
        pending[open.epoch]?.full.removeAll()
    }

    private func handOver(_ buffer: EpochBuffer, _ open: DiskPipeline.OpenEpoch) {
        buffer.freeze()
        handed.append(buffer)
        files.add(DiskDrain.Job(buffer: buffer, epoch: open.epoch, preserve: open.preserve))
    }

    /// Keeps the drain busy.
    private func drainEagerly(_ epoch: Epoch) {
        guard let buffer = pending[epoch]?.current, buffer.byteCount >= Self.eagerBytes else { return }
        guard let open = pipeline.drainable, open.epoch == epoch else { return }
        collect(wait: false)
        if handed.isEmpty { handOver(open) }
    }
}
