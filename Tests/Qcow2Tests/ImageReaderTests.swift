import Qcow2
import Testing
import Units

/// An image in memory, read through the plans of the reader.
private struct ImageMemory {
    var bytes: [UInt8]

    func reader() throws -> ImageReader {
        try bytes.withUnsafeBytes { bytes in
            let start = UnsafeRawBufferPointer(rebasing: bytes[..<min(ImageHeader.startBytes, bytes.count)])
            let needed = try ImageHeader.bytesNeeded(start: start, fileLength: UInt64(bytes.count))
            #expect(needed <= 2 << 20)
            return try ImageReader(
                headerBytes: UnsafeRawBufferPointer(rebasing: bytes[..<needed]), fileLength: UInt64(bytes.count))
        }
    }

    func slice(_ range: ByteRange) throws -> [UInt8] {
        #expect(range.end <= UInt64(bytes.count), "a plan reads behind the file")
        return Array(bytes[Int(range.offset)..<Int(range.end)])
    }

    /// All extents, as far as `limit` lookups go.
    func extents(limit: Int = 20000) throws -> [ImageExtent] {
        let reader = try reader()
        var offset: UInt64 = 0
        var found: [ImageExtent] = []
        while offset < reader.header.virtualSize, found.count < limit {
            var piece = reader.begin(at: offset)
            lookup: while true {
                #expect(piece.range.length <= UInt64(ImageReader.pieceBytes))
                let plan = try slice(piece.range).withUnsafeBytes { try reader.resume(piece, bytes: $0) }
                switch plan {
                case .read(let next): piece = next
                case .found(let extent):
                    #expect(extent.range.offset == offset && extent.range.length > 0)
                    #expect(extent.range.end <= reader.header.virtualSize)
                    offset = extent.range.end
                    found.append(extent)
                    break lookup
                }
            }
        }
        return found
    }

    func check() throws -> ImageCheckResult {
        var check = ImageCheck(try reader())
        while let range = try check.next() {
            #expect(range.length <= 64 << 20)
            try slice(range).withUnsafeBytes { try check.take($0) }
        }
        return check.result
    }
}

/// An image of the builder with data in some clusters, which hold their own number.
private func built(size: UInt64, clusterBits: Int, clusters: [UInt64]) throws -> ImageMemory {
    var builder = try ImageBuilder(virtualSize: size, clusterBits: clusterBits)
    var memory: [UInt8] = []
    func write(_ offset: UInt64, _ bytes: [UInt8]) {
        let end = Int(offset) + bytes.count
        if memory.count < end { memory.append(contentsOf: repeatElement(0, count: end - memory.count)) }
        memory.replaceSubrange(Int(offset)..<end, with: bytes)
    }
    for cluster in clusters {
        let place = builder.place(cluster: cluster)
        for other in place.writes { write(other.offset, other.bytes) }
        write(place.offset, [UInt8](repeating: UInt8(truncatingIfNeeded: cluster), count: 1 << clusterBits))
    }
    while let other = builder.finish() { write(other.offset, other.bytes) }
    return ImageMemory(bytes: memory)
}

@Suite("Any image, in memory")
struct ImageReaderTests {
    @Test("the reader finds what the builder placed, and the check finds nothing", arguments: [9, 12, 16, 21])
    func builder(clusterBits: Int) throws {
        var random = SplitMix64(seed: UInt64(clusterBits))
        let size = UInt64(40) << UInt64(clusterBits) + 512
        let clusters = (0..<41).filter { _ in random.next() % 2 == 0 }.map { UInt64($0) }
        let image = try built(size: size, clusterBits: clusterBits, clusters: clusters)
        var found: [UInt64] = []
        for extent in try image.extents() {
            guard case .data(let place) = extent.content else {
                #expect(extent.content == .unallocated(nil))
                continue
            }
            let cluster = UInt64(1) << UInt64(clusterBits)
            for step in 0..<(extent.range.length + cluster - 1) / cluster {
                let number = extent.range.offset / cluster + step
                found.append(number)
                #expect(image.bytes[Int(place + step * cluster)] == UInt8(truncatingIfNeeded: number))
            }
        }
        #expect(found == clusters)
        let result = try image.check()
        #expect(result.corruptions == 0 && result.leaks == 0 && result.allocatedClusters == UInt64(clusters.count))
    }

