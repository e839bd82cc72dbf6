import AsyncIO
import Qcow2
import QEMU
import Units

/// What `colo-blk image info` says about one file of a chain: qemu-img's keys, and libqcow's view beside ours.
public struct ImageInfo: Sendable {
    /// The keys and values that `qemu-img info --output=json` has (QEMU 7.2), and `libqcow`.
    public let json: JSONValue
    /// The same for people.
    public let lines: [String]

    /// Describes every file of a chain, top first. `libqcow`: whether it is asked about qcow2 files, too.
    public static func describe(_ chain: ImageChain, libqcow: Bool) throws(ImageChainError) -> [ImageInfo] {
        var infos: [ImageInfo] = []
        for (index, layer) in chain.layers.enumerated() {
            let below = index + 1 < chain.layers.count ? chain.layers[index + 1] : nil
            infos.append(try ImageInfo(layer, below: below, libqcow: libqcow))
        }
        return infos
    }

    /// JSON text of one file's members, or of an array of them.
    public static func text(_ infos: [ImageInfo], asArray: Bool) throws -> String {
        try JSONText.encode(asArray ? .array(infos.map(\.json)) : infos.first?.json ?? .null)
    }

    private init(_ layer: ImageLayer, below: ImageLayer?, libqcow: Bool) throws(ImageChainError) {
        let actual: UInt64
        do throws(IOError) { actual = try layer.file.allocatedBytes() } catch { throw .io(error) }
        var members: [String: JSONValue] = [
            "filename": .string(layer.path), "format": .string(layer.format.rawValue),
            "virtual-size": .whole(layer.size), "actual-size": .whole(actual), "dirty-flag": false,
        ]
        var lines = [
            "image: \(layer.path)", "file format: \(layer.format.rawValue)",
            "virtual size: \(ByteText.text(layer.size)) (\(layer.size) bytes)", "disk size: \(ByteText.text(actual))",
        ]
        if let reader = layer.reader {
            try Self.add(reader, layer, below, &members, &lines)
            if libqcow {
                let view = LibqcowView(layer, reader)
                members["libqcow"] = view.json
                lines += view.lines
            }
        }
        json = .object(members)
        self.lines = lines
    }

    private static func add(
        _ reader: ImageReader, _ layer: ImageLayer, _ below: ImageLayer?, _ members: inout [String: JSONValue],
        _ lines: inout [String]
    ) throws(ImageChainError) {
        let header = reader.header
        members["dirty-flag"] = .bool(header.isDirty)
        members["cluster-size"] = .whole(header.clusterSize)
        lines.append("cluster size: \(header.clusterSize)")
        if let name = header.backingFile {
            members["backing-filename"] = .string(name)
            lines.append("backing file: \(name)" + (below.map { $0.path == name ? "" : " (\($0.path))" } ?? ""))
            if let below { members["full-backing-filename"] = .string(below.path) }
            if let format = header.backingFormat {
                members["backing-filename-format"] = .string(format)
                lines.append("backing file format: \(format)")
            }
        }
        let snapshots = try layer.snapshots()
        if !snapshots.isEmpty { members["snapshots"] = .array(snapshots.map(json(of:))) }
        for snapshot in snapshots { lines.append("snapshot: \(snapshot.id) \(snapshot.name)") }
        let bitmaps = try layer.bitmaps()
        members["format-specific"] = ["type": "qcow2", "data": specific(header, bitmaps)]
        lines.append("version: \(header.version)")
        if header.version == 3 {
            lines.append("compression type: \(header.compression.name)")
            lines.append("lazy refcounts: \(header.hasLazyRefcounts)")
            lines.append("corrupt: \(header.isMarkedCorrupt)")
            lines.append("dirty: \(header.isDirty)")
            lines.append("extended l2: \(header.hasExtendedL2)")
        }
        lines.append("refcount bits: \(header.refcountBits)")
        for bitmap in bitmaps { lines.append("bitmap: \(bitmap.name), granularity \(bitmap.granularity)") }
    }

    private static func specific(_ header: ImageHeader, _ bitmaps: [ImageBitmap]) -> JSONValue {
        guard header.version == 3 else {
            return [
                "compat": "0.10", "compression-type": .string(header.compression.name),
                "refcount-bits": .whole(UInt64(header.refcountBits)),
            ]
        }
        var data: [String: JSONValue] = [
            "compat": "1.1", "compression-type": .string(header.compression.name),
            "lazy-refcounts": .bool(header.hasLazyRefcounts), "corrupt": .bool(header.isMarkedCorrupt),
            "refcount-bits": .whole(UInt64(header.refcountBits)), "extended-l2": .bool(header.hasExtendedL2),
        ]
        if !bitmaps.isEmpty {
            data["bitmaps"] = .array(
                bitmaps.map { bitmap in
                    var flags: [JSONValue] = []
                    if bitmap.isInUse { flags.append("in-use") }
                    if bitmap.isEnabled { flags.append("auto") }
                    return [
                        "name": .string(bitmap.name), "granularity": .whole(bitmap.granularity),
                        "flags": .array(flags),
                    ]
                })
        }
        return .object(data)
    }

    private static func json(of snapshot: ImageSnapshot) -> JSONValue {
        var members: [String: JSONValue] = [
            "id": .string(snapshot.id), "name": .string(snapshot.name), "date-sec": .whole(UInt64(snapshot.seconds)),
            "date-nsec": .whole(UInt64(snapshot.nanoseconds)), "vm-state-size": .whole(snapshot.vmStateBytes),
            "vm-clock-sec": .whole(snapshot.vmClockNanoseconds / 1_000_000_000),
            "vm-clock-nsec": .whole(snapshot.vmClockNanoseconds % 1_000_000_000),
        ]
        if let count = snapshot.instructions, count != .max { members["icount"] = .whole(count) }
        return .object(members)
    }
}

extension ImageLayer {
    /// The internal snapshots that the image lists.
    func snapshots() throws(ImageChainError) -> [ImageSnapshot] {
        guard let reader else { return [] }
        var list = ImageSnapshotReader(reader)
        while let range = list.next() {
            let buffer = AlignedBuffer(minimumCount: Int(range.length))
            let part = buffer.slice(0, Int(range.length))
            do throws(IOError) { try file.read(at: range.offset, into: part) } catch { throw .io(error) }
            do throws(ImageError) { try list.take(UnsafeRawBufferPointer(part)) } catch {
                throw .image(path: path, error)
            }
        }
        return list.list ?? []
    }

    /// The persistent bitmaps that the image lists.
    func bitmaps() throws(ImageChainError) -> [ImageBitmap] {
        guard let reader, let place = reader.header.bitmaps else { return [] }
        let range: ByteRange?
        do throws(ImageError) { range = try ImageBitmap.directory(reader) } catch { throw .image(path: path, error) }
        guard let range else { return [] }
        let buffer = AlignedBuffer(minimumCount: Int(range.length))
        let part = buffer.slice(0, Int(range.length))
        do throws(IOError) { try file.read(at: range.offset, into: part) } catch { throw .io(error) }
        do throws(ImageError) {
            return try ImageBitmap.parse(UnsafeRawBufferPointer(part), count: place.count, at: range.offset)
        } catch { throw .image(path: path, error) }
    }
}
