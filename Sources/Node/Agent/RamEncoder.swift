import Dispatch
import Link
import NIOCore
import RamCache
import Units

/// Turns pages into batches on a thread of its own, so that the guest's pause does not wait for it.
///
/// `@unchecked Sendable`: everything below `queue` is touched on that serial queue only; the public methods only
/// enqueue. Work comes out in the order in which it went in.
final class RamEncoder: @unchecked Sendable {
    /// What the encoder hands back, on its own queue.
    struct Output: Sendable {
        /// A whole frame of kind ramBatch.
        let frame: ByteBuffer
        let header: FrameHeader
    }

    private let queue = DispatchQueue(label: "colo-blk.encode", qos: .userInitiated)
    private let generation: Generation
    private let useDelta: Bool

    private var encoder: PageBatchEncoder
    private var shadows: [ShadowMemory] = []

    init(generation: Generation, useDelta: Bool) {
        self.generation = generation
        self.useDelta = useDelta
        self.encoder = PageBatchEncoder(useDelta: useDelta)
    }

    /// Sets the RAM layout. The shadows hold what the secondary has: zeroes, in a new session.
    func setLayout(_ layout: RamLayout) {
        queue.async { [self] in
            shadows = useDelta ? layout.blocks.map { ShadowMemory(byteCount: Int($0.length)) } : []
        }
    }

    /// Encodes a chunk of `epoch`. `emit` gets every batch that became full, `done` gets the chunk back; both run on
    /// the encoder's queue.
    func encode(
        _ chunk: PageChunk, epoch: Epoch, emit: @escaping @Sendable (Output) -> Void,
        done: @escaping @Sendable (PageChunk) -> Void
    ) {
        queue.async { [self] in
            for (index, entry) in chunk.entries.enumerated() {
                let shadow = useDelta ? shadows[Int(entry.block)].page(entry.page) : nil
                if entry.isZero {
                    encoder.addZero(block: entry.block, page: UInt64(entry.page), shadow: shadow)
                } else {
                    encoder.add(
                        block: entry.block, page: UInt64(entry.page), data: chunk.data(at: index), shadow: shadow)
                }
                if encoder.isFull { finishBatch(epoch, emit) }
            }
            done(chunk)
        }
    }

    /// Ends the open batch of `epoch`, then calls `done` with the statistics since the start.
    func endEpoch(
        _ epoch: Epoch, emit: @escaping @Sendable (Output) -> Void,
        done: @escaping @Sendable (PageBatchEncoder.Statistics) -> Void
    ) {
        queue.async { [self] in
            finishBatch(epoch, emit)
            done(encoder.statistics)
        }
    }

    private func finishBatch(_ epoch: Epoch, _ emit: @Sendable (Output) -> Void) {
        guard let batch = encoder.finish() else { return }
        var frame = ByteBufferAllocator().buffer(capacity: FrameHeader.length + batch.count)
        let header = frame.writeFrame(
            .ramBatch, generation: generation, epoch: epoch,
            prefix: UnsafeRawBufferPointer(start: nil, count: 0), data: batch)
        emit(Output(frame: frame, header: header))
    }
}

/// Anonymous memory as large as a RAM block: zero pages cost nothing until the guest has written them.
private final class ShadowMemory {
    private let memory: AnonymousMemory

    init(byteCount: Int) {
        memory = AnonymousMemory(byteCount: byteCount)
    }

    func page(_ page: UInt32) -> UnsafeMutableRawPointer { memory.base + Int(page) * Sizes.page }
}
