import AsyncIO
import BlockReplica
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
    /// Blocks of 4 KiB whose old contents went into the hidden disk.
    public internal(set) var blocksPreserved: UInt64 = 0
    /// Blocks left out because the disk held their contents already.
    public internal(set) var blocksUnchanged: UInt64 = 0
}

/// One disk of a replica: the secondary disk with the primary's writes, and the hidden disks that still know what each
/// checkpoint looked like.
///
/// ```
/// write, writeZeroes, discard ─► epoch buffer ─► read old ─► hidden-N.qcow2 ─► secondary.raw
///                                (memory)        (equal blocks end here)       └─ synced at seal
/// view of checkpoint e = hidden-(e+1) ─► hidden-(e+2) ─► ... ─► secondary.raw
/// ```
/// Not Sendable: confined to the storage thread, on which every call blocks until it is done. After an error while
/// draining nothing more reaches the disk until ``recover(committed:)``; the views of checkpoints stay right.
public final class DiskReplica {
    /// Bounds of one disk's memory.
    public struct Limits: Sendable {
        /// Bytes of writes that wait in memory at most.
        public var bufferBytes = 64 << 20
        /// Blocks of 4 KiB that are drained at a time; two staging areas of this size are held.
        public var batchBlocks = 2048

        public init() {}
    }

    /// Bytes taken into the buffer between two looks at its room.
    private static let chunk = 1 << 20

    /// Directory of the disk's files.
    public let directory: String
    /// Size of the disk in bytes, a multiple of 512.
    public let size: UInt64
    public let limits: Limits
    let io: DiskIO
    let secondary: DirectFile
    let geometry: BlockGeometry
    var pipeline = DiskPipeline()
    /// Hidden disks that are not garbage, rising by epoch.
    var overlays: [DiskOverlay] = []
    /// Paths of hidden disks that a commit made useless; see ``reclaim()``.
    private var garbage: [String] = []
    private let pool: SlabPool
    private var buffers: [Epoch: EpochBuffer] = [:]
    private var seals: [Epoch: DiskSeal] = [:]
    private lazy var oldStaging = AlignedBuffer(minimumCount: limits.batchBlocks * BlockGeometry.blockSize)
    private lazy var newStaging = AlignedBuffer(minimumCount: limits.batchBlocks * BlockGeometry.blockSize)

    // MARK: Making and opening

