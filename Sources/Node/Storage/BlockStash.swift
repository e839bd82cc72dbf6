import AsyncIO
import BlockReplica
import Units

/// Some blocks of a disk in a sparse file of their own. Which ones is known in memory only, a bit for each 4 KiB (32 MiB
/// per TiB of disk): the file means nothing to anybody else, and is a leftover after a crash.
///
/// Each block lies where it lies on the disk, so that the file takes no more space than the blocks in it, and never more
/// than the disk. Not Sendable.
final class BlockStash {
    let path: String
    let geometry: BlockGeometry
    private let file: DirectFile
    private var held: Bitmap
    /// Blocks that are held as zeroes take no space.
    private var zeroes: Bitmap

    init(path: String, size: UInt64) throws(IOError) {
        self.path = path
        geometry = BlockGeometry(diskSize: size)
        file = try DirectFile(path: path, mode: .createOrTruncate)
        let whole = geometry.blockCount * UInt64(BlockGeometry.blockSize)
        try file.truncate(to: whole)
        held = Bitmap(count: Int(geometry.blockCount))
        zeroes = Bitmap(count: Int(geometry.blockCount))
    }

    deinit { try? Directory.removeFile(path) }

    /// Bytes of data in it.
    var byteCount: UInt64 { UInt64(held.population - zeroes.population) * UInt64(BlockGeometry.blockSize) }
    var isEmpty: Bool { held.isEmpty }

    func contains(_ block: UInt64) -> Bool { held.contains(Int(block)) }

    /// Whether the block is held as zeroes; nil when it is not held.
    func isZero(_ block: UInt64) -> Bool? { contains(block) ? zeroes.contains(Int(block)) : nil }

    /// Keeps blocks; `bytes` has 4 KiB for each, also for a short last block.
    func put(_ blocks: Range<UInt64>, _ bytes: UnsafeRawBufferPointer) throws(IOError) {
        precondition(bytes.count == blocks.count * BlockGeometry.blockSize)
        try file.write(at: blocks.lowerBound * UInt64(BlockGeometry.blockSize), from: bytes)
        for block in blocks {
            held.insert(Int(block))
            zeroes.remove(Int(block))
        }
    }

    /// Keeps blocks of zeroes.
    func putZeroes(_ blocks: Range<UInt64>) {
        for block in blocks {
            held.insert(Int(block))
            zeroes.insert(Int(block))
        }
    }

    /// Reads a block that is held; `bytes` is as long as the block is on the disk.
    func read(_ block: UInt64, into bytes: UnsafeMutableRawBufferPointer) throws(IOError) {
        precondition(held.contains(Int(block)))
        if zeroes.contains(Int(block)) {
            bytes.initializeMemory(as: UInt8.self, repeating: 0)
        } else {
            try file.read(at: block * UInt64(BlockGeometry.blockSize), into: bytes)
        }
    }

    /// Lays what is held of a range over `bytes`, which holds the range and starts on a block.
    func overlay(onto bytes: UnsafeMutableRawBufferPointer, range: ByteRange) throws(IOError) {
        guard !held.isEmpty else { return }
        for block in geometry.blocks(touching: range) where contains(block) {
            let start = Int(block * UInt64(BlockGeometry.blockSize) - range.offset)
            let length = min(geometry.length(of: block), bytes.count - start)
            try read(block, into: UnsafeMutableRawBufferPointer(rebasing: bytes[start..<start + length]))
        }
    }
}
