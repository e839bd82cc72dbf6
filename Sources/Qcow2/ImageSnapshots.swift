import Units

/// An internal snapshot, as the image's list has it.
public struct ImageSnapshot: Equatable, Sendable {
    public var id: String
    public var name: String
    /// Its own L1 table, not checked.
    public var l1Offset: UInt64
    public var l1Entries: Int
    /// Seconds since 1970, and nanoseconds.
    public var seconds: UInt32
    public var nanoseconds: UInt32
    /// Of the guest's clock.
    public var vmClockNanoseconds: UInt64
    /// Bytes of saved memory; 0: the disk only.
    public var vmStateBytes: UInt64
    /// Instructions executed; nil when it is not recorded.
    public var instructions: UInt64?

    /// The list's largest size that is read, in bytes, as in QEMU.
    static let listBytesMax: UInt64 = 64 << 20

    /// Reads a list. `bytes` begin at the list's place; returns nil when there are too few of them.
    static func parse(
        _ bytes: UnsafeRawBufferPointer, count: Int, at place: UInt64
    ) throws(ImageError) -> (list: [ImageSnapshot], length: Int)? {
        let fields = ImageFields(bytes: bytes)
        var list: [ImageSnapshot] = []
        var offset = 0
        for _ in 0..<count {
            guard bytes.count - offset >= 40 else { return nil }
            let extra = Int(fields.u32(offset + 36))
            let idLength = Int(fields.u16(offset + 12))
            let nameLength = Int(fields.u16(offset + 14))
            guard extra <= 1024 else {
                throw .badField(
                    name: "extra_data_size of a snapshot", offset: place + UInt64(offset + 36), value: UInt64(extra),
                    allowed: "0 to 1024")
            }
            let length = 40 + extra + idLength + nameLength
            guard bytes.count - offset >= length else { return nil }
            let texts = offset + 40 + extra
            let id = bytes[texts..<texts + idLength]
            let name = bytes[texts + idLength..<texts + idLength + nameLength]
            list.append(
                ImageSnapshot(
                    id: String(decoding: id, as: UTF8.self), name: String(decoding: name, as: UTF8.self),
                    l1Offset: fields.u64(offset), l1Entries: Int(fields.u32(offset + 8)),
                    seconds: fields.u32(offset + 16), nanoseconds: fields.u32(offset + 20),
                    vmClockNanoseconds: fields.u64(offset + 24),
                    vmStateBytes: extra >= 8 ? fields.u64(offset + 40) : UInt64(fields.u32(offset + 32)),
                    instructions: extra >= 24 ? fields.u64(offset + 56) : nil))
            offset += (length + 7) / 8 * 8
        }
        return (list, offset)
    }
}

/// Reads the list of snapshots: it says which bytes it needs, and needs more when they were too few.
public struct ImageSnapshotReader: Sendable {
    private let place: ImagePlace
    private let fileLength: UInt64
    private var length: UInt64
    /// The list, when it has been read.
    public private(set) var list: [ImageSnapshot]?
    /// Bytes of the list in the file.
    private(set) var listLength: UInt64 = 0

    public init(_ reader: ImageReader) {
        place = reader.header.snapshots
        fileLength = reader.fileLength
        length = 65536
        if place.count == 0 { list = [] }
    }

    /// The bytes to read next; nil when the list is known.
    public func next() -> ByteRange? {
        guard list == nil else { return nil }
        return ByteRange(offset: place.offset, length: min(length, fileLength - place.offset))
    }

    public mutating func take(_ bytes: UnsafeRawBufferPointer) throws(ImageError) {
        if let (list, length) = try ImageSnapshot.parse(bytes, count: place.count, at: place.offset) {
            self.list = list
            listLength = UInt64(length)
            return
        }
        guard UInt64(bytes.count) < min(ImageSnapshot.listBytesMax, fileLength - place.offset) else {
            throw .truncated(
                what: "the list of snapshots", offset: place.offset, needed: UInt64(bytes.count) + 1,
                available: UInt64(bytes.count))
        }
        length *= 2
    }
}

/// A persistent dirty bitmap, as the image's list has it.
public struct ImageBitmap: Equatable, Sendable {
    public var name: String
    /// Bytes of the disk for each bit.
    public var granularity: UInt64
    /// It was being written: its contents do not count.
    public var isInUse: Bool
    /// It is to be recorded into.
    public var isEnabled: Bool
    var tableOffset: UInt64
    var tableEntries: Int

    /// The directory's largest size that is read, in bytes, as in QEMU.
    static let directoryBytesMax: UInt64 = 65535 * 1024

    /// The bytes of the list; nil when there is none. Throws when it cannot be where the header says.
    public static func directory(_ reader: ImageReader) throws(ImageError) -> ByteRange? {
        guard let place = reader.header.bitmaps, place.count > 0 else { return nil }
        guard place.offset % reader.header.clusterSize == 0, place.offset >= reader.header.clusterSize,
            place.length <= directoryBytesMax, let range = ByteRange(checking: place.offset, length: place.length),
            range.end <= reader.fileLength
        else {
            throw .badField(
                name: "bitmap_directory_offset", offset: 0, value: place.offset,
                allowed: "a cluster inside the file, with \(place.length) bytes")
        }
        return range
    }

    public static func parse(
        _ bytes: UnsafeRawBufferPointer, count: Int, at place: UInt64
    ) throws(ImageError) -> [ImageBitmap] {
        let fields = ImageFields(bytes: bytes)
        var list: [ImageBitmap] = []
        var offset = 0
        for _ in 0..<count {
            let available = bytes.count - offset
            let nameLength = available >= 24 ? Int(fields.u16(offset + 18)) : 0
            let extra = available >= 24 ? Int(fields.u32(offset + 20)) : 0
            guard available >= 24 + nameLength + extra else {
                throw .truncated(
                    what: "a bitmap's entry", offset: place + UInt64(offset), needed: UInt64(24 + nameLength + extra),
                    available: UInt64(available))
            }
            let bits = fields.bytes[offset + 17]
            guard bits < 64 else {
                throw .badField(
                    name: "granularity_bits of a bitmap", offset: place + UInt64(offset + 17), value: UInt64(bits),
                    allowed: "9 to 31")
            }
            let flags = fields.u32(offset + 12)
            let name = offset + 24 + extra
            list.append(
                ImageBitmap(
                    name: String(decoding: bytes[name..<name + nameLength], as: UTF8.self),
                    granularity: 1 << UInt64(bits), isInUse: flags & 1 != 0, isEnabled: flags & 2 != 0,
                    tableOffset: fields.u64(offset), tableEntries: Int(fields.u32(offset + 8))))
            offset += (24 + nameLength + extra + 7) / 8 * 8
        }
        return list
    }
}
