import CQcow
import Foundation
import Qcow2
import Testing

/// A small overlay with some clusters of its own, and the numbers of those clusters.
private func sample(
    zeroes: [UInt64] = [7], backingFile: String = "base.raw", clusterBits: Int = 12
) throws -> (file: MemoryFile, data: [UInt64]) {
    var writer = try OverlayWriter(
        virtualSize: 4 << 20, backingFile: backingFile, backingFormat: .raw, clusterBits: clusterBits)
    var file = MemoryFile()
    file.grow(to: writer.fileLength)
    for write in try writer.initialWrites() { file.write(write) }
    let data: [UInt64] = [0, 1, 2, 9, 511, 512, 1023]
    var growth = OverlayGrowth()
    try writer.extend(data: data, zeroes: zeroes, &growth)
    file.grow(to: growth.fileLength)
    for (index, block) in data.enumerated() {
        let bytes = [UInt8](repeating: UInt8(truncatingIfNeeded: block % 250 + 1), count: 4096)
        file.write(FileWrite(offset: growth.dataOffset + UInt64(index) * 4096, bytes: bytes))
    }
    for write in growth.refcountWrites.separate + growth.mappingWrites.separate { file.write(write) }
    return (file, data)
}

/// Everything that an image maps, as the recovery reads it.
private func allRuns(_ file: MemoryFile) throws -> [OverlayRun] {
    try file.bytes.withUnsafeBytes { bytes in
        let reader = try OverlayReader(
            headerBytes: UnsafeRawBufferPointer(rebasing: bytes[..<min(4096, bytes.count)]),
            fileLength: UInt64(bytes.count))
        var runs: [OverlayRun] = []
        for index in 0..<reader.header.l1Entries {
            let place = reader.l1EntryOffset(index)
            let entry = UInt64(bigEndian: bytes.loadUnaligned(fromByteOffset: Int(place), as: UInt64.self))
            guard let table = try reader.tableOffset(entry: entry, at: place) else { continue }
            let slice = UnsafeRawBufferPointer(rebasing: bytes[Int(table)..<Int(table) + reader.header.clusterSize])
            runs += try reader.runs(table: slice, index: index, tableOffset: table)
        }
        return runs
    }
}

@Suite("Reading overlays, ours and hostile ones")
struct OverlayReaderTests {
    @Test("the reader finds exactly what the writer mapped", arguments: 9...12)
    func roundTrip(clusterBits: Int) throws {
        let (file, data) = try sample(clusterBits: clusterBits)
        let cluster = UInt64(1) << UInt64(clusterBits)
        var found: [UInt64] = []
        var zeroes: UInt64 = 0
        for run in try allRuns(file) {
            guard let offset = run.fileOffset else {
                #expect(run.guestCluster * cluster >= 7 * 4096 && (run.guestCluster + run.count) * cluster <= 8 * 4096)
                zeroes += run.count * cluster
                continue
            }
            for step in 0..<run.count {
                let block = (run.guestCluster + step) * cluster / 4096
                if found.last != block { found.append(block) }
                #expect(file.bytes[Int(offset + step * cluster)] == UInt8(truncatingIfNeeded: block % 250 + 1))
            }
        }
        #expect(found == data)
        #expect(zeroes == 4096)
    }

    @Test("a header survives being written and read")
    func header() throws {
        let (file, _) = try sample()
        let header = try file.bytes.withUnsafeBytes {
            try Qcow2Header(parsing: $0, fileLength: UInt64($0.count))
        }
        #expect(header.backingFile == "base.raw")
        #expect(header.backingFormat == .raw)
        #expect(header.virtualSize == 4 << 20)
        #expect(try header.encoded() == Array(file.bytes[..<4096]))
    }

    /// One changed field: offset, new value as bytes, what the refusal must speak of.
    static let hostile: [(name: String, offset: Int, bytes: [UInt8])] = [
        ("not a qcow2", 0, [0x51, 0x46, 0x49, 0x00]), ("version", 4, [0, 0, 0, 2]), ("cluster_bits", 20, [0, 0, 0, 8]),
        ("cluster_bits", 20, [0xFF, 0xFF, 0xFF, 0xFF]), ("disk", 24, [0, 0, 0, 0, 0, 0, 0, 0]),
        ("disk", 24, [0, 0, 0, 0, 0, 0, 2, 1]), ("l1_size", 24, [0, 0, 0xFF, 0, 0, 0, 0, 0]),
        ("encryption", 32, [0, 0, 0, 1]), ("l1_size", 36, [0, 0, 0, 0]), ("l1_size", 36, [0x7F, 0, 0, 0]),
        ("l1_table_offset", 40, [0, 0, 0, 0, 0, 0, 0, 0]), ("l1_table_offset", 40, [0, 0, 0, 0, 0, 0, 0x10, 1]),
        ("l1_table_offset", 40, [0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xF0, 0]),
        ("refcount_table_offset", 48, [0, 0, 0, 0x7F, 0, 0, 0, 0]), ("refcount_table_clusters", 56, [0, 0, 0, 0]),
        ("refcount_table_clusters", 56, [0xFF, 0, 0, 0]), ("snapshots", 60, [0, 0, 0, 1]),
        ("dirty", 72, [0, 0, 0, 0, 0, 0, 0, 1]), ("corrupt", 72, [0, 0, 0, 0, 0, 0, 0, 2]),
        ("extended L2", 72, [0, 0, 0, 0, 0, 0, 0, 16]), ("unknown", 72, [0x80, 0, 0, 0, 0, 0, 0, 0]),
        ("refcount_order", 96, [0, 0, 0, 6]), ("header_length", 100, [0, 0, 0, 72]),
        ("header_length", 100, [0xFF, 0xFF, 0xFF, 0xF8]), ("extension", 108, [0x7F, 0xFF, 0xFF, 0xFF]),
        ("backing format", 112, [0x78, 0x79, 0x7A]), ("backing_file_offset", 8, [0, 0, 0, 0, 0, 0, 0, 1]),
        ("backing_file_offset", 8, [0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF]),
        ("name", 16, [0x7F, 0xFF, 0xFF, 0xFF]), ("backing_file", 256, [0xFF]), ("backing_file", 257, [0]),
    ]

