import BlockReplica
import Qcow2
import Units

/// Stands for Node's DiskReplica and DiskRollback: performs what the pipeline and the planner decide, in their order.
final class DiskModel {
    let id: String
    let folder: String
    let size: UInt64
    private let storage: Storage
    private let durable: Bool
    private let geometry: BlockGeometry
    private(set) var pipeline = DiskPipeline()
    private var overlays: [OverlayFile] = []
    private(set) var garbage: [String] = []
    private let pool: EpochBufferPool
    /// Buffers of epochs that are not sealed, the newest last.
    private var buffers: [Epoch: [EpochBuffer]] = [:]
    /// Buffers that were handed to the drain, the one under way first. It goes on by itself, see ``drainStep()``.
    private var handed: [(open: DiskPipeline.OpenEpoch, buffer: EpochBuffer, planner: DrainPlanner)] = []
    private let batch: DrainBatch
    /// Small, so that an epoch takes several batches.
    private let batchBlocks = 6
    private let old: Memory

    private var secondary: String { "\(folder)/secondary.raw" }
    /// For the judge: buffers in use and their limit.
    var pressure: (used: Int, limit: Int) { (buffers.values.reduce(0) { $0 + $1.count }, pool.capacity) }
    var hiddenCount: Int { overlays.count }

    static func create(_ id: String, size: UInt64, storage: Storage, durable: Bool) throws {
        let path = "disks/\(id)/secondary.raw"
        guard !storage.exists(path) else { throw StoreModel.Failed("\(path) is there already") }
        try storage.createWhole(path, length: Int(size), writes: [], durable: durable)
    }

    init(_ id: String, storage: Storage, durable: Bool) throws {
        self.id = id
        folder = "disks/\(id)"
        self.storage = storage
        self.durable = durable
        size = UInt64(try storage.size("\(folder)/secondary.raw"))
        guard size > 0, size % 512 == 0 else { throw StoreModel.Failed("\(folder)/secondary.raw has \(size) bytes") }
        let bits = OverlayWriter.clusterBits(forDiskOf: size)
        geometry = BlockGeometry(diskSize: size, unit: max(1 << bits, BlockGeometry.blockSize))
        // Small, so that buffers fill up.
        pool = EpochBufferPool(geometry: geometry, byteLimit: 256 << 10)
        old = Memory(count: batchBlocks * geometry.unit)
        batch = DrainBatch(capacity: batchBlocks)
        for epoch in hiddenEpochs() {
            overlays.append(try OverlayFile.open(epoch, in: folder, size: size, storage: storage))
        }
        if overlays.isEmpty { try pipeline.recovered(to: .none) }
    }

    private func hiddenEpochs() -> [Epoch] {
        storage.files(in: folder).compactMap { name -> Epoch? in
            guard name.hasPrefix("hidden-"), name.hasSuffix(".qcow2") else { return nil }
            return UInt64(name.dropFirst(7).dropLast(6)).map { Epoch($0) }
        }.sorted()
    }

    // MARK: Epochs

    func beginEpoch(_ epoch: Epoch, preserve: Bool) throws {
        try pipeline.begin(epoch, preserve: preserve)
        buffers[epoch] = []
    }

    func write(epoch: Epoch, offset: UInt64, bytes: UnsafeRawBufferPointer) throws {
        try pipeline.checkWrite(epoch)
        var done = 0
        while done < bytes.count {
            let rest = UnsafeRawBufferPointer(rebasing: bytes[done...])
            let taken = try current(epoch).write(at: offset + UInt64(done), rest)
            done += taken
            if taken < rest.count { try retire(epoch) }
        }
    }

    func writeZeroes(epoch: Epoch, range: ByteRange) throws {
        try pipeline.checkWrite(epoch)
        while try !current(epoch).writeZeroes(range) { try retire(epoch) }
    }

    /// The buffer that takes the epoch's next write; one is left for the epoch that can be drained.
    private func current(_ epoch: Epoch) throws -> EpochBuffer {
        if let last = buffers[epoch]?.last, !last.isFrozen { return last }
        let reserve = pipeline.drainable?.epoch == epoch ? 0 : 1
        while true {
            if pool.available > reserve, let buffer = pool.take() {
                buffers[epoch]?.append(buffer)
                return buffer
            }
            guard try drain() else { throw StoreModel.Failed("\(folder): the memory for writes is used up") }
        }
    }

