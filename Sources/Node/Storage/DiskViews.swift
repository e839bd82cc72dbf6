import AsyncIO
import BlockReplica
import Glibc
import Qcow2
import Units

/// Checkpoints of one disk that somebody still reads while later ones are committed.
///
/// The view of checkpoint e needs the hidden disks of all epochs behind e. A commit drops them; here they are *pinned*
/// instead (constant time), and in the background folded, oldest first, into the view's own stash `view-e.raw`: the first
/// hidden disk that knows a block is right, so a block that the stash has is never replaced. A hidden disk that all views
/// have folded is garbage.
///
/// Bounds, for each checkpoint that is viewed, however many read it and for however long: one file, a bit of memory for
/// each 4 KiB, and space for the blocks that have changed since, at most the size of the disk; and for all together
/// ``pinnedMax`` pinned hidden disks. Beyond that, or when the file system of the store has less than ``reserve`` left,
/// views are ended: protection never is.
///
/// Not Sendable: confined to the thread of the disk's files.
final class DiskViews {
    /// Pinned hidden disks at most; each has an open file.
    static let pinnedMax = 64

    private final class View {
        let epoch: Epoch
        var holders = 1
        var stash: BlockStash?
        /// The newest epoch whose hidden disk is in the stash.
        var folded: Epoch
        /// What is left of the next one.
        var runs: ArraySlice<OverlayRun>?

        init(epoch: Epoch) {
            self.epoch = epoch
            folded = epoch
        }
    }

    let directory: String
    let size: UInt64
    /// Bytes that must stay free on the file system.
    var reserve: (_ directory: String) -> Bool = DiskViews.hasReserve
    private let geometry: BlockGeometry
    private var views: [Epoch: View] = [:]
    private var pinned: [DiskOverlay] = []
    /// Views that ended before their time, and why, until they are released.
    private(set) var ended: [Epoch: String] = [:]
    private lazy var staging = AlignedBuffer(minimumCount: 1 << 20)

    init(directory: String, size: UInt64) {
        self.directory = directory
        self.size = size
        geometry = BlockGeometry(diskSize: size)
    }

    var isEmpty: Bool { views.isEmpty && ended.isEmpty }
    /// Hidden disks that wait to be folded.
    var pinnedCount: Int { pinned.count }

    /// Bytes that the view's own stash holds.
    func stashedBytes(_ epoch: Epoch) -> UInt64 { views[epoch]?.stash?.byteCount ?? 0 }

    // MARK: Holding

    /// Holds checkpoint `epoch`, which must be the last one committed, or held already.
    func hold(_ epoch: Epoch) {
        ended[epoch] = nil
        if let view = views[epoch] {
            view.holders += 1
        } else {
            views[epoch] = View(epoch: epoch)
        }
    }

    /// Ends one holding of `epoch`. Returns hidden disks that nobody needs any more.
    func release(_ epoch: Epoch) -> [DiskOverlay] {
        ended[epoch] = nil
        guard let view = views[epoch] else { return [] }
        view.holders -= 1
        guard view.holders == 0 else { return [] }
        views[epoch] = nil
        return unpinned()
    }

    /// A commit drops these hidden disks. Returns those that no view needs. Takes no time that grows with
    /// anything but the number of views.
    func drop(_ overlays: [DiskOverlay]) -> [DiskOverlay] {
        guard let oldest = views.keys.min() else { return pinned.isEmpty ? overlays : unpinned(overlays) }
        var garbage: [DiskOverlay] = []
        for overlay in overlays {
            if overlay.epoch > oldest { pinned.append(overlay) } else { garbage.append(overlay) }
        }
        if pinned.count > Self.pinnedMax {
            garbage += endAll("the guest writes faster than its old blocks can be set aside for the view")
        } else if !reserve(directory) {
            garbage += endAll("the store's file system is nearly full, and the protection needs what is left")
        }
        return garbage
    }

    private func unpinned(_ overlays: [DiskOverlay]) -> [DiskOverlay] { overlays + unpinned() }

    /// Lets go of what every view has folded.
    private func unpinned() -> [DiskOverlay] {
        var garbage: [DiskOverlay] = []
        pinned.removeAll { overlay in
            let isNeeded = views.values.contains { $0.epoch < overlay.epoch && $0.folded < overlay.epoch }
            if !isNeeded { garbage.append(overlay) }
            return !isNeeded
        }
        return garbage
    }

    /// Ends all views; who reads one gets the reason. Returns the hidden disks that are garbage now.
    func endAll(_ reason: String) -> [DiskOverlay] {
        for epoch in views.keys { ended[epoch] = reason }
        views = [:]
        return unpinned()
    }

    private func end(_ view: View, _ reason: String) {
        ended[view.epoch] = reason
        views[view.epoch] = nil
    }

    /// Whether the file system has 512 MiB or a sixteenth of its size free, whichever is less.
    static func hasReserve(_ directory: String) -> Bool {
        var status = statvfs()
        guard statvfs(directory, &status) == 0 else { return true }
        let unit = UInt64(status.f_frsize)
        return UInt64(status.f_bavail) * unit >= min(512 << 20, UInt64(status.f_blocks) * unit / 16)
    }

    // MARK: Reading