    @Test("a hostile header is refused in words that name the field", arguments: hostile.indices)
    func hostileHeader(index: Int) throws {
        let (name, offset, bytes) = Self.hostile[index]
        var (file, _) = try sample()
        file.bytes.replaceSubrange(offset..<offset + bytes.count, with: bytes)
        let error = #expect(throws: Qcow2Error.self) { _ = try allRuns(file) }
        #expect("\(String(describing: error))".isEmpty == false)
        let text = error.map { $0.description } ?? ""
        #expect(text.contains(name), "\(text)")
    }

    @Test("a header cut at any byte is refused, never read beyond its end")
    func cutHeader() throws {
        let (file, _) = try sample()
        for length in 0..<300 {
            let head = Array(file.bytes[..<length])
            #expect(throws: Qcow2Error.self, "cut at \(length)") {
                try head.withUnsafeBytes { _ = try Qcow2Header(parsing: $0, fileLength: UInt64(length)) }
            }
        }
    }

    @Test("random damage to headers and tables is refused or read, but never traps")
    func randomDamage() throws {
        let seed: UInt64 = 4711
        var random = SplitMix64(seed: seed)
        let (file, _) = try sample()
        var refused = 0
        for _ in 0..<2000 {
            var damaged = file
            for _ in 0..<Int.random(in: 1...6, using: &random) {
                let limit = Bool.random(using: &random) ? 300 : damaged.bytes.count
                damaged.bytes[Int.random(in: 0..<limit, using: &random)] = UInt8.random(in: 0...255, using: &random)
            }
            if (try? allRuns(damaged)) == nil { refused += 1 }
        }
        #expect(refused > 200, "seed \(seed): only \(refused) of 2000 were refused")
    }

    @Test("table entries that point nowhere are refused")
    func hostileEntries() throws {
        let (file, _) = try sample()
        let reader = try file.bytes.withUnsafeBytes {
            try OverlayReader(headerBytes: $0, fileLength: UInt64($0.count))
        }
        let bad: [UInt64] = [0x1000_0001, 1 << 62, 0x200, 1 << 40, UInt64.max, 1 << 60 | 0x2000]
        for entry in bad {
            #expect(throws: Qcow2Error.self) { try reader.tableOffset(entry: entry, at: 0) }
        }
        for entry in bad where entry != 0x1000_0001 {
            #expect(throws: Qcow2Error.self) { try reader.cluster(entry: entry, at: 0) }
        }
        #expect(try reader.cluster(entry: 0, at: 0) == .unallocated)
        #expect(try reader.cluster(entry: 1, at: 0) == .zero)
    }

    @Test("disks that cannot be described are refused")
    func limits() {
        #expect(throws: Qcow2Error.diskTooLarge(size: OverlayWriter.largestDisk + 512, limit: 128 << 40)) {
            _ = try OverlayWriter(
                virtualSize: OverlayWriter.largestDisk + 512, backingFile: "a", backingFormat: .raw)
        }
        #expect(throws: Qcow2Error.badDiskSize(0)) {
            _ = try OverlayWriter(virtualSize: 0, backingFile: "a", backingFormat: .raw)
        }
        #expect(throws: Qcow2Error.badDiskSize(700)) {
            _ = try EmptyOverlay(virtualSize: 700, backingFile: "a", backingFormat: .raw)
        }
        #expect(throws: Qcow2Error.self) {
            _ = try OverlayWriter(
                virtualSize: 512, backingFile: String(repeating: "x", count: 1024), backingFormat: .raw)
        }
    }

    @Test("libqcow, a second independent reader, sees the same data", arguments: [9, 10, 12])
    func secondOpinion(clusterBits: Int) throws {
        let (file, data) = try sample(zeroes: [], backingFile: "", clusterBits: clusterBits)
        let scratch = try Scratch()
        let path = try scratch.file("overlay.qcow2", file.bytes)
        var handle: UnsafeMutablePointer<libqcow_file_t>? = nil
        var reason: UnsafeMutablePointer<libqcow_error_t>? = nil
        #expect(libqcow_file_initialize(&handle, &reason) == 1)
        defer { libqcow_file_free(&handle, nil) }
        #expect(libqcow_file_open(handle, path, libqcow_get_access_flags_read(), &reason) == 1)
        for cluster in data {
            var bytes = [UInt8](repeating: 0, count: 4096)
            let count = libqcow_file_read_buffer_at_offset(handle, &bytes, 4096, off64_t(cluster * 4096), &reason)
            #expect(count == 4096)
            let expected = [UInt8](repeating: UInt8(truncatingIfNeeded: cluster % 250 + 1), count: 4096)
            #expect(bytes == expected, "cluster \(cluster)")
        }
        libqcow_file_close(handle, nil)
    }
}