    @Test("an image larger than one L2 table and one refcount block is right, too")
    func large() throws {
        // 512-byte clusters: 64 entries in a table, 256 clusters in a refcount block, 64 blocks in a table's cluster.
        let clusters = (0..<20000).filter { $0 % 3 != 1 }.map { UInt64($0) }
        let image = try built(size: 20000 * 512, clusterBits: 9, clusters: clusters)
        let data = try image.extents().filter { if case .data = $0.content { true } else { false } }
        #expect(data.reduce(0) { $0 + $1.range.length } == UInt64(clusters.count) * 512)
        let result = try image.check()
        #expect(result.corruptions == 0 && result.leaks == 0, "\(result.findings)")
    }

    @Test("it reads the overlays of a replica, whatever their clusters", arguments: [9, 12, 14])
    func overlays(clusterBits: Int) throws {
        var writer = try OverlayWriter(
            virtualSize: 4 << 20, backingFile: "secondary.raw", backingFormat: .raw, clusterBits: clusterBits)
        var file = MemoryFile()
        file.grow(to: writer.fileLength)
        for write in try writer.initialWrites() { file.write(write) }
        let unit = UInt64(writer.unit)
        let data: [UInt64] = [0, 1, 5, 63, 64, 65, 200, (4 << 20) / unit - 1]
        let zeroes: [UInt64] = [7, 8, 130]
        var growth = OverlayGrowth()
        try writer.extend(data: data, zeroes: zeroes, &growth)
        file.grow(to: growth.fileLength)
        for write in growth.refcountWrites.separate + growth.mappingWrites.separate { file.write(write) }
        let image = ImageMemory(bytes: file.bytes)
        let header = try image.reader().header
        #expect(header.backingFile == "secondary.raw" && header.backingFormat == "raw")
        var places: [UInt64: UInt64] = [:]
        var zero: Set<UInt64> = []
        for extent in try image.extents() {
            for number in extent.range.offset / unit..<extent.range.end / unit {
                switch extent.content.advanced(by: number * unit - extent.range.offset) {
                case .data(let place): places[number] = place
                case .zero: zero.insert(number)
                case .unallocated, .compressed: break
                }
            }
        }
        #expect(zero == Set(zeroes))
        #expect(places.keys.sorted() == data)
        for (index, number) in data.enumerated() {
            #expect(places[number] == growth.dataOffset + UInt64(index) * unit)
        }
        #expect(try image.check().corruptions == 0)
    }

    /// One changed field: what the refusal must speak of, offset, new bytes.
    static let hostile: [(name: String, offset: Int, bytes: [UInt8])] = [
        ("not a qcow2", 0, [0x51, 0x46, 0x49, 0]), ("version 4", 4, [0, 0, 0, 4]), ("version 1", 4, [0, 0, 0, 1]),
        ("cluster_bits", 20, [0, 0, 0, 8]), ("cluster_bits", 20, [0, 0, 0, 22]),
        ("cluster_bits", 20, [255, 255, 255, 255]),
        ("l1_size", 24, [0, 0, 0xFF, 0, 0, 0, 0, 0]), ("l1_size", 24, [255, 255, 255, 255, 255, 255, 255, 255]),
        ("l1_size", 36, [0, 0, 0, 0]), ("l1_size", 36, [0x7F, 0, 0, 0]), ("AES", 32, [0, 0, 0, 1]),
        ("LUKS", 32, [0, 0, 0, 2]), ("crypt_method", 32, [0, 0, 0, 3]),
        ("l1_table_offset", 40, [0, 0, 0, 0, 0, 0, 0, 0]), ("l1_table_offset", 40, [0, 0, 0, 0, 0, 0, 0x10, 1]),
        ("l1_table_offset", 40, [255, 255, 255, 255, 255, 255, 0xF0, 0]),
        ("refcount_table_offset", 48, [0, 0, 0, 0x7F, 0, 0, 0, 0]), ("refcount_table_clusters", 56, [0, 0, 0, 0]),
        ("refcount_table_clusters", 56, [255, 0, 0, 0]), ("nb_snapshots", 60, [0, 1, 0, 1]),
        ("snapshots_offset", 60, [0, 0, 0, 1]), ("external data file", 72, [0, 0, 0, 0, 0, 0, 0, 4]),
        ("compression_type", 72, [0, 0, 0, 0, 0, 0, 0, 8]), ("cluster_bits", 72, [0, 0, 0, 0, 0, 0, 0, 16]),
        ("incompatible bit 63", 72, [0x80, 0, 0, 0, 0, 0, 0, 0]), ("refcount_order", 96, [0, 0, 0, 7]),
        ("header_length", 100, [0, 0, 0, 72]), ("header_length", 100, [0, 0, 0, 105]),
        ("header_length", 100, [255, 255, 255, 0xF8]), ("extension", 104, [1, 2, 3, 4, 0x7F, 0, 0, 0]),
        ("backing_file_size", 8, [0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0x7F, 0]),
        ("backing_file_offset", 8, [0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1]),
    ]