    /// The epoch's buffer is full.
    private func retire(_ epoch: Epoch) throws {
        buffers[epoch]?.last?.freeze()
        if pipeline.drainable?.epoch == epoch { try drain() }
    }

    /// Drains what the oldest epoch that is not sealed has buffered; false when there was nothing.
    @discardableResult
    func drain() throws -> Bool {
        guard let open = pipeline.drainable else { return false }
        try pipeline.checkWrite(open.epoch)
        handOver(open)
        guard !handed.isEmpty else { return false }
        while try drainStep() {}
        return true
    }

    /// Has it drained, and does not wait for it. Returns whether there is something to do.
    func drainLater() -> Bool {
        if let open = pipeline.drainable, !pipeline.hasFailed { handOver(open) }
        return !handed.isEmpty
    }

    private func handOver(_ open: DiskPipeline.OpenEpoch) {
        for buffer in (buffers[open.epoch] ?? []).dropFirst(handed.count) {
            if !buffer.isFrozen { buffer.freeze() }
            let planner = DrainPlanner(buffer: buffer, preserve: open.preserve, capacity: batchBlocks)
            handed.append((open, buffer, planner))
        }
    }

    /// Drains one batch of what was handed over; false when nothing is left. After a failure nothing is drained, and every
    /// call fails, until the disk is recovered.
    @discardableResult
    func drainStep() throws -> Bool {
        guard let first = handed.first else { return false }
        let (open, buffer) = (first.open, first.buffer)
        do {
            if !handed[0].planner.isDone {
                let overlay = overlays.last.flatMap { $0.epoch == open.epoch ? $0 : nil }
                try handed[0].planner.next(
                    into: batch,
                    isPreserved: { block in
                        storage.mutation == .preservedTooEarly && overlay != nil || overlay?.isPreserved(block) ?? false
                    },
                    data: { try nextData($0) })
                try perform(batch, buffer, open)
            }
        } catch {
            pipeline.fail()
            handed = []
            throw error
        }
        guard handed[0].planner.isDone else { return true }
        handed.removeFirst()
        pool.giveBack(buffer)
        buffers[open.epoch]?.removeFirst()
        return !handed.isEmpty
    }

    /// A guest is about to run on this disk: what is buffered is forgotten, and what is being drained stops.
    func beginFailover() throws {
        guard pipeline.stage == .running else { return }
        try pipeline.beginFailover()
        forgetBuffers()
    }

    private func forgetBuffers() {
        handed = []
        for buffer in buffers.values.joined() { pool.giveBack(buffer) }
        buffers = [:]
    }

    private func nextData(_ offset: UInt64) throws -> Range<UInt64>? {
        guard let bytes = storage.image.contents(secondary) else { return nil }
        guard let found = bytes[Int(offset)...].firstIndex(where: { $0 != 0 }) else { return nil }
        let start = max(UInt64(found) / 4096 * 4096, offset)
        return start..<start + 4096
    }

    private func perform(_ batch: DrainBatch, _ buffer: EpochBuffer, _ open: DiskPipeline.OpenEpoch) throws {
        for run in batch.reads {
            let range = geometry.bytes(of: run.blocks)
            let start = old.base + run.position * geometry.unit
            start.initializeMemory(as: UInt8.self, repeating: 0, count: run.count * geometry.unit)
            try storage.read(
                secondary, at: Int(range.offset),
                into: UnsafeMutableRawBufferPointer(start: start, count: Int(range.length)))
        }
        batch.resolve(buffer, old: UnsafeMutableRawBufferPointer(start: old.base, count: old.count))
        let isLate = storage.mutation == .preImageAfterOverwrite
        if !isLate { try preserve(batch, open) }
        for run in batch.writes {
            let range = geometry.bytes(of: run.blocks)
            let bytes = UnsafeRawBufferPointer(start: buffer.address(run.position), count: Int(range.length))
            try storage.write(secondary, at: Int(range.offset), Array(bytes))
        }
        for blocks in batch.zeroRanges {
            let range = geometry.bytes(of: blocks)
            try storage.zero(secondary, at: Int(range.offset), count: Int(range.length))
        }
        if isLate { try preserve(batch, open) }
    }

