import AsyncIO
import Glibc
import Qcow2
import SystemPackage
import Units

/// A piece of the disk of a chain about which one file says one thing.
public struct ImageChainExtent: Equatable, Sendable {
    /// Bytes of the disk.
    public var range: ByteRange
    /// Index of the file that says it; 0 is the top.
    public var depth: Int
    /// It reads as zeroes.
    public var isZero: Bool
    /// A file of the chain holds it, as data or as zeroes; otherwise it is zero because nobody does.
    public var isPresent: Bool
    /// It is data in a compressed cluster.
    public var isCompressed: Bool
    /// Its place in that file, where it has one.
    public var fileOffset: UInt64?
}

/// The disk in an image file, raw or qcow2, and the files below it; read-only.
///
/// Not Sendable: confined to one thread, on which every call blocks until it is done. Each file is checked while it is
/// read, so that a damaged one gives an error where it is damaged. Memory: see ``ImageLayer``; at most 64 files.
public final class ImageChain {
    /// The most files of a chain.
    public static let depthMax = 64

    /// The files, top first.
    let layers: [ImageLayer]
    /// What an operator should know: formats that had to be guessed, marks of damage.
    public let warnings: [String]

    /// Size of the disk in bytes, a multiple of 512.
    public var size: UInt64 { layers[0].size }
    /// The files' paths, top first.
    public var paths: [String] { layers.map(\.path) }

    /// Opens an image and what is below it.
    ///
    /// - Parameters:
    ///   - path: the top file.
    ///   - format: its format; nil: guess it from its first bytes. Never guess for a raw disk that a guest has written:
    ///     it could hold a header that names any file of this host.
    ///   - direct: whether the page cache is left out where the file system can.
    public init(path: String, format: ImageFormat? = nil, direct: Bool = true) throws(ImageChainError) {
        var layers: [ImageLayer] = []
        var warnings: [String] = []
        var seen: Set<FileIdentity> = []
        var next: (path: String, format: ImageFormat?)? = (path, format)
        while let (path, format) = next {
            guard layers.count < Self.depthMax else { throw .tooDeep(path: path, limit: Self.depthMax) }
            let identity = try FileIdentity(path)
            guard seen.insert(identity).inserted else { throw .loop(path: path) }
            let layer = try ImageLayer(path: path, format: format, direct: direct)
            layers.append(layer)
            warnings += Self.marks(layer)
            next = try Self.below(layer, &warnings)
        }
        self.layers = layers
        self.warnings = warnings
    }

    private static func marks(_ layer: ImageLayer) -> [String] {
        guard let header = layer.reader?.header else { return [] }
        var marks: [String] = []
        if header.isMarkedCorrupt {
            marks.append(
                "\(layer.path) is marked as corrupt: what is read may be wrong. Repair it with qemu-img check -r")
        }
        if header.isDirty {
            marks.append(
                "\(layer.path) is marked as dirty (not closed properly): its contents are right, its refcounts may be"
                    + " behind")
        }
        return marks
    }

    /// The file below, as the layer's header names it.
    private static func below(
        _ layer: ImageLayer, _ warnings: inout [String]
    ) throws(ImageChainError) -> (path: String, format: ImageFormat?)? {
        guard let header = layer.reader?.header, let name = header.backingFile else { return nil }
        let path = try BackingPath.resolve(name, from: layer.path)
        guard let format = header.backingFormat else {
            warnings.append(
                "\(layer.path) does not say which format its backing file \(name) has; it is guessed. "
                    + "Set it with qemu-img rebase -u -F")
            return (path, nil)
        }
        // QEMU writes "file" for what is read as it is.
        guard let known = ImageFormat(rawValue: format == "file" ? "raw" : format) else {
            throw .unsupportedFormat(path: path, format: format)
        }
        return (path, known)
    }

    // MARK: Extents

