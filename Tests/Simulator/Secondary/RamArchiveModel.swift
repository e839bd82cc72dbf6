import RamCache
import Units

/// Stands for Node's RamArchive: makes the cache again from what the commit record vouches for, checking every byte.
struct RamArchiveModel {
    let storage: Storage
    let session: Identifier
    let layout: RamLayout
    let epoch: Epoch
    let files: [RamFileReference]

    func rebuild(into cache: CacheDirectory) throws {
        var reached: Epoch?
        let bases = files.filter { $0.kind == .base }
        guard bases.count <= 1 else { throw StoreModel.Failed("\(bases.count) bases are named") }
        if let base = bases.first {
            try readBase(base, into: cache)
            reached = base.epoch
        }
        for log in files.filter({ $0.kind == .log }).sorted(by: { $0.epoch < $1.epoch }) {
            if let reached, log.epoch != reached.next {
                throw StoreModel.Failed("epoch \(reached.next) is missing in front of \(log.name)")
            }
            if let end = try readLog(log, isFirst: reached == nil, into: cache) { reached = end }
        }
        guard reached == epoch else { throw StoreModel.Failed("the RAM files do not lead to epoch \(epoch)") }
    }

    private func readBase(_ reference: RamFileReference, into cache: CacheDirectory) throws {
        let sumBytes = try storage.readAll("ram/" + RamFileReference.sumName(reference.epoch))
        let sums = try sumBytes.withUnsafeBytes {
            try BaseImageSums(decoding: $0, session: session, layout: layout, epoch: reference.epoch)
        }
        guard sumBytes.withUnsafeBytes({ BaseImageSums.digest(ofFile: $0) }) == reference.digest else {
            throw StoreModel.Failed("the checksums of \(reference.name) are not those of the record")
        }
        let bytes = try storage.readAll("ram/" + reference.name)
        guard bytes.count == Int(layout.total) else { throw StoreModel.Failed("\(reference.name) has another length") }
        for page in 0..<layout.pageCount {
            let contents = bytes[page * Sizes.page..<(page + 1) * Sizes.page]
            let target = UnsafeMutableRawBufferPointer(start: cache.ram.base + page * Sizes.page, count: Sizes.page)
            target.copyBytes(from: contents)
            guard CRC32C.checksum(UnsafeRawBufferPointer(target)) == sums.pages[page] else {
                throw StoreModel.Failed("page \(page) of \(reference.name) is damaged")
            }
        }
    }

    private func readLog(_ reference: RamFileReference, isFirst: Bool, into cache: CacheDirectory) throws -> Epoch? {
        let bytes = try storage.read("ram/" + reference.name, at: 0, count: Int(reference.length))
        let decoder = PageBatchDecoder()
        return try bytes.withUnsafeBytes { window -> Epoch? in
            var reader = try DeltaLogReader(header: window, session: session, layoutDigest: layout.digest)
            guard reader.firstEpoch == reference.epoch, reader.beginsSession == isFirst else {
                throw StoreModel.Failed("\(reference.name) does not belong where it is named")
            }
            var last: Epoch?
            while let record = try reader.next(UnsafeRawBufferPointer(rebasing: window[Int(reader.offset)...])) {
                switch record {
                case .batch(let batch, _):
                    try decoder.prepare(batch, layout: layout)
                    var target = FillTarget(cache: cache, layout: layout)
                    decoder.apply(to: &target)
                case .seal(let sealed, _, _, _):
                    last = sealed
                }
            }
            guard reader.isSealed, reader.chain == reference.digest else {
                throw StoreModel.Failed("\(reference.name) does not end with the seal of the record")
            }
            return last
        }
    }
}
