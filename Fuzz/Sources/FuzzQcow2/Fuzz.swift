import Qcow2
import Units

// ImageUnpacker.swift beside this file is a link to Node's own: what is fuzzed is what runs.

/// A file in memory, read as a chain reads one: only what a plan asks for, and nothing behind the end.
private struct File {
    let bytes: UnsafeRawBufferPointer

    func slice(_ range: ByteRange) -> UnsafeRawBufferPointer {
        precondition(range.end <= UInt64(bytes.count), "a plan reads behind the file")
        return UnsafeRawBufferPointer(rebasing: bytes[Int(range.offset)..<Int(range.end)])
    }

    func reader() throws(ImageError) -> ImageReader {
        let start = UnsafeRawBufferPointer(rebasing: bytes[..<min(ImageHeader.startBytes, bytes.count)])
        let needed = try ImageHeader.bytesNeeded(start: start, fileLength: UInt64(bytes.count))
        precondition(needed <= min(2 << 20, bytes.count), "a header asks for too much")
        return try ImageReader(
            headerBytes: UnsafeRawBufferPointer(rebasing: bytes[..<needed]), fileLength: UInt64(bytes.count))
    }
}

/// Lookups for one input at most: a damaged size may be enormous.
private let lookupsMax = 2000
// libFuzzer calls from one thread.
nonisolated(unsafe) private let cluster = UnsafeMutableRawBufferPointer.allocate(byteCount: 2 << 20, alignment: 4096)

private func lookUp(_ reader: ImageReader, _ file: File, _ offset: UInt64, _ end: UInt64) throws(ImageError)
    -> ImageExtent
{
    var piece = reader.begin(at: offset, upTo: end)
    while true {
        precondition(piece.range.length <= UInt64(ImageReader.pieceBytes))
        switch try reader.resume(piece, bytes: file.slice(piece.range)) {
        case .read(let next): piece = next
        case .found(let extent):
            precondition(extent.range.offset == offset && extent.range.length > 0 && extent.range.end <= end)
            return extent
        }
    }
}

/// Reads as ImageChain does: down the files where one says nothing, unpacking what is compressed.
private func walk(_ files: [(File, ImageReader)], _ unpacker: ImageUnpacker) throws(ImageError) {
    let size = files[0].1.header.virtualSize
    var offset: UInt64 = 0
    var unpacked = 0
    for _ in 0..<lookupsMax where offset < size {
        var end = size
        for (file, reader) in files {
            guard offset < reader.header.virtualSize else { break }
            let extent = try lookUp(reader, file, offset, min(end, reader.header.virtualSize))
            end = extent.range.end
            switch extent.content {
            case .unallocated: continue
            case .zero: break
            case .data(let place):
                precondition(place < reader.fileLength && place >= reader.header.clusterSize)
            case .compressed(let range):
                precondition(range.length <= reader.header.clusterSize + 512)
                unpacked += Int(reader.header.clusterSize)
                guard unpacked < 16 << 20 else { return }
                let target = UnsafeMutableRawBufferPointer(rebasing: cluster[..<Int(reader.header.clusterSize)])
                _ = unpacker.unpack(file.slice(range), into: target, reader.header.compression)
            }
            break
        }
        precondition(end > offset)
        offset = end
    }
}

private func check(_ file: File, _ reader: ImageReader) throws(ImageError) {
    var check = ImageCheck(reader)
    var reads = 0
    while let range = try check.next() {
        reads += 1
        guard reads < lookupsMax else { return }
        try check.take(file.slice(range))
    }
    precondition(check.result.findings.count <= 100)
}

private func snapshots(_ file: File, _ reader: ImageReader) throws(ImageError) {
    var list = ImageSnapshotReader(reader)
    while let range = list.next() { try list.take(file.slice(range)) }
    precondition(list.list?.count == reader.header.snapshots.count)
}

/// The hidden disks' own reader; what it accepts, the general one reads alike.
private func overlay(_ file: File) {
    let head = UnsafeRawBufferPointer(rebasing: file.bytes[..<min(4096, file.bytes.count)])
    guard let reader = try? OverlayReader(headerBytes: head, fileLength: UInt64(file.bytes.count)) else { return }
    let tableBytes = UInt64(reader.header.clusterSize)
    for index in 0..<min(reader.header.l1Entries, 512) {
        let place = reader.l1EntryOffset(index)
        let word = file.slice(ByteRange(offset: place, length: 8)).loadUnaligned(as: UInt64.self)
        guard let found = try? reader.tableOffset(entry: UInt64(bigEndian: word), at: place) else { continue }
        let table = file.slice(ByteRange(offset: found, length: tableBytes))
        guard let runs = try? reader.runs(table: table, index: index, tableOffset: found) else { continue }
        for run in runs {
            precondition(run.count > 0 && run.guestCluster + run.count <= reader.guestClusters)
            if let offset = run.fileOffset { precondition(offset + run.count * tableBytes <= reader.fileLength) }
        }
    }
}

/// The first byte chooses: bit 0 mends magic and version, bit 1 cuts the bytes into two files of a chain.
@_cdecl("LLVMFuzzerTestOneInput")
public func fuzz(_ start: UnsafePointer<UInt8>, _ count: Int) -> CInt {
    guard count > 72 else { return 0 }
    var bytes = Array(UnsafeBufferPointer(start: start + 1, count: count - 1))
    if start[0] & 1 != 0 {
        bytes.replaceSubrange(0..<4, with: [0x51, 0x46, 0x49, 0xFB])
        bytes.replaceSubrange(4..<8, with: [0, 0, 0, 2 + (bytes[7] & 1)])
    }
    let unpacker = ImageUnpacker()
    bytes.withUnsafeBytes { all in
        let cut = start[0] & 2 != 0 ? all.count / 2 / 512 * 512 : all.count
        let parts = [all[..<cut], all[cut...]].map { File(bytes: UnsafeRawBufferPointer(rebasing: $0)) }
        overlay(parts[0])
        var files: [(File, ImageReader)] = []
        for file in parts where file.bytes.count > 72 {
            do throws(ImageError) {
                let reader = try file.reader()
                files.append((file, reader))
            } catch { precondition(!error.description.isEmpty) }
        }
        for (file, reader) in files {
            do throws(ImageError) { try check(file, reader) } catch { precondition(!error.description.isEmpty) }
            do throws(ImageError) { try snapshots(file, reader) } catch { precondition(!error.description.isEmpty) }
        }
        guard !files.isEmpty else { return }
        do throws(ImageError) { try walk(files, unpacker) } catch { precondition(!error.description.isEmpty) }
    }
    return 0
}
