import AsyncIO
import Glibc
import RamCache
import Units

/// The files on disk that a commit record vouches for: a base, if there is one, and the logs behind it.
struct RamArchive {
    /// What was read.
    struct Summary: Equatable, Sendable {
        var epochs = 0
        var batches = 0
        var bytes: UInt64 = 0
    }

    let directory: String
    let session: Identifier
    let layout: RamLayout
    /// The epoch to which the files lead.
    let epoch: Epoch
    let files: [RamFileReference]

    private static let pieceBytes = 1 << 20
    private static let windowBytes = 4 << 20

    /// Writes the contents of the epoch into an empty cache, checking every byte on the way.
    @discardableResult
    func rebuild(into cache: RamCacheFiles) throws(RamStoreError) -> Summary {
        try read(into: cache)
    }

    /// Checks every byte of the files without using them.
    @discardableResult
    func verify() throws(RamStoreError) -> Summary { try read(into: nil) }

    private func read(into cache: RamCacheFiles?) throws(RamStoreError) -> Summary {
        var summary = Summary()
        var reached: Epoch?
        let bases = files.filter { $0.kind == .base }
        guard bases.count <= 1 else {
            throw RamStoreError(.incomplete(reason: "\(bases.count) bases are named"), path: directory, epoch: epoch)
        }
        if let base = bases.first {
            try readBase(base, into: cache, &summary)
            reached = base.epoch
        }
        let logs = files.filter { $0.kind == .log }.sorted { $0.epoch < $1.epoch }
        for log in logs {
            if let reached, log.epoch != reached.next {
                throw RamStoreError(
                    .incomplete(reason: "epoch \(reached.next) is missing in front of \(log.name)"), path: directory,
                    epoch: epoch)
            }
            if let end = try readLog(log, isFirst: reached == nil, into: cache, &summary) { reached = end }
        }
        guard reached == epoch else {
            let end = reached.map { "end at epoch \($0)" } ?? "hold no epoch"
            throw RamStoreError(
                .incomplete(reason: "the files of the commit record \(end)"), path: directory, epoch: epoch)
        }
        return summary
    }

    // MARK: Base

