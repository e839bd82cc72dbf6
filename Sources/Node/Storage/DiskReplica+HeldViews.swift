import AsyncIO
import BlockReplica
import Units

/// The disk's side of views that are held while protection goes on.
extension DiskReplica {
    /// Keeps the last committed checkpoint, `epoch`, readable until it is released.
    func holdView(_ epoch: Epoch) { onViews { $0.views.hold(epoch) } }

    func releaseView(_ epoch: Epoch) { onViews { $0.garbage += $0.views.release(epoch) } }

    /// Why the view of `epoch` has ended before its time; nil when it has not.
    func lostView(_ epoch: Epoch) -> String? { onViews { $0.views.ended[epoch] } ?? nil }

    /// Bytes that the view of `epoch` has set aside.
    func stashedBytes(_ epoch: Epoch) -> UInt64 { onViews { $0.views.stashedBytes(epoch) } ?? 0 }

    /// Folds some of what views need out of the way, between two batches of the drain; see ``DiskViews``.
    func foldViewsLater() {
        // The further behind, the more at a time.
        files.later { $0.garbage += $0.views.fold(bytes: ($0.views.pinnedCount + 1) * (8 << 20)) }
    }

    /// The views of another object for the same disk, which is not used any more.
    func adoptViews(of other: DiskReplica) {
        guard let views = other.onViews({ $0.views }) else { return }
        onViews { $0.views = views }
    }

    /// Does something with the views; the last call of this kind that was made before has been done by then.
    @discardableResult
    func onViews<Value>(_ body: (DiskDrain) -> Value) -> Value? {
        try? files.perform { (drain) throws(DiskReplicaError) in body(drain) }
    }

    /// Reads the contents of a checkpoint that is held. The range lies inside the disk and has at most 1 MiB; offset and
    /// length are multiples of 4 KiB, but for the end of the disk.
    func readHeld(_ epoch: Epoch, _ range: ByteRange, into buffer: UnsafeMutableRawBufferPointer)
        throws(DiskReplicaError)
    {
        try files.perform { (drain) throws(DiskReplicaError) in
            do throws(IOError) {
                try drain.secondary.read(at: range.offset, into: buffer)
            } catch { throw .io(error) }
            try drain.views.overlay(epoch, onto: buffer, range: range, live: drain.overlays)
        }
    }

    /// What is hole and what is data in a checkpoint that is held, from the range's start on; may end before the range
    /// does. `scratch` lies over the checkpoint.
    func heldExtents(
        _ epoch: Epoch, _ range: ByteRange, over scratch: BlockStash?
    ) throws(DiskReplicaError) -> [ExportExtent] {
        try files.perform { (drain) throws(DiskReplicaError) in
            try drain.secondary.extents(of: range, diskSize: size) { (block) throws(DiskReplicaError) in
                if let isZero = scratch?.isZero(block) { return isZero }
                return try drain.views.isZero(block, epoch, live: drain.overlays)
            }
        }
    }
}