    /// Makes a disk full of zeroes. The directory is made when it is missing; a disk in it is an error.
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
            guard !Directory.exists(path) else {
                throw IOError(operation: "create", path: path, errno: .fileExists)
            }
            _ = try DiskIO(durable: durable).createWhole(
                DiskFiles.secondary, in: directory, length: size, writes: [])
        } catch { throw .io(error) }
        return try DiskReplica(directory: directory, durable: durable, limits: limits)
    }

    /// Opens an existing disk. When hidden disks of an earlier session are there, the disk takes writes only after
    /// ``recover(committed:)``; their views can be read before.
    public init(directory: String, durable: Bool, limits: Limits = Limits()) throws(DiskReplicaError) {
        precondition(limits.batchBlocks > 0)
        let io: DiskIO
        let secondary: DirectFile
        let size: UInt64
        let found: [Epoch]
        do throws(IOError) {
            io = DiskIO(durable: durable)
            secondary = try DirectFile(path: "\(directory)/\(DiskFiles.secondary)", mode: .readWrite)
            size = try secondary.size()
            found = try Directory.names(in: directory).compactMap(DiskFiles.hiddenEpoch).sorted()
        } catch { throw .io(error) }
        guard size > 0, size % UInt64(Sizes.sector) == 0 else {
            throw .overlay(path: secondary.path, .badDiskSize(size))
        }
        self.directory = directory
        self.size = size
        self.limits = limits
        self.io = io
        self.secondary = secondary
        self.geometry = BlockGeometry(diskSize: size)
        self.pool = SlabPool(byteLimit: limits.bufferBytes)
        for epoch in found { overlays.append(try DiskOverlay.open(epoch, in: directory, size: size, io: io)) }
        if found.isEmpty { try orThrow { () throws(PipelineError) in try pipeline.recovered(to: .none) } }
    }

    /// Stage and epochs of the disk.
    public var state: DiskPipeline { pipeline }

    /// Bytes of data that wait in memory.
    public var bufferedBytes: Int { pool.used * BlockGeometry.blockSize }

    /// Bytes that the hidden disks and the secondary disk occupy.
    public func allocatedBytes() throws(DiskReplicaError) -> UInt64 {
        do throws(IOError) {
            var total = try secondary.allocatedBytes()
            for overlay in overlays { total += try overlay.allocatedBytes() }
            return total
        } catch { throw .io(error) }
    }

    // MARK: Epochs

    /// Begins an epoch newer than all before. `preserve` is false only before the first commit ever: then there is no
    /// checkpoint to come back to.
    public func beginEpoch(_ epoch: Epoch, preserve: Bool = true) throws(DiskReplicaError) {
        try orThrow { () throws(PipelineError) in try pipeline.begin(epoch, preserve: preserve) }
        buffers[epoch] = EpochBuffer(geometry: geometry, pool: pool)
        seals[epoch] = DiskSeal(epoch: epoch)
    }

    /// Takes a write into the epoch's buffer; drains by itself when the buffer is full. `offset` and the length are
    /// multiples of 512. The bytes are copied.
    public func write(
        epoch: Epoch, offset: UInt64, bytes: UnsafeRawBufferPointer
    ) throws(DiskReplicaError) {
        try check(epoch, offset, UInt64(bytes.count))
        var done = 0
        while done < bytes.count {
            let part = UnsafeRawBufferPointer(rebasing: bytes[done..<min(done + Self.chunk, bytes.count)])
            try intoBuffer(epoch) { $0.write(at: offset + UInt64(done), part) }
            done += part.count
        }
        seals[epoch]?.bytesReceived += UInt64(bytes.count)
    }

    /// Takes a write of zeroes. Offset and length are multiples of 512.
    public func writeZeroes(epoch: Epoch, range: ByteRange) throws(DiskReplicaError) {
        try check(epoch, range.offset, range.length)
        try intoBuffer(epoch) { $0.writeZeroes(range) }
        seals[epoch]?.bytesReceived += range.length
    }

    /// Takes a discard: the range reads as zeroes afterwards.
    public func discard(epoch: Epoch, range: ByteRange) throws(DiskReplicaError) {
        try writeZeroes(epoch: epoch, range: range)
    }

    /// Drains what the oldest epoch that is not sealed has buffered so far, to make its seal short. Returns false when
    /// there was nothing to do.
    @discardableResult
    public func drain() throws(DiskReplicaError) -> Bool {
        guard let open = pipeline.drainable, let buffer = buffers[open.epoch], !buffer.isEmpty else { return false }
        try orThrow { () throws(PipelineError) in try pipeline.checkWrite(open.epoch) }
        do throws(DiskReplicaError) {
            try drain(buffer, open)
        } catch {
            pipeline.fail()
            throw error
        }
        return true
    }

    /// Drains all of the epoch; in disk durability it is on the platter when this returns. Epochs are sealed in order.
    public func seal(epoch: Epoch) throws(DiskReplicaError) -> DiskSeal {
        try orThrow { () throws(PipelineError) in try pipeline.checkSeal(epoch) }
        try drain()
        do throws(IOError) { try io.sync(secondary) } catch {
            pipeline.fail()
            throw .io(error)
        }
        try orThrow { () throws(PipelineError) in try pipeline.seal(epoch) }
        buffers[epoch] = nil
        return seals.removeValue(forKey: epoch) ?? DiskSeal(epoch: epoch)
    }

    /// The epoch is committed: hidden disks up to it are dropped. Takes the same time whatever their size; their space
    /// comes back with ``reclaim()``.
    public func committed(_ epoch: Epoch) throws(DiskReplicaError) {
        try orThrow { () throws(PipelineError) in try pipeline.commit(epoch) }
        garbage += overlays.filter { $0.epoch <= epoch }.map(\.path)
        overlays.removeAll { $0.epoch <= epoch }
    }

    /// Removes the files of dropped hidden disks, at most `count` of them. Call it when nothing waits: freeing a large
    /// file takes milliseconds. Returns how many are left; a crash before it costs nothing, recovery removes them too.
    @discardableResult
    public func reclaim(count: Int = .max) throws(DiskReplicaError) -> Int {
        for _ in 0..<min(count, garbage.count) {
            do throws(IOError) { try io.remove(garbage[0]) } catch { throw .io(error) }
            garbage.removeFirst()
        }
        return garbage.count
    }

    /// A guest is about to run on this disk: what is buffered is forgotten, and no more writes are taken.
    public func beginFailover() throws(DiskReplicaError) {
        try orThrow { () throws(PipelineError) in try pipeline.beginFailover() }
        forgetBuffers()
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
        forgetBuffers()
        garbage = []
        overlays = []
        pipeline.fail()
        let rollback = DiskRollback(io: io, secondary: secondary, directory: directory, geometry: geometry)
        let bytes = try rollback.run(to: committed)
        try orThrow { () throws(PipelineError) in try pipeline.recovered(to: committed) }
        return bytes
    }

    // MARK: Parts

    private func forgetBuffers() {
        for buffer in buffers.values { buffer.removeAll() }
        buffers = [:]
        seals = [:]
    }

    private func orThrow(_ body: () throws(PipelineError) -> Void) throws(DiskReplicaError) {
        do throws(PipelineError) { try body() } catch { throw .pipeline(error) }
    }

    private func check(_ epoch: Epoch, _ offset: UInt64, _ length: UInt64) throws(DiskReplicaError) {
        try orThrow { () throws(PipelineError) in try pipeline.checkWrite(epoch) }
        guard let range = ByteRange(checking: offset, length: length), range.fits(in: size) else {
            throw .outside(ByteRange(offset: min(offset, UInt64.max - length), length: length), size: size)
        }
        guard (offset | length) % UInt64(Sizes.sector) == 0 else { throw .misaligned(range) }
    }

    /// Offers something to the epoch's buffer until it fits, draining the oldest epoch in between.
    private func intoBuffer(_ epoch: Epoch, _ offer: (EpochBuffer) -> Bool) throws(DiskReplicaError) {
        guard let buffer = buffers[epoch] else { throw .pipeline(.unknownEpoch(epoch)) }
        while !offer(buffer) {
            guard try drain() else { throw .budgetExceeded(limitBytes: limits.bufferBytes) }
        }
    }

    private func drain(_ buffer: EpochBuffer, _ open: DiskPipeline.OpenEpoch) throws(DiskReplicaError) {
        var planner = DrainPlanner(buffer: buffer, preserve: open.preserve, capacity: limits.batchBlocks)
        while true {
            let overlay = overlays.last.flatMap { $0.epoch == open.epoch ? $0 : nil }
            let batch: DrainBatch?
            do throws(IOError) {
                batch = try planner.next(
                    isPreserved: { overlay?.isPreserved($0) ?? false },
                    nextData: { (offset) throws(IOError) in try secondary.nextData(at: offset) })
            } catch { throw .io(error) }
            guard let batch else { break }
            try perform(batch, buffer, open)
        }
        seals[open.epoch]?.blocksUnchanged += planner.unchanged
        buffer.removeAll()
    }

    /// Reads, preserves, and only then overwrites.
    private func perform(
        _ batch: DrainBatch, _ buffer: EpochBuffer, _ open: DiskPipeline.OpenEpoch
    ) throws(DiskReplicaError) {
        do throws(IOError) {
            for run in batch.reads { clearTail(run) }
            try io.read(operations(batch.reads, oldStaging, isWrite: false))
        } catch { throw .io(error) }
        let actions = DrainPlanner.resolve(batch, buffer: buffer, old: oldStaging.bytes, new: newStaging.bytes)
        if !actions.preImageBlocks.isEmpty || !actions.zeroPreImageBlocks.isEmpty {
            try overlay(for: open.epoch).preserve(
                blocks: actions.preImageBlocks, runs: actions.preImages, staging: oldStaging,
                zeroBlocks: actions.zeroPreImageBlocks)
        }
        do throws(IOError) {
            try io.write(operations(actions.writes, newStaging, isWrite: true))
            for blocks in actions.zeroRanges {
                let range = geometry.bytes(of: blocks)
                try io.zero(secondary, at: range.offset, length: range.length)
                seals[open.epoch]?.bytesZeroed += range.length
            }
        } catch { throw .io(error) }
        count(actions, open.epoch)
    }

    private func count(_ actions: DrainActions, _ epoch: Epoch) {
        for run in actions.writes { seals[epoch]?.bytesWritten += geometry.bytes(of: run.blocks).length }
        let preserved = actions.preImageBlocks.count + actions.zeroPreImageBlocks.count
        seals[epoch]?.blocksPreserved += UInt64(preserved)
        seals[epoch]?.blocksUnchanged += UInt64(actions.unchanged)
    }

    /// Transfers between the secondary disk and a staging area. The last block of an odd-sized disk goes by itself, so
    /// that the rest stays aligned.
    private func operations(_ runs: [BlockRun], _ staging: AlignedBuffer, isWrite: Bool) -> [AioOperation] {
        var operations: [AioOperation] = []
        operations.reserveCapacity(runs.count + 1)
        for run in runs {
            let range = geometry.bytes(of: run.blocks)
            let tail = Int(range.length) % BlockGeometry.blockSize
            let start = run.position * BlockGeometry.blockSize
            for (from, length) in [(0, Int(range.length) - tail), (Int(range.length) - tail, tail)] where length > 0 {
                let bytes = staging.slice(start + from, length)
                operations.append(
                    isWrite
                        ? .write(secondary, at: range.offset + UInt64(from), from: UnsafeRawBufferPointer(bytes))
                        : .read(secondary, at: range.offset + UInt64(from), into: bytes))
            }
        }
        return operations
    }

    /// What the disk does not have of its last block reads as zeroes.
    private func clearTail(_ run: BlockRun) {
        let tail = geometry.length(of: run.blocks.upperBound - 1)
        guard tail < BlockGeometry.blockSize else { return }
        let start = (run.position + run.count - 1) * BlockGeometry.blockSize
        oldStaging.slice(start + tail, BlockGeometry.blockSize - tail)
            .initializeMemory(as: UInt8.self, repeating: 0)
    }

    /// The epoch's hidden disk, made when the epoch first preserves something. Order: the new one is complete, then the
    /// older one names it, then something is put into it.
    private func overlay(for epoch: Epoch) throws(DiskReplicaError) -> DiskOverlay {
        if let last = overlays.last, last.epoch == epoch { return last }
        precondition(overlays.last.map { $0.epoch < epoch } ?? true, "hidden disks are made in order")
        let made = try DiskOverlay.create(epoch, in: directory, size: size, io: io)
        try overlays.last?.setBackingFile(made.name)
        overlays.append(made)
        return made
    }
}
