import AsyncIO
import Foundation

/// A sparse file in memory, cheap to copy.
struct ModelFile: Equatable {
    static let chunkSize = 4096
    private static let sector = 512

    private(set) var size = 0
    /// Chunks that may hold something else than zeroes. Nothing in them lies behind the size.
    private var chunks: [Int: [UInt8]] = [:]

    /// Reads a real file.
    init(contentsOf path: String) throws {
        let bytes = try Data(contentsOf: URL(fileURLWithPath: path))
        write(at: 0, [UInt8](bytes))
    }

    init() {}

    var bytes: [UInt8] {
        var bytes = [UInt8](repeating: 0, count: size)
        for (index, chunk) in chunks {
            let start = index * Self.chunkSize
            let count = min(Self.chunkSize, size - start)
            bytes.replaceSubrange(start..<start + count, with: chunk[..<count])
        }
        return bytes
    }

    /// Writes; `mask` says which of the touched sectors take it, nil all of them. The size grows behind the last one.
    mutating func write(at offset: Int, _ bytes: [UInt8], sectors mask: ((Int) -> Bool)? = nil) {
        pieces(offset..<offset + bytes.count, mask) { file, chunk, within, from in
            file.chunks[chunk, default: Self.empty].replaceSubrange(within, with: bytes[from..<from + within.count])
        }
    }

    /// Makes a range zero, inside the size.
    mutating func zero(_ range: Range<Int>, sectors mask: ((Int) -> Bool)? = nil) {
        pieces(range.clamped(to: 0..<size), mask) { file, chunk, within, _ in
            guard file.chunks[chunk] != nil else { return }
            if within.count == Self.chunkSize {
                file.chunks[chunk] = nil
            } else {
                file.chunks[chunk]?.replaceSubrange(within, with: repeatElement(0, count: within.count))
            }
        }
    }

    mutating func resize(to newSize: Int) {
        if newSize < size {
            for chunk in chunks.keys where (chunk + 1) * Self.chunkSize > newSize {
                let kept = max(newSize - chunk * Self.chunkSize, 0)
                if kept == 0 {
                    chunks[chunk] = nil
                } else {
                    chunks[chunk]?.replaceSubrange(kept..., with: repeatElement(0, count: Self.chunkSize - kept))
                }
            }
        }
        size = newSize
    }

    /// Makes the real file.
    func materialise(at path: String) throws {
        let file = try DirectFile(path: path, mode: .createOrTruncate, direct: false)
        if size > 0 { try file.truncate(to: UInt64(size)) }
        for (index, chunk) in chunks {
            let start = index * Self.chunkSize
            let count = min(Self.chunkSize, size - start)
            try file.write(at: UInt64(start), from: count == chunk.count ? chunk : Array(chunk[..<count]))
        }
    }

    private static let empty = [UInt8](repeating: 0, count: chunkSize)

    /// Calls the body for each part of the range that lies within one chunk and that survives.
    private mutating func pieces(
        _ range: Range<Int>, _ mask: ((Int) -> Bool)?,
        _ body: (inout ModelFile, _ chunk: Int, _ within: Range<Int>, _ from: Int) -> Void
    ) {
        var place = range.lowerBound
        while place < range.upperBound {
            let unit = mask == nil ? Self.chunkSize : Self.sector
            let end = min((place / unit + 1) * unit, range.upperBound)
            if mask?(place / Self.sector) ?? true {
                let start = place / Self.chunkSize * Self.chunkSize
                size = max(size, end)
                body(&self, place / Self.chunkSize, place - start..<end - start, place - range.lowerBound)
            }
            place = end
        }
    }
}
