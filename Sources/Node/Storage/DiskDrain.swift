import AsyncIO
import BlockReplica
import Qcow2
import Units

/// The files of one disk, and the drain of frozen buffers into them. Confined to the disk's file queue.
///
/// One step takes a batch of blocks through
///
/// ```
/// read old ─► compare ─► hidden-N.qcow2 (data, counts, sync, tables, sync) ─► secondary.raw
/// ```
/// and what is read for the next batch, and written to the secondary disk for the last one, is under way meanwhile.
/// Two rules keep that right: a batch's writes to the secondary disk start when its pre-images are in the hidden disk and
/// the writes of the batch before have ended; and reads go ahead of those writes only where no block can be in both, or
/// where nothing but pre-images of other blocks is read.
final class DiskDrain {
    /// A frozen buffer on its way into the files.
    ///
    /// Unchecked: nobody writes to a frozen buffer but the drain, which puts old sectors where nothing was written, and
    /// whoever reads the buffer meanwhile reads what was written only.
    struct Job: @unchecked Sendable {
        let buffer: EpochBuffer
        let epoch: Epoch
        let preserve: Bool
    }

    /// A batch with its staging area and its reads.
    private final class Stage {
        let batch: DrainBatch
        let staging: AlignedBuffer
        let reads: AioBatch
        var job: Job?
        /// Whether nothing of the job is left behind this batch.
        var isLast = false

        init(blocks: Int, unit: Int) {
            batch = DrainBatch(capacity: blocks)
            staging = AlignedBuffer(minimumCount: blocks * unit)
            reads = AioBatch(depth: DiskDrain.depth)
        }
    }

    /// Transfers in flight at most, of each kind.
    private static let depth = 128

    let directory: String
    let io: DiskIO
    let secondary: DirectFile
    let geometry: BlockGeometry
    private let clusterBits: Int
    private let batchBlocks: Int
    /// Hidden disks that are not garbage, rising by epoch.
    var overlays: [DiskOverlay] = []
    /// Hidden disks that a commit made useless.
    var garbage: [DiskOverlay] = []
    /// Checkpoints that are read while later ones are committed. Outlives this object: the next one of the disk gets it.
    lazy var views = DiskViews(directory: directory, size: geometry.diskSize)
    /// What the epoch that is being drained did so far.
    private var counts = DiskSeal(epoch: .none)
    /// Told with each buffer that has reached the files, or was dropped.
    private let drained: () -> Void

    private var jobs: [Job] = []
    /// Buffers that were added and have not been reported.
    private var outstanding = 0
    private var planner: DrainPlanner?
    /// The batch whose reads are under way.
    private var next: Stage?
    private var spare: [Stage] = []
    private var hiddenWrites: AioBatch?
    private var secondaryWrites: AioBatch?
    /// Writes to the secondary disk are under way; true in it when they are the last of their buffer.
    private var writing: Bool?
    /// The error that stopped the drain. Nothing more reaches the files until a recovery.
    private(set) var failure: DiskReplicaError?

    init(
        directory: String, io: DiskIO, secondary: DirectFile, geometry: BlockGeometry, clusterBits: Int,
        batchBlocks: Int, drained: @escaping () -> Void
    ) {
        self.directory = directory
        self.io = io
        self.secondary = secondary
        self.geometry = geometry
        self.clusterBits = clusterBits
        self.batchBlocks = batchBlocks
        self.drained = drained
    }

    // MARK: Draining

    /// Whether something is left to do.
    var isBusy: Bool { failure == nil && (!jobs.isEmpty || next != nil || writing != nil) }

    func add(_ job: Job) {
        outstanding += 1
        jobs.append(job)
        if failure != nil { abandon() }
    }

    /// Takes one batch further. An error is kept in ``failure``, and what waits is dropped.
    func step() {
        guard failure == nil else { return }
        do throws(DiskReplicaError) {
            if next == nil {
                try settle()
                next = try plan()
            }
            guard let stage = next else { return }
            next = nil
            try perform(stage)
            if next == nil && jobs.isEmpty { try settle() }
        } catch { fail(error) }
    }