    @Test("a hostile header is refused in words that name field and byte", arguments: hostile.indices)
    func hostileHeader(index: Int) throws {
        let (name, offset, bytes) = Self.hostile[index]
        var image = try built(size: 1 << 20, clusterBits: 12, clusters: [0, 1, 2])
        image.bytes.replaceSubrange(offset..<offset + bytes.count, with: bytes)
        let error = #expect(throws: ImageError.self) { _ = try image.extents() }
        let text = error.map(\.description) ?? ""
        #expect(text.contains(name) && (text.contains("byte") || name.contains("not a")), "\(text)")
    }

    @Test("a header cut at any byte is refused")
    func cut() throws {
        let image = try built(size: 1 << 20, clusterBits: 12, clusters: [0])
        for length in 0..<4096 {
            let head = ImageMemory(bytes: Array(image.bytes[..<length]))
            #expect(throws: ImageError.self, "cut at \(length)") { _ = try head.reader() }
        }
    }

    @Test("entries that cannot be right are refused with their place")
    func hostileEntries() throws {
        let image = try built(size: 1 << 20, clusterBits: 12, clusters: [0, 1, 2])
        let header = try image.reader().header
        let first = try image.slice(ByteRange(offset: header.l1.offset, length: 8))
        let table = first.reduce(UInt64(0)) { $0 << 8 | UInt64($1) } & 0x00FF_FFFF_FFFF_FE00
        let copied: UInt64 = 1 << 63
        let compressed: UInt64 = 1 << 62
        let bad: [(UInt64, UInt64, String)] = [
            (header.l1.offset, copied | 0x1200, "between clusters"), (header.l1.offset, 1, "reserved"),
            (header.l1.offset, 1 << 40, "behind the file"), (header.l1.offset, header.l1.offset, "L1 table"),
            (header.l1.offset, 1 << 60 | 0x4000, "reserved"), (table, copied | 0x5200, "between clusters"),
            (table, copied | 0x6002, "reserved"), (table, copied | 1 << 44, "behind the file"),
            (table, header.l1.offset, "L1 table"), (table, header.refcountTable.offset, "refcount table"),
            (table, table, "its own table"), (table, compressed, "into the header"),
            (table, copied | compressed | 0x5000, "copied"), (table, compressed | 1 << 50, "behind the file"),
        ]
        for (place, entry, words) in bad {
            var damaged = image
            for byte in 0..<8 {
                damaged.bytes[Int(place) + byte] = UInt8(truncatingIfNeeded: entry >> UInt64(56 - byte * 8))
            }
            let error = #expect(throws: ImageError.self) { _ = try damaged.extents() }
            let text = error.map(\.description) ?? ""
            #expect(text.contains(words) && text.contains("byte \(place)"), "\(text)")
        }
    }

    @Test("random damage gives a typed error or a read, in bounded steps", arguments: 0..<8)
    func randomDamage(round: Int) throws {
        let image = try built(
            size: 300 * 512, clusterBits: 9, clusters: (0..<300).filter { $0 % 4 != 2 }.map { UInt64($0) })
        var refused = 0
        for step in 0..<150 {
            let seed = UInt64(round * 1000 + step)
            var random = SplitMix64(seed: seed)
            var damaged = image
            for _ in 0..<Int.random(in: 1...5, using: &random) {
                let limit = Bool.random(using: &random) ? 128 : damaged.bytes.count
                damaged.bytes[Int.random(in: 0..<limit, using: &random)] = UInt8.random(in: 0...255, using: &random)
            }
            if Int.random(in: 0..<4, using: &random) == 0 {
                damaged.bytes.removeLast(Int.random(in: 1..<damaged.bytes.count, using: &random))
            }
            do { _ = try damaged.extents() } catch is ImageError { refused += 1 }
            do { _ = try damaged.check() } catch is ImageError {}
        }
        #expect(refused > 20, "round \(round): only \(refused) of 150 were refused")
    }
}
