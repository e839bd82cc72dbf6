import AsyncIO
import Qcow2
import Units

/// One file of a chain, read-only. Confined to its chain's thread.
///
/// Memory: 256 KiB of tables, and for compressed images two clusters, each made when it is first needed.
final class ImageLayer {
    let path: String
    let format: ImageFormat
    let file: DirectFile
    /// Bytes of the file.
    let fileLength: UInt64
    /// Size of the disk in bytes, a multiple of 512.
    let size: UInt64
    /// For qcow2 only.
    let reader: ImageReader?
    private lazy var pieces = ImagePieces()
    private lazy var unpacker = ImageUnpacker()
    private lazy var packed = AlignedBuffer(minimumCount: Int(reader?.header.clusterSize ?? 0) + 512)
    private lazy var cluster = AlignedBuffer(minimumCount: Int(reader?.header.clusterSize ?? 0))
    private var preallocated: Bool?
    /// Place of the compressed bytes that are unpacked in `cluster`.
    private var unpackedFrom: ByteRange?

    init(path: String, format: ImageFormat?, direct: Bool) throws(ImageChainError) {
        do throws(IOError) {
            file = try DirectFile(path: path, mode: .readOnly, direct: direct)
            fileLength = try file.size()
        } catch { throw .io(error) }
        self.path = path
        self.format = if let format { format } else { try ImageFormat.guess(file) }
        guard self.format == .qcow2 else {
            reader = nil
            size = (fileLength + 511) / 512 * 512
            return
        }
        let reader = try Self.readHeader(file, fileLength).get()
        self.reader = reader
        size = reader.header.virtualSize
    }

    private static func readHeader(
        _ file: DirectFile, _ fileLength: UInt64
    ) throws(ImageChainError) -> Result<ImageReader, ImageChainError> {
        let start = try head(file, ImageHeader.startBytes)
        do throws(ImageError) {
            let needed = try ImageHeader.bytesNeeded(
                start: UnsafeRawBufferPointer(start.buffer.slice(0, start.count)), fileLength: fileLength)
            let whole: (buffer: AlignedBuffer, count: Int)
            do throws(ImageChainError) { whole = try head(file, needed) } catch { return .failure(error) }
            return .success(
                try ImageReader(
                    headerBytes: UnsafeRawBufferPointer(whole.buffer.slice(0, whole.count)), fileLength: fileLength))
        } catch { return .failure(.image(path: file.path, error)) }
    }

    /// The file's first bytes, fewer of a shorter file.
    private static func head(
        _ file: DirectFile, _ count: Int
    ) throws(ImageChainError) -> (buffer: AlignedBuffer, count: Int) {
        let buffer = AlignedBuffer(minimumCount: count)
        do throws(IOError) {
            return (buffer, try file.readAvailable(at: 0, into: buffer.slice(0, count)))
        } catch { throw .io(error) }
    }

    // MARK: Looking up

    /// What this file alone says about the disk from `offset` on, at most up to `end`. `offset` lies inside of it.
    ///
    /// `findingHoles`: whether holes of a raw file are told apart, which costs system calls.
    func extent(at offset: UInt64, upTo end: UInt64, findingHoles: Bool) throws(ImageChainError) -> ImageExtent {
        guard let reader else { return try rawExtent(offset, min(end, size), findingHoles) }
        var piece = reader.begin(at: offset, upTo: end)
        while true {
            let bytes: UnsafeRawBufferPointer
            do throws(IOError) { bytes = try pieces.bytes(piece.range, of: file) } catch { throw .io(error) }
            do throws(ImageError) {
                switch try reader.resume(piece, bytes: bytes) {
                case .read(let next): piece = next
                case .found(let extent): return extent
                }
            } catch { throw .image(path: path, error) }
        }
    }

