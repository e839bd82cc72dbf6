import AsyncIO
import BlockReplica
import Units

/// What was written last, whether it has reached the files or not.
extension DiskReplica {
    /// Blocks that ``newestExtents(_:)`` looks at in one call.
    private static let extentBlocks = 16_384

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
        let geometry = BlockGeometry(diskSize: size)
        let buffers = newestFirst
        var extents: [ExportExtent] = []
        var data: Range<UInt64> = 0..<0
        var place = range.offset
        for _ in 0..<Self.extentBlocks where place < range.end {
            let block = place / UInt64(BlockGeometry.blockSize)
            let end = min(geometry.bytes(of: block..<block + 1).end, range.end)
            switch Self.find(block * UInt64(BlockGeometry.blockSize), in: buffers) {
            case .data: extents.append(.data(end - place))
            case .zero: extents.append(.hole(end - place))
            case nil:
                do throws(IOError) {
                    if data.upperBound <= place {
                        let start = try newest.nextData(at: place) ?? size
                        data = start..<(start < size ? max(try newest.nextHole(at: start), start + 1) : size)
                    }
                } catch { throw .io(error) }
                extents.append(data.lowerBound < end ? .data(end - place) : .hole(end - place))
            }
            place = end
        }
        return extents
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

    private enum Found { case data, zero }

    private static func find(_ offset: UInt64, in buffers: [EpochBuffer]) -> Found? {
        for buffer in buffers {
            let block = offset / UInt64(buffer.geometry.unit)
            if buffer.data(of: block) != nil { return .data }
            if buffer.isZeroed(block) { return .zero }
        }
        return nil
    }
}
