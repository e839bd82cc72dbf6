import AsyncIO
import Checkpointer
import Glibc
import Link
import RamCache
import Units

/// A guest's RAM: base and logs on disk, and the cache in shared memory from which a failover starts.
extension GuestCheck {
    mutating func checkRam(_ record: CommitRecord, _ files: SessionFiles?) {
        guard let files else { return }
        let layout: RamLayout
        let archive: RamArchive
        do {
            layout = try RamLayout(
                blocks: files.layout.blocks.map { RamLayout.Block(name: $0.name, length: $0.length) })
            archive = RamArchive(
                directory: "\(folder.path)/ram", session: record.session, layout: layout, epoch: record.epoch,
                files: try record.ramFiles.map { try RamFileReference($0) })
        } catch {
            return add("ram", "RAM", .damaged, "\(error)")
        }
        let cache = checkCache(record, layout)
        guard record.durability == .disk else { return }
        let names = record.ramFiles.map { "ram/\($0.name)" }.joined(separator: ", ")
        do {
            let summary = try archive.verify()
            add(
                names, "RAM on disk", .good,
                "base and logs lead to checkpoint \(record.epoch): \(summary.epochs) epochs, "
                    + "\(summary.batches) batches, \(ByteText.text(summary.bytes)), all checksums right")
        } catch {
            return add(names, "RAM on disk", error)
        }
        if let cache, !quick { compare(cache, with: archive) }
    }

    // MARK: Cache

    /// The cache when it holds the committed checkpoint.
    private mutating func checkCache(_ record: CommitRecord, _ layout: RamLayout) -> RamCacheFiles? {
        let path = "\(tmpfs)/cache-\(record.session.hex)"
        let what = "RAM cache"
        let isNeeded = record.durability == .memory
        func missing(_ words: String) -> (Item.State, String) {
            isNeeded
                ? (.damaged, "\(words); with durability 'memory' checkpoint \(record.epoch) is lost: attach again")
                : (.leftover, "\(words); the next start makes it again from the files on disk")
        }
        do {
            guard let cache = try RamCacheFiles.open(directory: path, session: record.session, layout: layout) else {
                let (state, text) = missing("is not there, or not of this session")
                add(path, what, state, text)
                return nil
            }
            let marker = cache.marker
            switch marker.state {
            case .applied where marker.epoch == record.epoch, .filled where marker.epoch == record.epoch:
                add(path, what, .good, "holds checkpoint \(record.epoch), \(ByteText.text(cache.takenBytes))")
                return cache
            case .applied where marker.epoch.next == record.epoch, .applying where marker.epoch == record.epoch:
                let isWhole = try RamStaging.replay(
                    directory: path, session: record.session, layout: layout, epoch: record.epoch
                ) { (_, _) throws(RamStoreError) in }
                let (state, text) = missing("holds an earlier epoch, and what leads to the checkpoint is not whole")
                add(
                    path, what, isWhole ? .good : state,
                    isWhole ? "holds epoch \(marker.epoch) and all that leads to checkpoint \(record.epoch)" : text)
            default:
                let (state, text) = missing("holds epoch \(marker.epoch) (\(marker.state)) instead of \(record.epoch)")
                add(path, what, state, text)
            }
        } catch {
            if isNeeded { add(path, what, error) } else { add(path, what, .leftover, "\(error)") }
        }
        return nil
    }

    /// Makes the checkpoint's RAM from the files on disk a second time and compares it, page by page. Needs as much shared
    /// memory as the guest uses; without it nothing is compared.
    private mutating func compare(_ cache: RamCacheFiles, with archive: RamArchive) {
        let what = "RAM cache against disk"
        guard let available = Self.availableMemory(), available > cache.takenBytes + (256 << 20) else {
            return add(
                cache.directory, what, .warning,
                "not compared: that takes \(ByteText.text(cache.takenBytes)) of memory more than this host has to spare"
            )
        }
        // By this name the next daemon deletes what a check that was killed has left.
        let scratch = "\(tmpfs)/cache-check"
        defer { try? RamTmpfs.removeDirectory(scratch) }
        do {
            try RamTmpfs.removeDirectory(scratch)
            let second = try RamCacheFiles.create(
                directory: scratch, session: archive.session, layout: archive.layout, epoch: archive.epoch)
            try archive.rebuild(into: second)
            var different = 0
            var first = ""
            for page in 0..<archive.layout.pageCount {
                let place = archive.layout.location(ofGlobalPage: page)
                let one = cache.pageOrZeroes(place.block, place.page)
                let two = second.pageOrZeroes(place.block, place.page)
                guard memcmp(one, two, Sizes.page) != 0 else { continue }
                different += 1
                if different == 1 {
                    first = "\(archive.layout.blocks[place.block].name) offset \(place.page * UInt64(Sizes.page))"
                }
            }
            guard different == 0 else {
                return add(
                    cache.directory, what, .damaged,
                    "\(different) pages differ from what base and logs lead to, the first: \(first). Delete "
                        + "the folder: the next start makes it again from the files on disk")
            }
            add(cache.directory, what, .good, "all \(archive.layout.pageCount) pages are what base and logs lead to")
        } catch {
            add(cache.directory, what, .warning, "not compared: \(error)")
        }
    }

    /// Bytes that the kernel would give; nil when it does not say.
    private static func availableMemory() -> UInt64? {
        let bytes = AlignedBuffer(minimumCount: 8192)
        guard let file = try? DirectFile(path: "/proc/meminfo", mode: .readOnly, direct: false),
            let count = try? file.readAvailable(at: 0, into: bytes.bytes)
        else { return nil }
        let text = String(decoding: bytes.slice(0, count), as: UTF8.self)
        for line in text.split(separator: "\n") where line.hasPrefix("MemAvailable:") {
            return line.split(separator: " ").dropFirst().first.flatMap { UInt64($0) }.map { $0 << 10 }
        }
        return nil
    }
}
