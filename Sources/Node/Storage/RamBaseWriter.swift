import AsyncIO
import Glibc
import RamCache
import Units

/// Writes the cache as it was at the end of one epoch to `ram/base-N.ram`, a slice at a time, while later epochs are
/// applied: a page that is about to change and was not written yet is written first. Confined to the storage thread.
final class RamBaseWriter {
    /// The epoch whose end the base shows.
    let epoch: Epoch
    private let directory: String
    private let cache: RamCacheFiles
    private let file: DirectFile
    private var sums: BaseImageSums
    private var copied: Bitmap
    private var cursor = 0
    /// Whether something was written since the last sync.
    private var isDirty = true

    /// Starts a base of what `cache` holds now.
    init(directory: String, session: Identifier, cache: RamCacheFiles, epoch: Epoch) throws(RamStoreError) {
        self.epoch = epoch
        self.directory = directory
        self.cache = cache
        file = try RamStoreError.wrap(epoch) { () throws(IOError) in
            let path = directory + "/" + RamFileReference.baseName(epoch)
            let file = try DirectFile(path: path, mode: .createOrTruncate, direct: false)
            try file.truncate(to: cache.layout.total)
            return file
        }
        sums = BaseImageSums(session: session, layout: cache.layout, epoch: epoch)
        copied = Bitmap(count: cache.layout.pageCount)
    }

    /// The part that is done, 0...1.
    var progress: Double { Double(cursor) / Double(copied.count) }

    /// Writes a page before it changes in the cache, unless it was written already.
    @inline(__always)
    func preserve(_ page: Int) throws(RamStoreError) {
        guard page >= cursor, copied.insert(page) else { return }
        let place = cache.layout.location(ofGlobalPage: page)
        guard let contents = cache.page(place.block, place.page) else { return }
        try write(contents, first: page, count: 1)
    }

    /// Writes up to `maxBytes` of pages that were not written yet, and syncs them.
    ///
    /// - Returns: true when all pages are there.
    func slice(maxBytes: Int) throws(RamStoreError) -> Bool {
        var room = max(1, maxBytes / Sizes.page)
        // Pages of zeroes cost no writing, but looking at them takes time too.
        var looks = room * 8
        while cursor < copied.count, room > 0, looks > 0 {
            let count = try copyRun(limit: room)
            room -= count
            looks -= max(1, count)
        }
        if isDirty {
            try RamStoreError.wrap(epoch) { () throws(IOError) in try file.sync() }
            isDirty = false
        }
        return cursor == copied.count
    }

    /// Makes the complete base durable.
    func finish() throws(RamStoreError) -> RamFileReference {
        precondition(cursor == copied.count)
        let bytes = sums.encoded()
        try RamStoreError.wrap(epoch) { () throws(IOError) in
            try file.sync()
            let path = directory + "/" + RamFileReference.sumName(epoch)
            let sumFile = try DirectFile(path: path, mode: .createOrTruncate, direct: false)
            try sumFile.write(at: 0, from: bytes)
            try sumFile.sync()
            try DirectFile.syncDirectory(directory)
        }
        let digest = bytes.withUnsafeBytes { BaseImageSums.digest(ofFile: $0) }
        return RamFileReference(kind: .base, epoch: epoch, length: cache.layout.total, digest: digest)
    }

    /// Writes the pages at the cursor that lie one behind the other; returns their number, 0 when the page at the
    /// cursor needed no writing.
    private func copyRun(limit: Int) throws(RamStoreError) -> Int {
        let place = cache.layout.location(ofGlobalPage: cursor)
        let left = Int(cache.layout.blocks[place.block].pageCount - place.page)
        var count = 0
        while count < min(limit, left), !copied.contains(cursor + count),
            let contents = cache.page(place.block, place.page + UInt64(count)), !Self.isZero(contents)
        {
            count += 1
        }
        guard count > 0, let contents = cache.page(place.block, place.page) else {
            cursor += 1
            return 0
        }
        try write(contents, first: cursor, count: count)
        cursor += count
        return count
    }

    private func write(_ contents: UnsafeRawPointer, first: Int, count: Int) throws(RamStoreError) {
        for page in 0..<count {
            let bytes = UnsafeRawBufferPointer(start: contents + page * Sizes.page, count: Sizes.page)
            sums.pages[first + page] = CRC32C.checksum(bytes)
        }
        let all = UnsafeRawBufferPointer(start: contents, count: count * Sizes.page)
        isDirty = true
        try RamStoreError.wrap(epoch) { () throws(IOError) in
            try file.write(at: UInt64(first) * UInt64(Sizes.page), from: all)
        }
    }

    private static func isZero(_ page: UnsafeRawPointer) -> Bool {
        page.load(as: UInt64.self) == 0 && memcmp(page, page + 8, Sizes.page - 8) == 0
    }
}