    private func rawExtent(
        _ offset: UInt64, _ end: UInt64, _ findingHoles: Bool
    ) throws(ImageChainError) -> ImageExtent {
        guard findingHoles else {
            return ImageExtent(range: ByteRange(offset: offset, length: end - offset), content: .data(offset))
        }
        do throws(IOError) {
            // The last sector may end behind the file.
            guard offset < fileLength, let data = try file.nextData(at: offset) else {
                return ImageExtent(range: ByteRange(offset: offset, length: end - offset), content: .zero(offset))
            }
            if data > offset {
                return ImageExtent(
                    range: ByteRange(offset: offset, length: min(data, end) - offset), content: .zero(offset))
            }
            let stop = min(try file.nextHole(at: offset), end)
            return ImageExtent(range: ByteRange(offset: offset, length: stop - offset), content: .data(offset))
        } catch { throw .io(error) }
    }

    /// Whether most of the clusters that the image has taken have no space on the file system yet, so that it pays to ask
    /// the file system what is zero. QEMU's rule.
    func isPreallocated() throws(ImageChainError) -> Bool {
        guard let reader else { return false }
        if let known = preallocated { return known }
        let real: UInt64
        do throws(IOError) { real = try file.allocatedBytes() >> UInt64(reader.header.clusterBits) } catch {
            throw .io(error)
        }
        var counter = ImageCheck(countingOnly: reader)
        try run(&counter)
        let answer = counter.clustersInUse >= max(real * 10 / 9, real + 2)
        preallocated = answer
        return answer
    }

    /// Performs a check's reads.
    func run(_ check: inout ImageCheck) throws(ImageChainError) {
        var buffer = AlignedBuffer(minimumCount: 65536)
        while true {
            let next: ByteRange?
            do throws(ImageError) { next = try check.next() } catch { throw .image(path: path, error) }
            guard let range = next else { return }
            if UInt64(buffer.count) < range.length { buffer = AlignedBuffer(minimumCount: Int(range.length)) }
            let part = buffer.slice(0, Int(range.length))
            do throws(IOError) { try file.read(at: range.offset, into: part) } catch { throw .io(error) }
            do throws(ImageError) { try check.take(UnsafeRawBufferPointer(part)) } catch {
                throw .image(path: path, error)
            }
        }
    }

    // MARK: Reading

    /// Reads data of an extent; what lies behind the file's end is zero.
    func read(at place: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(ImageChainError) {
        do throws(IOError) {
            let count = try file.readAvailable(at: place, into: buffer)
            if count < buffer.count {
                UnsafeMutableRawBufferPointer(rebasing: buffer[count...]).initializeMemory(
                    as: UInt8.self, repeating: 0)
            }
        } catch { throw .io(error) }
    }

    /// The whole cluster that these bytes of the file give. Valid until the next call.
    func unpack(_ range: ByteRange) throws(ImageChainError) -> UnsafeRawBufferPointer {
        guard let reader else { preconditionFailure("only qcow2 has compressed clusters") }
        let target = cluster.slice(0, Int(reader.header.clusterSize))
        if unpackedFrom == range { return UnsafeRawBufferPointer(target) }
        unpackedFrom = nil
        let source = packed.slice(0, Int(range.length))
        let count: Int
        do throws(IOError) { count = try file.readAvailable(at: range.offset, into: source) } catch { throw .io(error) }
        let read = UnsafeRawBufferPointer(rebasing: source[..<count])
        if let reason = unpacker.unpack(read, into: target, reader.header.compression) {
            throw .image(
                path: path, .badCompression(offset: range.offset, length: range.length, reason: reason))
        }
        unpackedFrom = range
        return UnsafeRawBufferPointer(target)
    }
}

/// Pieces of tables that were read lately: 64 of 4 KiB.
private final class ImagePieces {
    private static let slots = 64
    private let memory = AlignedBuffer(minimumCount: slots * ImageReader.pieceBytes)
    private var ranges = [ByteRange?](repeating: nil, count: slots)

    /// Valid until the next call.
    func bytes(_ range: ByteRange, of file: DirectFile) throws(IOError) -> UnsafeRawBufferPointer {
        let mixed = (range.offset / 512) &* 0x9E37_79B9_7F4A_7C15
        let slot = Int(mixed >> 58)
        let buffer = memory.slice(slot * ImageReader.pieceBytes, Int(range.length))
        if ranges[slot] != range {
            ranges[slot] = nil
            try file.read(at: range.offset, into: buffer)
            ranges[slot] = range
        }
        return UnsafeRawBufferPointer(buffer)
    }
}