    /// Lays what the view of `epoch` knows better than the secondary disk over `bytes`, which hold the range as the
    /// secondary disk has it and start on a block. `live` are the hidden disks that no commit has dropped yet.
    func overlay(
        _ epoch: Epoch, onto bytes: UnsafeMutableRawBufferPointer, range: ByteRange, live: [DiskOverlay]
    ) throws(DiskReplicaError) {
        if let reason = ended[epoch] { throw .viewEnded(reason) }
        guard let view = views[epoch] else { throw .viewEnded("it was closed") }
        let hidden = (pinned + live).filter { $0.epoch > view.folded }
        for block in geometry.blocks(touching: range) {
            let start = Int(block * UInt64(BlockGeometry.blockSize) - range.offset)
            let length = min(geometry.length(of: block), bytes.count - start)
            let place = UnsafeMutableRawBufferPointer(rebasing: bytes[start..<start + length])
            if let stash = view.stash, stash.contains(block) {
                do throws(IOError) { try stash.read(block, into: place) } catch { throw .io(error) }
                continue
            }
            search: for overlay in hidden {
                switch try overlay.lookup(block) {
                case .unallocated: continue search
                case .zero: place.initializeMemory(as: UInt8.self, repeating: 0)
                case .data(let offset):
                    do throws(IOError) { try overlay.readData(at: offset, into: place) } catch { throw .io(error) }
                }
                break search
            }
        }
    }

    /// Whether the view of `epoch` has zeroes in a block, where it knows better than the secondary disk; nil where it does
    /// not.
    func isZero(_ block: UInt64, _ epoch: Epoch, live: [DiskOverlay]) throws(DiskReplicaError) -> Bool? {
        if let reason = ended[epoch] { throw .viewEnded(reason) }
        guard let view = views[epoch] else { throw .viewEnded("it was closed") }
        if let isZero = view.stash?.isZero(block) { return isZero }
        for overlay in pinned where overlay.epoch > view.folded {
            if let isZero = try overlay.lookup(block).isZero { return isZero }
        }
        for overlay in live where overlay.epoch > view.folded {
            if let isZero = try overlay.lookup(block).isZero { return isZero }
        }
        return nil
    }

    // MARK: Folding

    /// Folds about `bytes` of pinned hidden disks into the views' stashes. A view that cannot be kept is ended. Returns
    /// the hidden disks that are garbage now.
    func fold(bytes: Int) -> [DiskOverlay] {
        guard !pinned.isEmpty else { return [] }
        guard reserve(directory) else {
            return endAll("the store's file system is nearly full, and the protection needs what is left")
        }
        var left = bytes
        for view in views.values.sorted(by: { $0.epoch < $1.epoch }) {
            do throws(DiskReplicaError) {
                while left > 0, let overlay = pinned.first(where: { $0.epoch > view.folded }) {
                    try fold(overlay, into: view, &left)
                }
            } catch {
                end(view, "its blocks cannot be set aside: \(error)")
            }
        }
        return unpinned()
    }

    private func fold(_ overlay: DiskOverlay, into view: View, _ left: inout Int) throws(DiskReplicaError) {
        let stash: BlockStash
        if let made = view.stash {
            stash = made
        } else {
            do throws(IOError) {
                stash = try BlockStash(path: "\(directory)/\(DiskFiles.view(view.epoch))", size: size)
            } catch { throw .io(error) }
            view.stash = stash
        }
        if view.runs == nil {
            var runs: [OverlayRun] = []
            try overlay.forEachRun { runs.append($0) }
            view.runs = runs[...]
        }
        // Clusters may be smaller or larger than blocks, but what is set aside are whole blocks, each in one piece.
        let block = UInt64(BlockGeometry.blockSize)
        let step = max(overlay.clusterSize, block)
        while left > 0, var run = view.runs?.first {
            let whole = run.count * overlay.clusterSize
            let taken = min(whole, max(UInt64(left) / step * step, step))
            let first = run.guestCluster * overlay.clusterSize / block
            let end = min(first + (taken + block - 1) / block, geometry.blockCount)
            do throws(IOError) {
                if let place = run.fileOffset {
                    try copy(first..<end, from: overlay, at: place, to: stash)
                } else {
                    for zero in first..<end where !stash.contains(zero) { stash.putZeroes(zero..<zero + 1) }
                }
            } catch { throw .io(error) }
            left -= Int(taken)
            if taken < whole, let next = view.runs?.startIndex {
                run.guestCluster += taken / overlay.clusterSize
                run.count -= taken / overlay.clusterSize
                run.fileOffset = run.fileOffset.map { $0 + taken }
                view.runs?[next] = run
            } else {
                view.runs?.removeFirst()
            }
        }
        if view.runs?.isEmpty == true {
            view.runs = nil
            view.folded = overlay.epoch
        }
    }

    /// Copies the blocks that the stash does not have yet.
    private func copy(
        _ blocks: Range<UInt64>, from overlay: DiskOverlay, at place: UInt64, to stash: BlockStash
    ) throws(IOError) {
        let most = UInt64(staging.count / BlockGeometry.blockSize)
        var block = blocks.lowerBound
        while block < blocks.upperBound {
            if stash.contains(block) {
                block += 1
                continue
            }
            var end = block + 1
            while end < blocks.upperBound, end - block < most, !stash.contains(end) { end += 1 }
            let bytes = staging.slice(0, Int(end - block) * BlockGeometry.blockSize)
            // The file need not have what the disk has not of its last block.
            let length = Int(geometry.bytes(of: block..<end).length)
            staging.slice(length, bytes.count - length).initializeMemory(as: UInt8.self, repeating: 0)
            try overlay.readData(
                at: place + (block - blocks.lowerBound) * UInt64(BlockGeometry.blockSize),
                into: staging.slice(0, length))
            try stash.put(block..<end, UnsafeRawBufferPointer(bytes))
            block = end
        }
    }
}
