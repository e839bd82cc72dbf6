import AsyncIO
import BlockReplica
import Units

/// What was written last, whether it has reached the files or not.
extension DiskReplica {
    /// Reads the newest contents. The range lies inside the disk; it may start anywhere. Waits for the disk, but not for
    /// the drain: what is in no buffer is not being written.
    public func readNewest(offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(DiskReplicaError) {
        guard let range = ByteRange(checking: offset, length: UInt64(buffer.count)), range.fits(in: size) else {
            throw .outside(ByteRange(offset: min(offset, size), length: UInt64(buffer.count)), size: size)
        }
        let buffers = newestFirst
        if let newest = buffers.first, newest.overlay(onto: buffer, at: offset) { return }
        var done = 0
        while done < buffer.count {
            // Whole blocks, so that the read goes past the page cache like the drain's writes.
            let place = offset + UInt64(done)
            let start = place / UInt64(AlignedBuffer.alignment) * UInt64(AlignedBuffer.alignment)
            let wanted = (place - start) + UInt64(buffer.count - done) + UInt64(AlignedBuffer.alignment - 1)
            let whole = wanted / UInt64(AlignedBuffer.alignment) * UInt64(AlignedBuffer.alignment)
            let piece = staging.slice(0, Int(min(whole, UInt64(staging.count), size - start)))
            do throws(IOError) { try newest.read(at: start, into: piece) } catch { throw .io(error) }
            for older in buffers.reversed() { older.overlay(onto: piece, at: start) }
            let skip = Int(place - start)
            let count = min(piece.count - skip, buffer.count - done)
            UnsafeMutableRawBufferPointer(rebasing: buffer[done...])
                .copyMemory(from: UnsafeRawBufferPointer(rebasing: piece[skip..<skip + count]))
            done += count
        }
    }

    /// What the newest contents are, from the range's start on; may end before the range does.
    func newestExtents(_ range: ByteRange) throws(DiskReplicaError) -> [ExportExtent] {
        let buffers = newestFirst
        return try newest.extents(of: range, diskSize: size) { (block) throws(DiskReplicaError) in
            Self.isZero(block * UInt64(BlockGeometry.blockSize), in: buffers)
        }
    }

    /// Makes the newest contents of the secondary disk durable, where syncs count. That is no checkpoint: after a crash
    /// the disk goes back to the last one.
    func flushNewest() throws(DiskReplicaError) {
        guard durable else { return }
        try drain()
        try onFiles { (drain) throws(DiskReplicaError) in
            do throws(IOError) { try drain.io.sync(drain.secondary) } catch { throw .io(error) }
        }
    }

    /// Every buffer whose contents may not be in the files.
    private var newestFirst: [EpochBuffer] {
        var buffers: [EpochBuffer] = []
        for epoch in pending.keys.sorted(by: >) {
            if let current = pending[epoch]?.current { buffers.append(current) }
            buffers += (pending[epoch]?.full ?? []).reversed()
        }
        return buffers + handed.reversed()
    }

    /// Whether the newest write of a block was of zeroes; nil when no buffer has it.
    private static func isZero(_ offset: UInt64, in buffers: [EpochBuffer]) -> Bool? {
        for buffer in buffers {
            let block = offset / UInt64(buffer.geometry.unit)
            if buffer.data(of: block) != nil { return false }
            if buffer.isZeroed(block) { return true }
        }
        return nil
    }
}

extension DirectFile {
    /// Blocks that ``extents(of:diskSize:isZero:)`` looks at in one call: the drain may wait meanwhile.
    private static let extentBlocks = 16_384

    /// What is hole and what is data in a range of a disk, from its start on; may end before the range does. `isZero`
    /// tells of blocks that something above this file, the secondary disk, knows better; nil where this file is right.
    func extents(
        of range: ByteRange, diskSize: UInt64, isZero: (UInt64) throws(DiskReplicaError) -> Bool?
    ) throws(DiskReplicaError) -> [ExportExtent] {
        let geometry = BlockGeometry(diskSize: diskSize)
        var extents: [ExportExtent] = []
        var data: Range<UInt64> = 0..<0
        var place = range.offset
        for block in geometry.blocks(touching: range).prefix(Self.extentBlocks) {
            let end = min(geometry.bytes(of: block..<block + 1).end, range.end)
            if let known = try isZero(block) {
                extents.append(known ? .hole(end - place) : .data(end - place))
            } else {
                do throws(IOError) {
                    if data.upperBound <= place {
                        let start = try nextData(at: place) ?? diskSize
                        data = start..<(start < diskSize ? max(try nextHole(at: start), start + 1) : diskSize)
                    }
                } catch { throw .io(error) }
                extents.append(data.lowerBound < end ? .data(end - place) : .hole(end - place))
            }
            place = end
        }
        return extents
    }
}
