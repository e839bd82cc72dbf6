import AsyncIO
import Units

/// Checkpoints that are read while later ones are committed: all disks together.
extension GuestStore {
    func holdViews(_ epoch: Epoch) {
        for disk in disks { disk.replica.holdView(epoch) }
    }

    func releaseViews(_ epoch: Epoch) {
        for disk in disks { disk.replica.releaseView(epoch) }
    }

    /// Why the checkpoint cannot be read any longer; nil when it can.
    func lostView(_ epoch: Epoch) -> String? {
        for disk in disks {
            if let reason = disk.replica.lostView(epoch) { return reason }
        }
        return nil
    }

    func stashedBytes(_ epoch: Epoch) -> UInt64 { disks.reduce(0) { $0 + $1.replica.stashedBytes(epoch) } }

    /// Whether a client of an export may write more: the protection needs room first.
    func hasReserve(_ disk: Int) -> Bool {
        guard disks.indices.contains(disk) else { return false }
        return DiskViews.hasReserve(disks[disk].replica.directory)
    }

    func readView(
        _ disk: Int, _ epoch: Epoch, _ range: ByteRange, into bytes: UnsafeMutableRawBufferPointer
    ) throws {
        guard disks.indices.contains(disk) else { throw Failed(description: "the disks of '\(name)' are not open") }
        try disks[disk].replica.readHeld(epoch, range, into: bytes)
    }

    /// Hole and data, from the range's start on; may end before the range does.
    func viewExtents(
        _ disk: Int, _ epoch: Epoch, _ range: ByteRange, over scratch: BlockStash?
    ) throws -> [ExportExtent] {
        guard disks.indices.contains(disk) else { throw Failed(description: "the disks of '\(name)' are not open") }
        return try disks[disk].replica.heldExtents(epoch, range, over: scratch)
    }

    /// Files for what the clients of an export write.
    func makeScratch(_ number: Int) throws -> [ScratchDisk] {
        try disks.map { disk in
            let path = "\(diskDirectory(disk.id))/\(DiskFiles.scratch(number))"
            return ScratchDisk(stash: try BlockStash(path: path, size: disk.replica.size))
        }
    }

    /// Removes all dropped hidden disks, at once.
    func reclaimAll() {
        for disk in disks { _ = try? disk.replica.reclaim() }
    }
}