    /// What the chain says from `offset` on; nil at the end of the disk. Neighbours that say the same are not joined.
    ///
    /// `limit`: bytes that matter at most.
    public func nextExtent(at offset: UInt64, limit: UInt64 = .max) throws(ImageChainError) -> ImageChainExtent? {
        guard offset < size, limit > 0 else { return nil }
        return try resolve(offset, offset + min(limit, size - offset), findingHoles: true).extent
    }

    private struct Resolved {
        let extent: ImageChainExtent
        let content: ImageExtent.Content
    }

    private func resolve(
        _ offset: UInt64, _ limit: UInt64, findingHoles: Bool
    ) throws(ImageChainError) -> Resolved {
        var end = limit
        for (depth, layer) in layers.enumerated() {
            let found = try layer.extent(at: offset, upTo: min(end, layer.size), findingHoles: findingHoles)
            end = found.range.end
            var extent = ImageChainExtent(
                range: found.range, depth: depth, isZero: false, isPresent: true, isCompressed: false, fileOffset: nil)
            switch found.content {
            case .unallocated(let place):
                if depth + 1 < layers.count, offset < layers[depth + 1].size { continue }
                extent.isZero = true
                extent.isPresent = false
                extent.fileOffset = place
            case .zero(let place):
                extent.isZero = true
                extent.fileOffset = place
            case .data(let place): extent.fileOffset = place
            case .compressed: extent.isCompressed = true
            }
            return Resolved(extent: extent, content: found.content)
        }
        preconditionFailure("the last file of a chain always answers")
    }

    // MARK: Reading

    /// Fills `buffer` with the disk's bytes from `offset` on; any offset, any length inside the disk. Memory that starts
    /// on 4 KiB, like the offset and the length, goes past the page cache.
    public func read(_ offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(ImageChainError) {
        guard let range = ByteRange(checking: offset, length: UInt64(buffer.count)), range.fits(in: size) else {
            throw .outside(path: layers[0].path, ByteRange(offset: 0, length: UInt64(buffer.count)), size: size)
        }
        var done = 0
        while done < buffer.count {
            let place = offset + UInt64(done)
            let found = try resolve(place, range.end, findingHoles: false)
            let count = Int(found.extent.range.length)
            let part = UnsafeMutableRawBufferPointer(rebasing: buffer[done..<done + count])
            let layer = layers[found.extent.depth]
            switch found.content {
            case .unallocated, .zero: part.initializeMemory(as: UInt8.self, repeating: 0)
            case .data(let position): try layer.read(at: position, into: part)
            case .compressed(let range):
                let cluster = try layer.unpack(range)
                let first = Int(place % UInt64(cluster.count))
                part.copyMemory(from: UnsafeRawBufferPointer(rebasing: cluster[first..<first + count]))
            }
            done += count
        }
    }
}

/// Which file a path leads to.
struct FileIdentity: Hashable {
    let device: UInt64
    let inode: UInt64

    init(_ path: String) throws(ImageChainError) {
        var status = stat()
        guard stat(path, &status) == 0 else {
            throw .io(IOError(operation: "stat", path: path, errno: Errno(rawValue: Glibc.errno)))
        }
        guard status.st_mode & S_IFMT == S_IFREG || status.st_mode & S_IFMT == S_IFBLK else {
            throw .notAFile(path: path)
        }
        device = UInt64(status.st_dev)
        inode = UInt64(status.st_ino)
    }
}

/// Names of backing files.
enum BackingPath {
    /// The path that a header's name means: relative names start at the folder of the file that names them.
    static func resolve(_ name: String, from path: String) throws(ImageChainError) -> String {
        var name = name
        if name.hasPrefix("file:") { name = String(name.dropFirst(5)) }
        if name.hasPrefix("/") { return name }
        if let colon = name.firstIndex(of: ":"), !name[..<colon].contains("/") {
            throw .unsupportedBacking(path: path, name: name)
        }
        guard let slash = path.lastIndex(of: "/") else { return name }
        return String(path[...slash]) + name
    }
}
