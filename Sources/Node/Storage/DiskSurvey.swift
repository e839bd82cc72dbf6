import AsyncIO
import BlockReplica
import Crypto
import Link
import Units

extension BlockDigest {
    /// Digest of these bytes.
    static func of(_ bytes: UnsafeRawBufferPointer) -> BlockDigest {
        var hash = SHA256()
        hash.update(bufferPointer: bytes)
        return hash.finalize().withUnsafeBytes { digest in
            BlockDigest(
                high: UInt64(bigEndian: digest.loadUnaligned(as: UInt64.self)),
                low: UInt64(bigEndian: digest.loadUnaligned(fromByteOffset: 8, as: UInt64.self)))
        }
    }
}

/// Reads a replica's disks from start to end and says what they hold, a frame at a time. Holes are not read.
///
/// The disks must not change meanwhile: the link refuses disk frames until the last frame from here has gone out.
/// Confined to the storage thread; a step reads at most 32 MiB.
final class DiskSurvey {
    /// Blocks with data that a frame describes at most.
    private static let dataBlocksPerFrame = 512
    /// Runs that a frame has at most, so that a disk of nothing but holes and data in turn stays within the frame too.
    private static let runsPerFrame = 1024
    private static let bytesPerRead = 1 << 20

    private let disks: [(path: String, size: UInt64)]
    private var index = 0
    private var block = 0
    private var file: DirectFile?
    private var isDone = false
    private let blockSize: Int
    private let staging = AlignedBuffer(minimumCount: bytesPerRead)

    /// - Parameter disks: raw files, and the sizes of the disks that they hold.
    init(disks: [(path: String, size: UInt64)]) {
        self.disks = disks
        blockSize = DiskDigests.blockSize(ofDisks: disks.map(\.size))
    }

    /// The next frame; nil behind the last one. There is at least one.
    func next() throws(IOError) -> DiskDigests? {
        guard !isDone else { return nil }
        guard disks.indices.contains(index) else {
            isDone = true
            return DiskDigests(disk: 0, isLast: true, first: 0, runs: [])
        }
        let disk = index
        let first = UInt64(block)
        let (path, size) = disks[index]
        if self.file == nil { self.file = try DirectFile(path: path, mode: .readOnly) }
        guard let file else { return nil }
        let count = Int((size - 1) / UInt64(blockSize)) + 1
        var runs = DigestRuns()
        while block < count, runs.dataBlocks < Self.dataBlocksPerFrame, runs.count < Self.runsPerFrame {
            try step(file, size, count, &runs)
        }
        if block == count {
            index += 1
            block = 0
            self.file = nil
            isDone = index == disks.count
        }
        return DiskDigests(disk: disk, isLast: isDone, first: first, runs: runs.finish())
    }

    private func step(_ file: DirectFile, _ size: UInt64, _ count: Int, _ runs: inout DigestRuns) throws(IOError) {
        let data = try file.nextData(at: UInt64(block) * UInt64(blockSize)) ?? size
        let dataBlock = min(Int(min(data, size) / UInt64(blockSize)), count)
        if dataBlock > block || data >= size {
            let end = data >= size ? count : dataBlock
            runs.append(zeroes: min(end - block, Int(Int32.max)))
            block += min(end - block, Int(Int32.max))
            return
        }
        let offset = UInt64(block) * UInt64(blockSize)
        let blocks = min(Self.bytesPerRead / blockSize, count - block)
        let length = Int(min(UInt64(blocks * blockSize), size - offset))
        try file.read(at: offset, into: staging.slice(0, length))
        for position in 0..<blocks {
            let start = position * blockSize
            let bytes = UnsafeRawBufferPointer(staging.slice(start, min(blockSize, length - start)))
            if ZeroBlocks.isZero(bytes) {
                runs.append(zeroes: 1)
            } else {
                runs.append(.of(bytes))
            }
        }
        block += blocks
    }
}

/// Looking for blocks of zeroes.
enum ZeroBlocks {
    /// Whether all bytes are zero; false also for lengths that no disk has. Ends at the first byte that is not.
    static func isZero(_ bytes: UnsafeRawBufferPointer) -> Bool {
        guard let base = bytes.baseAddress, bytes.count % 64 == 0 else { return false }
        return BlockBytes.isZero(base, count: bytes.count)
    }
}
