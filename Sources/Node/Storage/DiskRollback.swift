import AsyncIO
import BlockReplica
import Qcow2
import Units

/// Takes the secondary disk back to a checkpoint with the help of its hidden disks.
///
/// The files' numbers decide the order, newest first, whatever their headers name: each hidden disk's contents are
/// written back and made durable before its file is removed, so that an interrupted rollback is simply repeated.
struct DiskRollback {
    let io: DiskIO
    let secondary: DirectFile
    let directory: String
    let geometry: BlockGeometry
    /// Called with the bytes of each piece that has been written back.
    var progress: ((UInt64) -> Void)?

    /// Returns the bytes that were written back, zeroes included.
    func run(to committed: Epoch) throws(DiskReplicaError) -> UInt64 {
        let names: [String]
        do throws(IOError) {
            names = try Directory.names(in: directory)
            for name in names where name.hasSuffix(DiskFiles.unfinishedSuffix) {
                try io.remove("\(directory)/\(name)")
            }
        } catch { throw .io(error) }
        let epochs = names.compactMap(DiskFiles.hiddenEpoch).sorted()
        var bytes: UInt64 = 0
        for epoch in epochs.reversed() where epoch > committed {
            bytes += try writeBack(DiskOverlay.open(epoch, in: directory, size: geometry.diskSize, io: io))
            do throws(IOError) {
                try io.sync(secondary)
                try io.remove("\(directory)/\(DiskFiles.hidden(epoch))")
                try io.syncDirectory(directory)
            } catch { throw .io(error) }
        }
        do throws(IOError) {
            for epoch in epochs where epoch <= committed {
                try io.remove("\(directory)/\(DiskFiles.hidden(epoch))")
            }
        } catch { throw .io(error) }
        return bytes
    }

    private func writeBack(_ overlay: DiskOverlay) throws(DiskReplicaError) -> UInt64 {
        let staging = AlignedBuffer(minimumCount: 1 << 20)
        let cluster = overlay.clusterSize
        let clustersAtOnce = UInt64(staging.count) / cluster
        var total: UInt64 = 0
        try overlay.forEachRun { (run) throws(DiskReplicaError) in
            var done: UInt64 = 0
            while done < run.count {
                let count = run.fileOffset == nil ? run.count : min(run.count - done, clustersAtOnce)
                let start = (run.guestCluster + done) * cluster
                let range = ByteRange(offset: start, length: min(count * cluster, geometry.diskSize - start))
                try restore(range, from: overlay, at: run.fileOffset.map { $0 + done * cluster }, staging)
                total += range.length
                progress?(range.length)
                done += count
            }
        }
        return total
    }

    private func restore(
        _ range: ByteRange, from overlay: DiskOverlay, at place: UInt64?, _ staging: AlignedBuffer
    ) throws(DiskReplicaError) {
        do throws(IOError) {
            guard let place else {
                try io.zero(secondary, at: range.offset, length: range.length)
                return
            }
            let bytes = staging.slice(0, Int(range.length))
            try overlay.readData(at: place, into: bytes)
            // What is no multiple of 4 KiB goes by itself, so that the rest stays aligned.
            let body = Int(range.length) / BlockGeometry.blockSize * BlockGeometry.blockSize
            if body > 0 { try secondary.write(at: range.offset, from: UnsafeRawBufferPointer(staging.slice(0, body))) }
            guard body < bytes.count else { return }
            let tail = UnsafeRawBufferPointer(rebasing: bytes[body...])
            try secondary.write(at: range.offset + UInt64(body), from: tail)
        } catch { throw .io(error) }
    }
}