    private func readBase(
        _ reference: RamFileReference, into cache: RamCacheFiles?, _ summary: inout Summary
    ) throws(RamStoreError) {
        let sums = try readSums(reference)
        let path = directory + "/" + reference.name
        let file = try open(path, reference, expected: layout.total, exactly: true)
        let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: Self.pieceBytes, alignment: Sizes.page)
        defer { buffer.deallocate() }
        // The file is as sparse as the guest's memory; what was never written is not read.
        var written = try RamTmpfs.dataRanges(of: path, size: layout.total)[...]
        var offset: UInt64 = 0
        while offset < layout.total {
            let count = Int(min(UInt64(Self.pieceBytes), layout.total - offset))
            while let first = written.first, first.upperBound <= offset { written.removeFirst() }
            guard let first = written.first, first.lowerBound < offset + UInt64(count) else {
                try checkHole(sums, path, offset, count, reference.epoch)
                offset += UInt64(count)
                continue
            }
            let piece = UnsafeMutableRawBufferPointer(rebasing: buffer[0..<count])
            try RamStoreError.wrap(reference.epoch) { () throws(IOError) in try file.read(at: offset, into: piece) }
            for start in stride(from: 0, to: count, by: Sizes.page) {
                let page = Int(offset) / Sizes.page + start / Sizes.page
                let contents = UnsafeRawBufferPointer(rebasing: piece[start..<start + Sizes.page])
                let expected = sums.pages[page]
                guard let source = contents.baseAddress, PageDigest.of(source) == expected else {
                    throw damaged(
                        .pageChecksum, path, offset: offset + UInt64(start), value: UInt64(expected),
                        epoch: reference.epoch)
                }
                guard let cache, expected != BaseImageSums.zeroPage else { continue }
                let place = layout.location(ofGlobalPage: page)
                try cache.take(place.block, place.page)
                memcpy(cache.writablePage(place.block, place.page), source, Sizes.page)
            }
            offset += UInt64(count)
        }
        summary.bytes += layout.total
    }

    /// A piece of the base without data: all its pages are zero, and the checksums must say so too.
    private func checkHole(
        _ sums: BaseImageSums, _ path: String, _ offset: UInt64, _ count: Int, _ epoch: Epoch
    ) throws(RamStoreError) {
        let first = Int(offset) / Sizes.page
        for page in first..<first + count / Sizes.page where sums.pages[page] != BaseImageSums.zeroPage {
            throw damaged(
                .pageChecksum, path, offset: UInt64(page) * UInt64(Sizes.page), value: UInt64(sums.pages[page]),
                epoch: epoch)
        }
    }

    private func readSums(_ reference: RamFileReference) throws(RamStoreError) -> BaseImageSums {
        let path = directory + "/" + RamFileReference.sumName(reference.epoch)
        let length = BaseImageSums.fileBytes(pageCount: layout.pageCount)
        let file = try open(path, reference, expected: length, exactly: true)
        let bytes = UnsafeMutableRawBufferPointer.allocate(byteCount: Int(length), alignment: Sizes.page)
        defer { bytes.deallocate() }
        try RamStoreError.wrap(reference.epoch) { () throws(IOError) in try file.read(at: 0, into: bytes) }
        let contents = UnsafeRawBufferPointer(bytes)
        do throws(RamFormatError) {
            let sums = try BaseImageSums(decoding: contents, session: session, layout: layout, epoch: reference.epoch)
            let digest = BaseImageSums.digest(ofFile: contents)
            guard digest == reference.digest else { throw RamFormatError(.digest, offset: 0, value: UInt64(digest)) }
            return sums
        } catch {
            throw RamStoreError(.damaged(error), path: path, epoch: reference.epoch)
        }
    }

    // MARK: Logs

    /// Reads a log up to the length that counts; returns its last epoch, nil when it has none.
    private func readLog(
        _ reference: RamFileReference, isFirst: Bool, into cache: RamCacheFiles?, _ summary: inout Summary
    ) throws(RamStoreError) -> Epoch? {
        let path = directory + "/" + reference.name
        let file = try open(path, reference, expected: reference.length, exactly: false)
        let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: Self.windowBytes, alignment: Sizes.page)
        defer { buffer.deallocate() }
        let decoder = PageBatchDecoder()
        var window = try fill(buffer, file, from: 0, to: reference.length)
        do {
            var reader = try DeltaLogReader(header: window, session: session, layoutDigest: layout.digest)
            guard reader.firstEpoch == reference.epoch else {
                throw RamFormatError(.epoch, offset: 40, value: reader.firstEpoch.rawValue)
            }
            guard reader.beginsSession == isFirst else {
                let reason = isFirst ? "the base in front of \(reference.name) is not named" : "it names two sessions"
                throw RamStoreError(.incomplete(reason: reason), path: directory, epoch: reference.epoch)
            }
            var start: UInt64 = 0
            var last: Epoch?
            while true {
                let used = Int(reader.offset - start)
                if window.count - used < DeltaLogReader.maximumRecordBytes,
                    start + UInt64(window.count) < reference.length
                {
                    start = reader.offset
                    window = try fill(buffer, file, from: start, to: reference.length)
                    continue
                }
                let place = reader.offset
                guard let record = try reader.next(UnsafeRawBufferPointer(rebasing: window[used...])) else { break }
                switch record {
                case .batch(let batch, let batchEpoch):
                    try take(batch, decoder, cache, path, place, batchEpoch)
                    summary.batches += 1
                case .seal(let sealed, _, _, _):
                    last = sealed
                    summary.epochs += 1
                }
            }
            summary.bytes += reference.length
            guard reader.isSealed else {
                throw RamFormatError(.unsealed, offset: reader.offset, epoch: reader.epoch)
            }
            guard reader.epoch == last?.next ?? reference.epoch, reader.chain == reference.digest else {
                throw RamFormatError(.digest, offset: reader.offset, value: UInt64(reader.chain), epoch: last)
            }
            return last
        } catch let error as RamFormatError {
            throw RamStoreError(.damaged(error), path: path, epoch: error.epoch ?? reference.epoch)
        } catch let error as RamStoreError {
            throw error
        } catch {
            preconditionFailure("no other error is thrown above: \(error)")
        }
    }

    private func take(
        _ batch: UnsafeRawBufferPointer, _ decoder: PageBatchDecoder, _ cache: RamCacheFiles?, _ path: String,
        _ offset: UInt64, _ epoch: Epoch
    ) throws(RamStoreError) {
        do throws(RamBatchError) {
            try decoder.prepare(batch, layout: layout)
        } catch {
            throw RamStoreError(
                .damaged(RamFormatError(.batch, offset: offset, epoch: epoch, batch: error)), path: path, epoch: epoch)
        }
        guard let cache else { return }
        var target = RamFillTarget(cache: cache)
        try decoder.apply(to: &target)
    }

    private func fill(
        _ buffer: UnsafeMutableRawBufferPointer, _ file: DirectFile, from start: UInt64, to end: UInt64
    ) throws(RamStoreError) -> UnsafeRawBufferPointer {
        let count = Int(min(UInt64(buffer.count), end - start))
        let part = UnsafeMutableRawBufferPointer(rebasing: buffer[0..<count])
        try RamStoreError.wrap(epoch) { () throws(IOError) in try file.read(at: start, into: part) }
        return UnsafeRawBufferPointer(part)
    }

    /// Opens a file for reading and checks its size against what is expected (at least, or exactly).
    private func open(
        _ path: String, _ reference: RamFileReference, expected: UInt64, exactly: Bool
    ) throws(RamStoreError) -> DirectFile {
        let (file, size) = try RamStoreError.wrap(reference.epoch) { () throws(IOError) in
            let file = try DirectFile(path: path, mode: .readOnly, direct: false)
            return (file, try file.size())
        }
        guard exactly ? size == expected : size >= expected else {
            throw damaged(.length, path, offset: size, value: expected, epoch: reference.epoch)
        }
        return file
    }

    private func damaged(
        _ fault: RamFormatError.Fault, _ path: String, offset: UInt64, value: UInt64, epoch: Epoch
    ) -> RamStoreError {
        let error = RamFormatError(fault, offset: offset, value: value, epoch: epoch)
        return RamStoreError(.damaged(error), path: path, epoch: epoch)
    }
}
