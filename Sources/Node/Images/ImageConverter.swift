import AsyncIO
import Glibc
import Qcow2
import SystemPackage
import Units

/// `colo-blk image convert`: a chain becomes one new file, without what is zero.
public struct ImageConverter {
    public struct Refused: Error, CustomStringConvertible {
        public let description: String
    }

    /// What was done.
    public struct Report: Sendable {
        /// Size of the disk in bytes.
        public var size: UInt64 = 0
        /// Bytes that were written as data.
        public var written: UInt64 = 0
    }

    private static let chunk = 2 << 20
    /// Zeroes are told apart in raw files in steps of this.
    private static let block = 4096

    private let chain: ImageChain
    private let target: String
    private let format: ImageFormat
    /// Called with the bytes of the disk that are done, and its size.
    public var progress: ((UInt64, UInt64) -> Void)?

    /// - Throws: ``Refused`` when the target is part of the source, in a store, or no regular file.
    public init(_ chain: ImageChain, to target: String, format: ImageFormat) throws {
        self.chain = chain
        self.target = target
        self.format = format
        if let store = try ImagePlaceInStore.find(target) {
            throw Refused(
                description: "\(target) is in the store \(store.store)"
                    + (store.isInUse ? ", which is in use" : "") + ": nothing is written there. Name another file")
        }
        guard Directory.exists(target) else { return }
        let identity = try FileIdentity(target)
        for path in chain.paths where try FileIdentity(path) == identity {
            throw Refused(description: "\(target) is part of the source (\(path)). Name another file")
        }
        var status = stat()
        guard stat(target, &status) == 0, status.st_mode & S_IFMT == S_IFREG else {
            throw Refused(description: "\(target) is no regular file; only files are written")
        }
    }

    /// Writes the new file beside its place and gives it its name when it is whole and durable; a file that had the name
    /// before is replaced.
    public func run() throws -> Report {
        let temporary = "\(target).converting-\(getpid())"
        do {
            let file = try DirectFile(path: temporary, mode: .create)
            let report = try format == .raw ? writeRaw(file) : writeQcow2(file)
            try Directory.rename(temporary, to: target)
            let folder = target.lastIndex(of: "/").map { String(target[...$0]) } ?? "."
            try DirectFile.syncDirectory(folder)
            return report
        } catch {
            unlink(temporary)
            throw error
        }
    }

    /// Calls `body` with pieces of the disk that may not be zero, at most a chunk, starting on a multiple of `step`.
    private func forEachPiece(
        step: UInt64, _ body: (UInt64, UnsafeMutableRawBufferPointer) throws -> Void
    ) throws {
        let buffer = AlignedBuffer(minimumCount: Self.chunk)
        var offset: UInt64 = 0
        while offset < chain.size {
            progress?(offset, chain.size)
            if let extent = try chain.nextExtent(at: offset), extent.isZero {
                let end = extent.range.end == chain.size ? chain.size : extent.range.end / step * step
                if end > offset {
                    offset = end
                    continue
                }
            }
            let count = min(UInt64(Self.chunk), chain.size - offset)
            let part = buffer.slice(0, Int(count))
            try chain.read(offset, into: part)
            try body(offset, part)
            offset += count
        }
        progress?(chain.size, chain.size)
    }

    private func writeRaw(_ file: DirectFile) throws -> Report {
        var report = Report(size: chain.size)
        try file.truncate(to: chain.size)
        try forEachPiece(step: UInt64(Self.block)) { offset, bytes in
            try forEachRun(bytes, step: Self.block) { range in
                try file.write(
                    at: offset + UInt64(range.lowerBound), from: UnsafeRawBufferPointer(rebasing: bytes[range]))
                report.written += UInt64(range.count)
            }
        }
        try file.sync()
        return report
    }

    private func writeQcow2(_ file: DirectFile) throws -> Report {
        var report = Report(size: chain.size)
        var builder = try ImageBuilder(virtualSize: chain.size)
        let cluster = Int(builder.clusterSize)
        let padded = AlignedBuffer(minimumCount: cluster)
        try forEachPiece(step: builder.clusterSize) { offset, bytes in
            for start in stride(from: 0, to: bytes.count, by: cluster) {
                var data = UnsafeRawBufferPointer(
                    rebasing: bytes[start..<min(start + cluster, bytes.count)])
                if Self.isZero(data) { continue }
                if data.count < cluster {
                    padded.bytes.initializeMemory(as: UInt8.self, repeating: 0)
                    padded.bytes.copyMemory(from: data)
                    data = UnsafeRawBufferPointer(padded.slice(0, cluster))
                }
                let place = builder.place(cluster: (offset + UInt64(start)) / builder.clusterSize)
                for write in place.writes { try file.write(at: write.offset, from: write.bytes) }
                try file.write(at: place.offset, from: data)
                report.written += UInt64(cluster)
            }
        }
        while let write = builder.finish() {
            if write.offset == 0 { try file.sync() }
            try file.write(at: write.offset, from: write.bytes)
        }
        try file.sync()
        return report
    }

    /// Calls `body` with the longest runs of steps that are not all zero.
    private func forEachRun(
        _ bytes: UnsafeMutableRawBufferPointer, step: Int, _ body: (Range<Int>) throws -> Void
    ) throws {
        var start: Int?
        for position in stride(from: 0, to: bytes.count, by: step) {
            let end = min(position + step, bytes.count)
            if Self.isZero(UnsafeRawBufferPointer(rebasing: bytes[position..<end])) {
                if let first = start { try body(first..<position) }
                start = nil
            } else if start == nil {
                start = position
            }
        }
        if let first = start { try body(first..<bytes.count) }
    }

    /// Whether all bytes are zero (memcmp(3) of the bytes with themselves, shifted by one).
    private static func isZero(_ bytes: UnsafeRawBufferPointer) -> Bool {
        guard let start = bytes.baseAddress, bytes.count > 0 else { return true }
        return bytes[0] == 0 && memcmp(start, start + 1, bytes.count - 1) == 0
    }
}
