import AsyncIO
import BlockReplica
import Qcow2
import Units

/// Checkpoints as they are read: by us, and by QEMU through the chain of files.
extension DiskReplica {
    /// The files whose chain shows checkpoint `epoch`, topmost first; the last one is the secondary disk. Each names the
    /// next as its backing file. Only hidden disks that exist are in it.
    public func overlayChain(after epoch: Epoch) -> [String] {
        let hidden = try? files.perform { (drain) throws(DiskReplicaError) in
            drain.overlays.filter { $0.epoch > epoch }.map(\.path)
        }
        return (hidden ?? []) + ["\(directory)/\(DiskFiles.secondary)"]
    }

    /// Bytes that the hidden disks occupy, those that a commit has dropped left out.
    func hiddenBytes() throws(DiskReplicaError) -> UInt64 {
        try files.perform { (drain) throws(DiskReplicaError) in
            var total: UInt64 = 0
            do throws(IOError) {
                for overlay in drain.overlays { total += try overlay.allocatedBytes() }
            } catch { throw .io(error) }
            return total
        }
    }

    /// Makes an empty overlay over checkpoint `epoch` for a guest to write to: qcow2 with 64 KiB clusters, in the
    /// disk's directory. A file of this name is replaced. Returns its path. Hidden disks that a later commit drops are
    /// still needed below it: call it when no more commits are to come, or see to it that the guest is gone before.
    public func createActive(name: String, after epoch: Epoch) throws(DiskReplicaError) -> String {
        precondition(!name.contains("/") && DiskFiles.hiddenEpoch(name) == nil && name != DiskFiles.secondary)
        let below = try files.perform { (drain) throws(DiskReplicaError) in
            drain.overlays.first { $0.epoch > epoch }?.name
        }
        let path = "\(directory)/\(name)"
        let empty: EmptyOverlay
        do throws(Qcow2Error) {
            empty = try EmptyOverlay(
                virtualSize: size, backingFile: below ?? DiskFiles.secondary,
                backingFormat: below == nil ? .raw : .qcow2)
        } catch { throw .overlay(path: path, error) }
        do throws(IOError) {
            // Not synced, since a guest waits for it: nothing in it can be lost before the guest's own first flush.
            let unsynced = DiskIO(durable: false)
            _ = try unsynced.createWhole(name, in: directory, length: empty.fileLength, writes: empty.writes)
        } catch { throw .io(error) }
        return path
    }

    /// Reads the contents of checkpoint `epoch`. Epochs older than the last commit are gone. The range lies inside the
    /// disk; it may start anywhere.
    public func readView(
        after epoch: Epoch, offset: UInt64, into buffer: UnsafeMutableRawBufferPointer
    ) throws(DiskReplicaError) {
        guard let range = ByteRange(checking: offset, length: UInt64(buffer.count)), range.fits(in: size) else {
            throw .outside(ByteRange(offset: min(offset, size), length: UInt64(buffer.count)), size: size)
        }
        let staging = AlignedBuffer(minimumCount: 1 << 20)
        var done: UInt64 = 0
        while done < range.length {
            let start = (range.offset + done) / UInt64(staging.count) * UInt64(staging.count)
            let piece = ByteRange(offset: start, length: min(UInt64(staging.count), size - start))
            try files.perform { (drain) throws(DiskReplicaError) in
                try drain.readPiece(piece, after: epoch, staging)
            }
            let skip = Int(range.offset + done - start)
            let count = min(Int(piece.length) - skip, Int(range.length - done))
            UnsafeMutableRawBufferPointer(rebasing: buffer[Int(done)...])
                .copyMemory(from: UnsafeRawBufferPointer(staging.slice(skip, count)))
            done += UInt64(count)
        }
    }

    /// CRC-32C of the whole disk as checkpoint `epoch` shows it.
    public func digest(after epoch: Epoch) throws(DiskReplicaError) -> UInt32 {
        let staging = AlignedBuffer(minimumCount: 1 << 20)
        var checksum = CRC32C()
        var start: UInt64 = 0
        while start < size {
            let piece = ByteRange(offset: start, length: min(UInt64(staging.count), size - start))
            try files.perform { (drain) throws(DiskReplicaError) in
                try drain.readPiece(piece, after: epoch, staging)
            }
            checksum.update(UnsafeRawBufferPointer(staging.slice(0, Int(piece.length))))
            start = piece.end
        }
        return checksum.value
    }

}

extension DiskDrain {
    /// Fills the front of `staging`, which starts on a block of the disk: first from the secondary disk, then the blocks
    /// that a hidden disk of the view knows better, the oldest of which is right.
    fileprivate func readPiece(
        _ piece: ByteRange, after epoch: Epoch, _ staging: AlignedBuffer
    ) throws(DiskReplicaError) {
        do throws(IOError) {
            try secondary.read(at: piece.offset, into: staging.slice(0, Int(piece.length)))
        } catch { throw .io(error) }
        let hidden = overlays.filter { $0.epoch > epoch }
        guard !hidden.isEmpty else { return }
        let blocks = BlockGeometry(diskSize: geometry.diskSize)
        for block in blocks.blocks(touching: piece) {
            let place = staging.slice(
                Int(block * UInt64(BlockGeometry.blockSize) - piece.offset), blocks.length(of: block))
            for overlay in hidden {
                let found = try overlay.lookup(block)
                switch found {
                case .unallocated: continue
                case .zero: place.initializeMemory(as: UInt8.self, repeating: 0)
                case .data(let offset):
                    do throws(IOError) { try overlay.readData(at: offset, into: place) } catch { throw .io(error) }
                }
                break
            }
        }
    }
}
