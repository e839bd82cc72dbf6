import AsyncIO
import QEMU
import Units

/// Where a starting QEMU takes its state from.
enum RestoreSource: Sendable {
    /// The stream that was made when the checkpoint was applied; the large blocks are mapped.
    case prebuilt([UInt8])
    /// All of RAM goes through the stream.
    case full(FullStream)

    /// Writes everything. Blocks; the caller closes.
    func write(to process: QemuProcess) throws {
        switch self {
        case .prebuilt(let bytes): try bytes.withUnsafeBytes { try process.writeIncoming($0) }
        case .full(let stream): try stream.write { try process.writeIncoming($0) }
        }
    }
}

/// A checkpoint as one stream without anything mapped. RAM is read from the cache's files, a piece at a time; the cache
/// must not change meanwhile.
struct FullStream: Sendable {
    let restore: RestoreStream
    /// The cache file of each block.
    let paths: [String]
    /// Blocks that are zero in a QEMU that was just started: their zero pages are left out.
    let fresh: Set<Int>
    let deviceState: [UInt8]

    private static let pieceBytes = 1 << 20

    /// Hands the stream to `emit`, some MiB at a time.
    func write(_ emit: (UnsafeRawBufferPointer) throws -> Void) throws {
        var out: [UInt8] = []
        out.reserveCapacity(2 * Self.pieceBytes)
        restore.begin(into: &out)
        let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: Self.pieceBytes, alignment: Sizes.page)
        defer { buffer.deallocate() }
        for block in restore.blocks.indices { try write(block, buffer, &out, emit) }
        deviceState.withUnsafeBytes { restore.end(deviceState: $0, into: &out) }
        try out.withUnsafeBytes { try emit($0) }
    }

    private func write(
        _ block: Int, _ buffer: UnsafeMutableRawBufferPointer, _ out: inout [UInt8],
        _ emit: (UnsafeRawBufferPointer) throws -> Void
    ) throws {
        let length = restore.blocks[block].length
        let skipsZeroes = fresh.contains(block)
        // Reading a hole of a file costs nothing, but the holes of a large block are most of it.
        let ranges = skipsZeroes ? try RamTmpfs.dataRanges(of: paths[block], size: length) : [0..<length]
        let file = try DirectFile(path: paths[block], mode: .readOnly, direct: false)
        var isFirst = true
        for range in ranges {
            var offset = range.lowerBound
            while offset < range.upperBound {
                let count = Int(min(UInt64(Self.pieceBytes), range.upperBound - offset))
                let piece = UnsafeMutableRawBufferPointer(rebasing: buffer[..<count])
                try file.read(at: offset, into: piece)
                for start in stride(from: 0, to: count, by: Sizes.page) {
                    let page = UnsafeRawBufferPointer(rebasing: piece[start..<start + Sizes.page])
                    if skipsZeroes, RestoreStream.isZero(page) { continue }
                    restore.append(
                        block: block, page: (offset + UInt64(start)) / UInt64(Sizes.page), contents: page,
                        isFirst: isFirst, into: &out)
                    isFirst = false
                }
                offset += UInt64(count)
                if out.count >= Self.pieceBytes {
                    try out.withUnsafeBytes { try emit($0) }
                    out.removeAll(keepingCapacity: true)
                }
            }
        }
    }
}
