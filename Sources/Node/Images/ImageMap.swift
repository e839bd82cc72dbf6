import AsyncIO
import Qcow2
import Units

/// One line of `colo-blk image map`: a piece of the disk and where it comes from, with qemu-img's meanings.
public struct ImageMapEntry: Equatable, Sendable {
    public var start: UInt64
    public var length: UInt64
    /// Index of the file in the chain; 0 is the top.
    public var depth: Int
    /// A file of the chain holds it.
    public var present: Bool
    public var zero: Bool
    /// Space is taken for it. With `zero`: space that nothing was written to yet.
    public var data: Bool
    /// Place in the file, where it has one.
    public var offset: UInt64?
    public var path: String

    /// Whether the other one says the same of the bytes behind.
    func continues(into next: ImageMapEntry) -> Bool {
        zero == next.zero && data == next.data && depth == next.depth && present == next.present && path == next.path
            && offset.map { $0 + length } == next.offset
    }

    /// As `qemu-img map --output=json` prints it.
    public var json: String {
        "{ \"start\": \(start), \"length\": \(length), \"depth\": \(depth), \"present\": \(present), "
            + "\"zero\": \(zero), \"data\": \(data)" + (offset.map { ", \"offset\": \($0)" } ?? "") + "}"
    }
}

extension ImageChain {
    /// Calls `body` with every piece of the disk, rising and as long as can be.
    public func forEachMapEntry(
        _ body: (ImageMapEntry) throws(ImageChainError) -> Void
    ) throws(ImageChainError) {
        var last: ImageMapEntry?
        var offset: UInt64 = 0
        while let extent = try nextMapEntry(at: offset) {
            offset = extent.start + extent.length
            if let before = last {
                if before.continues(into: extent) {
                    last?.length += extent.length
                    continue
                }
                try body(before)
            }
            last = extent
        }
        if let last { try body(last) }
    }

    private func nextMapEntry(at offset: UInt64) throws(ImageChainError) -> ImageMapEntry? {
        guard let extent = try nextExtent(at: offset) else { return nil }
        let layer = layers[extent.depth]
        var entry = ImageMapEntry(
            start: offset, length: extent.range.length, depth: extent.depth, present: extent.isPresent,
            zero: extent.isZero, data: !extent.isZero, offset: extent.fileOffset, path: layer.path)
        guard layer.format == .qcow2, entry.data, let place = entry.offset, try layer.isPreallocated() else {
            return entry
        }
        // Space that was taken ahead may never have been written to: the file system knows.
        do throws(IOError) {
            let end = place + entry.length
            let data = place < layer.fileLength ? try layer.file.nextData(at: place) ?? end : end
            if data > place {
                entry.zero = true
                entry.length = min(data, end) - place
            } else {
                entry.length = min(try layer.file.nextHole(at: place), end) - place
            }
        } catch { throw .io(error) }
        return entry
    }
}