    /// Drains everything that was added.
    func finish() throws(DiskReplicaError) {
        while isBusy { step() }
        if let failure { throw failure }
    }

    /// Forgets what waits; transfers that are under way end first. A failure stays.
    ///
    /// How those end does not matter: a pre-image that was not kept is of a block that nothing was written over, and a
    /// block whose write failed has its pre-image in the hidden disk, which a recovery puts back and a view reads.
    func abandon() {
        if let stage = next {
            try? stage.reads.finish()
            release(stage)
        }
        next = nil
        try? hiddenWrites?.finish()
        try? secondaryWrites?.finish()
        writing = nil
        jobs = []
        planner = nil
        counts = DiskSeal(epoch: .none)
        for _ in 0..<outstanding { drained() }
        outstanding = 0
    }

    /// The files are in order again.
    func recovered() { failure = nil }

    /// Drains everything that was added and syncs; returns what the epoch did.
    func seal(_ epoch: Epoch) throws(DiskReplicaError) -> DiskSeal {
        try finish()
        // Space that the hidden disk has taken ahead stays: giving back what a commit drops anyway takes milliseconds.
        do throws(IOError) { try io.sync(secondary) } catch {
            fail(.io(error))
            throw .io(error)
        }
        defer { counts = DiskSeal(epoch: .none) }
        return counts
    }

    /// Hidden disks up to this epoch are of no more use.
    func drop(upTo epoch: Epoch) {
        guard let first = overlays.first, first.epoch <= epoch else { return }
        garbage += views.drop(overlays.filter { $0.epoch <= epoch })
        overlays.removeAll { $0.epoch <= epoch }
    }

    private func fail(_ error: DiskReplicaError) {
        failure = error
        abandon()
    }

    // MARK: Steps

    /// Plans the next batch and sets its reads going; nil when nothing waits.
    private func plan() throws(DiskReplicaError) -> Stage? {
        while let job = jobs.first {
            var planner =
                self.planner ?? DrainPlanner(buffer: job.buffer, preserve: job.preserve, capacity: batchBlocks)
            let stage = stage()
            let overlay = overlays.last.flatMap { $0.epoch == job.epoch ? $0 : nil }
            do throws(IOError) {
                try planner.next(
                    into: stage.batch, isPreserved: { overlay?.isPreserved($0) ?? false },
                    data: { (offset) throws(IOError) in try data(at: offset) })
            } catch { throw .io(error) }
            stage.job = job
            stage.isLast = planner.isDone
            self.planner = planner
            if planner.isDone {
                jobs.removeFirst()
                self.planner = nil
            }
            startReads(stage)
            return stage
        }
        return nil
    }

    private func stage() -> Stage {
        if let stage = spare.popLast() { return stage }
        return Stage(blocks: batchBlocks, unit: geometry.unit)
    }

    private func release(_ stage: Stage) {
        stage.job = nil
        spare.append(stage)
    }

    private func data(at offset: UInt64) throws(IOError) -> Range<UInt64>? {
        guard let start = try secondary.nextData(at: offset) else { return nil }
        return start..<max(try secondary.nextHole(at: start), start + 1)
    }

    private func startReads(_ stage: Stage) {
        stage.reads.begin(secondary, .read)
        for run in stage.batch.reads {
            clearTail(run, stage.staging)
            add(run, stage.staging.bytes.baseAddress, to: stage.reads)
        }
        stage.reads.start()
    }

    private func perform(_ stage: Stage) throws(DiskReplicaError) {
        guard let job = stage.job else { preconditionFailure("a stage without its job") }
        do throws(IOError) { try stage.reads.finish() } catch { throw .io(error) }
        stage.batch.resolve(job.buffer, old: stage.staging.bytes)
        let batch = stage.batch
        if !batch.preImageBlocks.isEmpty || !batch.zeroPreImageBlocks.isEmpty {
            let overlay = try overlay(for: job.epoch)
            let transfers = transfers(&hiddenWrites)
            try overlay.beginPreserving(batch, staging: stage.staging, transfers)
            try readAhead(stage)
            try overlay.endPreserving(transfers)
        } else {
            try readAhead(stage)
        }
        try settle()
        try write(batch, job)
        writing = stage.isLast
        release(stage)
    }

