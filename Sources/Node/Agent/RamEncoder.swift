import BlockReplica
import Dispatch
import Glibc
import Link
import NIOCore
import RamCache
import Synchronization
import Units

/// Turns pages into batches on a small fixed pool of threads, so that the guest's pause does not wait for it.
///
/// Every page belongs to one lane by its address, so two versions of a page are never encoded at the same time or in
/// another order than they came. Lanes touch different pages of the shadow, and their batches may be mixed in any
/// order.
/// The methods only enqueue.
final class RamEncoder: Sendable {
    /// What the encoder hands back, on a queue of its own.
    struct Output: Sendable {
        /// A whole frame of kind ramBatch.
        let frame: ByteBuffer
        let header: FrameHeader
    }

    /// One thread's encoder.
    ///
    /// `@unchecked Sendable`: everything but `queue` and `snapshot` is touched on `queue` only, which is serial.
    private final class Lane: @unchecked Sendable {
        let queue: DispatchQueue
        let encoder: PageBatchEncoder
        var shadows: [ShadowMemory] = []
        /// Without shadows: what the secondary has of each page, for comparisons.
        var digests: SentDigests?
        /// What the secondary held when the session began, when it goes on with that.
        var known: KnownPages?
        /// Statistics at the end of the last epoch, for whoever sums them up.
        let snapshot = Mutex(PageBatchEncoder.Statistics())

        init(_ index: Int, useDelta: Bool) {
            queue = DispatchQueue(label: "colo-blk.encode.\(index)", qos: .userInitiated)
            encoder = PageBatchEncoder(useDelta: useDelta)
        }
    }

    /// Threads that encode.
    static let laneCount = 2
    /// Neighbouring pages that go to the same lane: a batch full.
    private static let runShift: UInt32 = 6

    private let generation: Generation
    private let useDelta: Bool
    private let lanes: [Lane]

    init(generation: Generation, useDelta: Bool) {
        self.generation = generation
        self.useDelta = useDelta
        lanes = (0..<Self.laneCount).map { Lane($0, useDelta: useDelta) }
    }

    /// The lane that encodes a page.
    @inline(__always)
    static func lane(ofPage page: UInt32) -> Int { Int(page >> runShift) % laneCount }

    /// Sets the RAM layout. The shadows hold what the secondary has: zeroes, in a new session.
    func setLayout(_ layout: RamLayout) {
        let shadows = useDelta ? layout.blocks.map { ShadowMemory(byteCount: Int($0.length)) } : []
        let digests = useDelta ? nil : SentDigests(layout)
        for lane in lanes {
            lane.queue.async {
                lane.shadows = shadows
                lane.digests = digests
            }
        }
    }

    /// The secondary's cache is not empty; to be said before the first page.
    func setKnown(_ known: KnownPages) {
        for lane in lanes { lane.queue.async { lane.known = known } }
    }

    /// Encodes a chunk of `epoch`, all of whose pages belong to `lane`. `emit` gets every batch that became full,
    /// `done` gets the chunk back; both run on the lane's queue.
    func encode(
        _ chunk: PageChunk, lane index: Int, epoch: Epoch, emit: @escaping @Sendable (Output) -> Void,
        done: @escaping @Sendable (PageChunk) -> Void
    ) {
        let lane = lanes[index]
        lane.queue.async { [self] in
            for (index, entry) in chunk.entries.enumerated() {
                let shadow = useDelta ? lane.shadows[Int(entry.block)].page(entry.page) : nil
                let data = entry.isZero ? nil : chunk.data(at: index)
                lane.digests?.note(entry, data)
                if let known = lane.known, encodeFirst(entry, data, shadow, known, lane.encoder) {
                    // The page had not come before.
                } else if let data {
                    lane.encoder.add(block: entry.block, page: UInt64(entry.page), data: data, shadow: shadow)
                } else {
                    lane.encoder.addZero(block: entry.block, page: UInt64(entry.page), shadow: shadow)
                }
                if lane.encoder.isFull { finishBatch(lane, epoch, emit) }
            }
            if lane.known?.isSpent == true { lane.known = nil }
            done(chunk)
        }
    }

    /// Encodes a page that comes for the first time, whose shadow is not what the secondary has. False: it has come before.
    private func encodeFirst(
        _ entry: PageChunk.Entry, _ data: UnsafeRawPointer?, _ shadow: UnsafeMutableRawPointer?, _ known: KnownPages,
        _ encoder: PageBatchEncoder
    ) -> Bool {
        let verdict = known.judge(block: entry.block, page: entry.page, data)
        guard verdict != .judgedBefore else { return false }
        if let shadow, let data { memcpy(shadow, data, Sizes.page) }
        if verdict == .same {
            encoder.skipKnown()
        } else if let data, !BlockBytes.isZero(data, count: Sizes.page) {
            encoder.addWhole(block: entry.block, page: UInt64(entry.page), data: data)
        } else {
            encoder.addZero(block: entry.block, page: UInt64(entry.page), shadow: nil)
        }
        return true
    }

