import AsyncIO
import BlockReplica
import NBD
import Units

/// One disk of a checkpoint, as an NBD export: hands everything to the replica's thread.
final class ViewDevice: ExportDevice {
    let size: UInt64
    let isReadOnly: Bool
    let capabilities: ExportCapabilities
    /// Number of the export, and of the disk in it.
    private let export: Int
    private let disk: Int
    private let replica: GuestReplica

    init(replica: GuestReplica, export: Int, disk: Int, size: UInt64, isReadOnly: Bool) {
        self.replica = replica
        self.export = export
        self.disk = disk
        self.size = size
        self.isReadOnly = isReadOnly
        capabilities =
            isReadOnly ? [.blockStatus, .multiConnection] : [.flush, .trim, .zero, .blockStatus, .multiConnection]
    }

    func perform(_ batch: ExportBatch) {
        Task { await replica.perform(batch, export: export, disk: disk) }
    }
}

/// What the clients of an export have written to one disk, over a checkpoint.
struct ScratchDisk {
    let stash: BlockStash

    /// Takes a write of any range. `base` reads what the checkpoint has of whole blocks.
    func write(
        _ range: ByteRange, _ bytes: UnsafeRawBufferPointer?,
        base: (ByteRange, UnsafeMutableRawBufferPointer) throws -> Void
    ) throws {
        let size = UInt64(BlockGeometry.blockSize)
        let staging = AlignedBuffer(minimumCount: BlockGeometry.blockSize)
        for block in stash.geometry.blocks(touching: range) {
            let start = block * size
            let length = stash.geometry.length(of: block)
            let from = max(range.offset, start)
            let to = min(range.end, start + UInt64(length))
            if bytes == nil, from == start, to == start + UInt64(length) {
                stash.putZeroes(block..<block + 1)
                continue
            }
            let whole = staging.slice(0, length)
            if to - from < UInt64(length) {
                if stash.contains(block) {
                    try stash.read(block, into: whole)
                } else {
                    try base(ByteRange(offset: start, length: UInt64(length)), whole)
                }
            }
            let part = staging.slice(Int(from - start), Int(to - from))
            if let bytes {
                let first = Int(from - range.offset)
                part.copyMemory(from: UnsafeRawBufferPointer(rebasing: bytes[first..<first + part.count]))
            } else {
                part.initializeMemory(as: UInt8.self, repeating: 0)
            }
            try stash.put(block..<block + 1, UnsafeRawBufferPointer(staging.slice(0, BlockGeometry.blockSize)))
        }
    }
}