    private func preserve(_ batch: DrainBatch, _ open: DiskPipeline.OpenEpoch) throws {
        guard !batch.preImageBlocks.isEmpty || !batch.zeroPreImageBlocks.isEmpty else { return }
        if storage.mutation == .skipPreImage { return }
        try overlay(for: open.epoch).preserve(batch, old: UnsafeRawPointer(old.base))
    }

    /// The new one is complete, then the older one names it, then something is put into it.
    private func overlay(for epoch: Epoch) throws -> OverlayFile {
        if let last = overlays.last, last.epoch == epoch { return last }
        let made = try OverlayFile.create(epoch, in: folder, size: size, storage: storage, durable: durable)
        try overlays.last?.setBackingFile(OverlayFile.name(epoch))
        overlays.append(made)
        return made
    }

    func isUnsealed(_ epoch: Epoch) -> Bool { pipeline.epochs.contains { $0.epoch == epoch && !$0.isSealed } }

    func seal(epoch: Epoch) throws {
        try pipeline.checkSeal(epoch)
        try drain()
        do {
            if durable, ![.skipSecondarySync, .recordBeforeDataSync].contains(storage.mutation) {
                try storage.sync(secondary)
            }
        } catch {
            pipeline.fail()
            throw error
        }
        try pipeline.seal(epoch)
        buffers[epoch] = nil
    }

    /// For a planted bug only: the sync that should have been earlier.
    func lateSync() throws { if durable { try storage.sync(secondary) } }

    /// For a planted bug only: removes hidden disks whose epoch may not be committed.
    func dropHidden(upTo epoch: Epoch) throws {
        for overlay in overlays where overlay.epoch <= epoch { try storage.remove(overlay.path) }
        overlays.removeAll { $0.epoch <= epoch }
    }

    func committed(_ epoch: Epoch) throws {
        try pipeline.commit(epoch)
        garbage += overlays.filter { $0.epoch <= epoch }.map(\.path)
        overlays.removeAll { $0.epoch <= epoch }
    }

    func reclaim(count: Int) throws {
        for _ in 0..<min(count, garbage.count) {
            try storage.remove(garbage[0])
            garbage.removeFirst()
        }
    }

    /// The file that a guest's own overlay goes on top of, to show the checkpoint.
    func backing(after epoch: Epoch) -> String {
        overlays.first { $0.epoch > epoch }.map { OverlayFile.name($0.epoch) } ?? "secondary.raw"
    }

    // MARK: Recovery

    func recover(committed: Epoch) throws {
        forgetBuffers()
        garbage = []
        overlays = []
        pipeline.fail()
        for name in storage.files(in: folder) where name.hasSuffix(".new") { try storage.remove("\(folder)/\(name)") }
        let epochs = hiddenEpochs()
        let newer = epochs.filter { $0 > committed }
        if storage.mutation != .skipRollback {
            let order = storage.mutation == .rollBackOldestFirst ? newer : newer.reversed()
            for epoch in order { try rollBack(epoch) }
        }
        for epoch in epochs where epoch <= committed { try storage.remove("\(folder)/\(OverlayFile.name(epoch))") }
        try pipeline.recovered(to: committed)
    }

    private func rollBack(_ epoch: Epoch) throws {
        let overlay = try OverlayFile.open(epoch, in: folder, size: size, storage: storage)
        let isHasty = storage.mutation == .removeHiddenBeforeSync
        try overlay.forEachRun { run in
            let start = Int(run.guestCluster) * overlay.clusterSize
            let count = min(Int(run.count) * overlay.clusterSize, Int(size) - start)
            guard let place = run.fileOffset else { return try storage.zero(secondary, at: start, count: count) }
            try storage.write(secondary, at: start, try storage.read(overlay.path, at: Int(place), count: count))
        }
        if durable, !isHasty { try storage.sync(secondary) }
        try storage.remove(overlay.path)
        if durable { try storage.syncDirectory(folder) }
        if isHasty { try storage.sync(secondary) }
    }
}