    /// Encodes pages whole, whatever the receiver is believed to hold: as the shadow has them, or with `contents`, 4096
    /// bytes for each page, which then are what the shadow has. Without a shadow and without contents nothing is sent.
    func resend(
        _ pages: [(block: UInt16, page: UInt32)], contents: [UInt8]?, epoch: Epoch,
        emit: @escaping @Sendable (Output) -> Void
    ) {
        guard useDelta || contents != nil else { return }
        for (index, lane) in lanes.enumerated() {
            lane.queue.async { [self] in
                for (position, place) in pages.enumerated() where Self.lane(ofPage: place.page) == index {
                    if lane.encoder.isFull { finishBatch(lane, epoch, emit) }
                    let shadow = useDelta ? lane.shadows[Int(place.block)].page(place.page) : nil
                    if let contents {
                        contents.withUnsafeBytes { bytes in
                            guard let base = bytes.baseAddress else { return }
                            let page = base + position * Sizes.page
                            if let shadow { memcpy(shadow, page, Sizes.page) }
                            lane.digests?.note(.init(block: place.block, page: place.page, isZero: false), page)
                            lane.encoder.addWhole(block: place.block, page: UInt64(place.page), data: page)
                        }
                    } else if let shadow {
                        lane.encoder.addWhole(block: place.block, page: UInt64(place.page), data: shadow)
                    }
                    if lane.encoder.isFull { finishBatch(lane, epoch, emit) }
                }
            }
        }
    }

    /// Ends the open batches of `epoch`, then calls `done` with the statistics since the start, all lanes together.
    /// Nothing of the next epoch may be given before `done` was called.
    func endEpoch(
        _ epoch: Epoch, emit: @escaping @Sendable (Output) -> Void,
        done: @escaping @Sendable (PageBatchEncoder.Statistics) -> Void
    ) {
        let left = DispatchGroup()
        for lane in lanes {
            left.enter()
            lane.queue.async { [self] in
                finishBatch(lane, epoch, emit)
                lane.snapshot.withLock { $0 = lane.encoder.statistics }
                left.leave()
            }
        }
        left.notify(queue: lanes[0].queue) { [self] in
            var total = PageBatchEncoder.Statistics()
            for lane in lanes { total.add(lane.snapshot.withLock { $0 }) }
            done(total)
        }
    }

    /// Digests of a run of pages as the last ended epoch left them: of the shadow, or as they were sent. To be asked for
    /// between ``endEpoch(_:emit:done:)`` and the first page of the next epoch; `done` runs on a lane's queue.
    func digests(first: Int, count: Int, layout: RamLayout, done: @escaping @Sendable ([UInt32]) -> Void) {
        let lane = lanes[0]
        lane.queue.async {
            if let digests = lane.digests { return done(digests.values(first: first, count: count)) }
            done(
                (first..<first + count).map { page in
                    let place = layout.location(ofGlobalPage: page)
                    return PageDigest.of(UnsafeRawPointer(lane.shadows[place.block].page(UInt32(place.page))))
                })
        }
    }

    private func finishBatch(_ lane: Lane, _ epoch: Epoch, _ emit: @Sendable (Output) -> Void) {
        guard let batch = lane.encoder.finish() else { return }
        var frame = ByteBufferAllocator().buffer(capacity: FrameHeader.length + batch.count)
        let header = frame.writeFrame(
            .ramBatch, generation: generation, epoch: epoch,
            prefix: UnsafeRawBufferPointer(start: nil, count: 0), data: batch)
        emit(Output(frame: frame, header: header))
    }
}

/// The digest of every page as it was sent last, 4 bytes for each 4 KiB of RAM: with `--no-delta` all that the agent keeps.
///
/// `@unchecked Sendable`: each page is touched by one lane of the encoder, see ``RamEncoder``; between two epochs by one.
private final class SentDigests: @unchecked Sendable {
    private let layout: RamLayout
    /// Kept so that 0 stands for a page of zeroes: those take no memory.
    private let memory: AnonymousMemory

    init(_ layout: RamLayout) {
        self.layout = layout
        memory = AnonymousMemory(byteCount: layout.pageCount * 4)
    }

    func note(_ entry: PageChunk.Entry, _ contents: UnsafeRawPointer?) {
        let page = layout.globalPage(block: Int(entry.block), page: UInt64(entry.page))
        let digest = contents.map { PageDigest.of($0) } ?? PageDigest.zero
        memory.base.storeBytes(of: digest ^ PageDigest.zero, toByteOffset: page * 4, as: UInt32.self)
    }

    func values(first: Int, count: Int) -> [UInt32] {
        (first..<first + count).map {
            memory.base.load(fromByteOffset: $0 * 4, as: UInt32.self) ^ PageDigest.zero
        }
    }
}

/// Anonymous memory as large as a RAM block: zero pages cost nothing until the guest has written them.
///
/// `@unchecked Sendable`: each page is touched by one lane of the encoder, see ``RamEncoder``.
private final class ShadowMemory: @unchecked Sendable {
    private let memory: AnonymousMemory

    init(byteCount: Int) {
        memory = AnonymousMemory(byteCount: byteCount)
    }

    func page(_ page: UInt32) -> UnsafeMutableRawPointer { memory.base + Int(page) * Sizes.page }
}