    /// Starts the reads of the next batch, where it cannot meet blocks that are still to be written. Within a buffer each
    /// block comes once. In another buffer a block may come again; its pre-image is kept by then, so that it is not read
    /// unless a part of it is new, or unless the look for holes would have to see it written.
    private func readAhead(_ stage: Stage) throws(DiskReplicaError) {
        guard next == nil, let job = jobs.first else { return }
        guard !stage.isLast || (job.buffer.isSimple && job.epoch == stage.job?.epoch) else { return }
        next = try plan()
    }

    private func write(_ batch: DrainBatch, _ job: Job) throws(DiskReplicaError) {
        if counts.epoch != job.epoch { counts = DiskSeal(epoch: job.epoch) }
        let transfers = transfers(&secondaryWrites)
        transfers.begin(secondary, .write)
        for run in batch.writes {
            add(run, job.buffer.address(0), to: transfers)
            counts.bytesWritten += geometry.bytes(of: run.blocks).length
        }
        transfers.start()
        do throws(IOError) {
            for blocks in batch.zeroRanges {
                let range = geometry.bytes(of: blocks)
                try io.zero(secondary, at: range.offset, length: range.length)
                counts.bytesZeroed += range.length
            }
        } catch {
            try? transfers.finish()
            throw .io(error)
        }
        counts.blocksPreserved += UInt64(batch.preImageBlocks.count + batch.zeroPreImageBlocks.count)
        counts.blocksUnchanged += batch.unchanged
    }

    /// Waits for the writes to the secondary disk.
    private func settle() throws(DiskReplicaError) {
        guard let isLast = writing else { return }
        do throws(IOError) { try secondaryWrites?.finish() } catch {
            throw .io(error)
        }
        writing = nil
        guard isLast else { return }
        outstanding -= 1
        drained()
    }

    private func transfers(_ place: inout AioBatch?) -> AioBatch {
        if let made = place { return made }
        let made = AioBatch(depth: Self.depth)
        place = made
        return made
    }

    // MARK: Parts

    /// A transfer between the secondary disk and memory. The last block of an odd-sized disk goes by itself, so that
    /// the rest stays aligned.
    private func add(_ run: BlockRun, _ base: UnsafeMutableRawPointer?, to transfers: AioBatch) {
        guard let base else { return }
        let range = geometry.bytes(of: run.blocks)
        let tail = Int(range.length) % BlockGeometry.blockSize
        let start = UnsafeRawPointer(base) + run.position * geometry.unit
        let body = Int(range.length) - tail
        if body > 0 { transfers.add(at: range.offset, UnsafeRawBufferPointer(start: start, count: body)) }
        if tail > 0 {
            transfers.add(at: range.offset + UInt64(body), UnsafeRawBufferPointer(start: start + body, count: tail))
        }
    }

    /// What the disk does not have of its last block reads as zeroes.
    private func clearTail(_ run: BlockRun, _ staging: AlignedBuffer) {
        let tail = geometry.length(of: run.blocks.upperBound - 1)
        guard tail < geometry.unit else { return }
        let start = (run.position + run.count - 1) * geometry.unit
        staging.slice(start + tail, geometry.unit - tail).initializeMemory(as: UInt8.self, repeating: 0)
    }

    /// The epoch's hidden disk, made when the epoch first preserves something. Order: the new one is complete, then the
    /// older one names it, then something is put into it.
    private func overlay(for epoch: Epoch) throws(DiskReplicaError) -> DiskOverlay {
        if let last = overlays.last, last.epoch == epoch { return last }
        precondition(overlays.last.map { $0.epoch < epoch } ?? true, "hidden disks are made in order")
        let made = try DiskOverlay.create(
            epoch, in: directory, size: geometry.diskSize, clusterBits: clusterBits, io: io)
        try overlays.last?.setBackingFile(made.name)
        overlays.append(made)
        return made
    }
}
