import AsyncIO
import BlockReplica
import Qcow2
import Units

/// A hidden disk: the qcow2 file with the pre-images of one epoch, being filled, or found by a recovery.
///
/// Confined to the storage thread.
final class DiskOverlay {
    let epoch: Epoch
    let name: String
    private let io: DiskIO
    private let file: DirectFile
    private let reader: OverlayReader
    /// Nil for a file that was found: it is only read.
    private var writer: OverlayWriter?
    private var fileSize: UInt64
    /// What the last batch of pre-images needs; kept for its memory.
    private var growth = OverlayGrowth()
    /// One L2 table, for reading: its index, whether the image has it, its bytes.
    private let table: AlignedBuffer
    private var cachedTable: (index: Int, exists: Bool)?
    /// One page of the L1 table, for reading, and which one it is.
    private let l1 = AlignedBuffer(minimumCount: BlockGeometry.blockSize)
    private var l1Page: Int?

    var path: String { file.path }

    // MARK: Making and finding

    private init(
        epoch: Epoch, io: DiskIO, file: DirectFile, writer: OverlayWriter?, size: UInt64
    ) throws(DiskReplicaError) {
        let head = AlignedBuffer(minimumCount: Qcow2Header.encodedLength)
        let length: UInt64
        let count: Int
        do throws(IOError) {
            length = try file.size()
            count = try file.readAvailable(at: 0, into: head.bytes)
        } catch { throw .io(error) }
        do throws(Qcow2Error) {
            reader = try OverlayReader(headerBytes: UnsafeRawBufferPointer(head.slice(0, count)), fileLength: length)
        } catch { throw .overlay(path: file.path, error) }
        guard reader.header.virtualSize == size else {
            throw .sizeMismatch(path: file.path, found: reader.header.virtualSize, expected: size)
        }
        table = AlignedBuffer(minimumCount: reader.header.clusterSize)
        self.epoch = epoch
        self.name = DiskFiles.hidden(epoch)
        self.io = io
        self.file = file
        self.writer = writer
        self.fileSize = length
    }

    /// Makes an empty hidden disk over the secondary disk.
    static func create(
        _ epoch: Epoch, in directory: String, size: UInt64, clusterBits: Int, io: DiskIO
    ) throws(DiskReplicaError) -> DiskOverlay {
        let name = DiskFiles.hidden(epoch)
        let writer: OverlayWriter
        let writes: [FileWrite]
        do throws(Qcow2Error) {
            writer = try OverlayWriter(
                virtualSize: size, backingFile: DiskFiles.secondary, backingFormat: .raw, clusterBits: clusterBits)
            writes = try writer.initialWrites()
        } catch { throw .overlay(path: "\(directory)/\(name)", error) }
        let file: DirectFile
        do throws(IOError) {
            file = try io.createWhole(name, in: directory, length: writer.fileLength, writes: writes)
        } catch { throw .io(error) }
        return try DiskOverlay(epoch: epoch, io: io, file: file, writer: writer, size: size)
    }

    /// Opens a hidden disk of an earlier session for reading; everything in it is checked.
    static func open(
        _ epoch: Epoch, in directory: String, size: UInt64, io: DiskIO
    ) throws(DiskReplicaError) -> DiskOverlay {
        let file: DirectFile
        do throws(IOError) {
            file = try DirectFile(path: "\(directory)/\(DiskFiles.hidden(epoch))", mode: .readOnly)
        } catch { throw .io(error) }
        return try DiskOverlay(epoch: epoch, io: io, file: file, writer: nil, size: size)
    }

    // MARK: Filling

    /// Whether a pre-image of the unit is in the file, or on its way there. For hidden disks of this session only.
    @inline(__always)
    func isPreserved(_ unit: UInt64) -> Bool { writer?.contains(unit) ?? false }

    /// Begins to make a batch's pre-images part of the image: what is written in parallel is on its way afterwards.
    /// After an error the object must not be used again.
    func beginPreserving(_ batch: DrainBatch, staging: AlignedBuffer, _ transfers: AioBatch) throws(DiskReplicaError) {
        guard var writer else { preconditionFailure("a hidden disk that was found is only read") }
        self.writer = nil
        do throws(Qcow2Error) {
            try writer.extend(data: batch.preImageBlocks, zeroes: batch.zeroPreImageBlocks, &growth)
        } catch { throw .overlay(path: path, error) }
        do throws(IOError) { try makeRoom(growth.fileLength) } catch { throw .io(error) }
        var place = growth.dataOffset
        transfers.begin(file, .write)
        for run in batch.preImages {
            let bytes = staging.slice(run.position * writer.unit, run.count * writer.unit)
            transfers.add(at: place, UnsafeRawBufferPointer(bytes))
            place += UInt64(bytes.count)
        }
        transfers.start()
        self.writer = writer
    }

    /// Ends what ``beginPreserving(_:staging:_:)`` began; when it returns the pre-images are part of the image, durably
    /// so where syncs count. After an error the object must not be used again.
    func endPreserving(_ transfers: AioBatch) throws(DiskReplicaError) {
        do throws(IOError) {
            try io.write(file, growth.refcountWrites)
            try transfers.finish()
            if !growth.refcountWrites.isEmpty { try io.sync(file) }
            try io.write(file, growth.mappingWrites)
            try io.sync(file)
        } catch {
            writer = nil
            throw .io(error)
        }
        cachedTable = nil
        l1Page = nil
    }

    /// Grows the file ahead of its use, in steps that keep the number of extents small: submitting a write that makes a
    /// file grow blocks until it is done. A file in memory has no such trouble.
    private func makeRoom(_ needed: UInt64) throws(IOError) {
        guard needed > fileSize else { return }
        guard file.isDirect else {
            try io.truncate(file, to: needed)
            fileSize = needed
            return
        }
        let ahead = min(max(needed / 4, 1 << 20), 32 << 20) / 4096 * 4096
        do throws(IOError) {
            try io.grow(file, from: fileSize, to: needed + ahead)
            fileSize = needed + ahead
        } catch  where error.isNoSpace {
            try io.grow(file, from: fileSize, to: needed)
            fileSize = needed
        } catch { throw error }
    }

    /// Puts a younger hidden disk between this one and the secondary disk.
    func setBackingFile(_ name: String) throws(DiskReplicaError) {
        guard var writer else { return }
        let write: FileWrite
        do throws(Qcow2Error) {
            write = try writer.setBackingFile(name, format: .qcow2)
        } catch { throw .overlay(path: path, error) }
        do throws(IOError) {
            try io.write(file, write)
            try io.sync(file)
        } catch { throw .io(error) }
        self.writer = writer
    }

    // MARK: Reading

    /// What the hidden disk holds for a block of 4 KiB. Clusters of less hold a block in one piece, or the file is not
    /// ours.
    func lookup(_ block: UInt64) throws(DiskReplicaError) -> OverlayCluster {
        let start = block * UInt64(BlockGeometry.blockSize)
        if let writer, !writer.contains(start / UInt64(writer.unit)) { return .unallocated }
        let bits = UInt64(reader.header.clusterBits)
        let cluster = start >> bits
        let found = try lookup(cluster: cluster)
        if bits >= 12 {
            guard case .data(let place) = found else { return found }
            return .data(place + start % (1 << bits))
        }
        let last = min((start + UInt64(BlockGeometry.blockSize) - 1) >> bits, reader.guestClusters - 1)
        for index in 0..<last - cluster + 1 {
            var expected = found
            if case .data(let place) = found { expected = .data(place + index << bits) }
            guard try lookup(cluster: cluster + index) == expected else {
                throw .overlay(
                    path: path,
                    .badEntry(
                        table: "L2", offset: cluster + index, value: start, reason: "a block of 4 KiB is in pieces"))
            }
        }
        return found
    }

    private func lookup(cluster: UInt64) throws(DiskReplicaError) -> OverlayCluster {
        let index = Int(cluster / reader.entriesPerTable)
        if cachedTable?.index != index {
            cachedTable = nil
            cachedTable = (index, try readTable(index) != nil)
        }
        guard cachedTable?.exists == true else { return .unallocated }
        let entryOffset = Int(cluster % reader.entriesPerTable) * 8
        let entry = UInt64(bigEndian: table.bytes.loadUnaligned(fromByteOffset: entryOffset, as: UInt64.self))
        do throws(Qcow2Error) {
            return try currentReader().cluster(entry: entry, at: UInt64(entryOffset))
        } catch { throw .overlay(path: path, error) }
    }

    /// Bytes in a cluster.
    var clusterSize: UInt64 { UInt64(reader.header.clusterSize) }

    /// Calls `body` for every run of clusters that the file holds, rising.
    func forEachRun(_ body: (OverlayRun) throws(DiskReplicaError) -> Void) throws(DiskReplicaError) {
        for index in 0..<reader.header.l1Entries {
            guard let offset = try readTable(index) else { continue }
            let runs: [OverlayRun]
            do throws(Qcow2Error) {
                runs = try currentReader().runs(
                    table: UnsafeRawBufferPointer(table.slice(0, reader.header.clusterSize)), index: index,
                    tableOffset: offset)
            } catch { throw .overlay(path: path, error) }
            for run in runs { try body(run) }
        }
    }

    /// Reads data that an entry points to.
    func readData(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(IOError) {
        try file.read(at: offset, into: buffer)
    }

    /// Bytes that the file occupies.
    func allocatedBytes() throws(IOError) -> UInt64 { try file.allocatedBytes() }

    private func currentReader() -> OverlayReader {
        var reader = reader
        reader.fileLength = fileSize
        return reader
    }

    /// Reads an L2 table into `table`; returns its place, or nil when the image has none.
    private func readTable(_ index: Int) throws(DiskReplicaError) -> UInt64? {
        cachedTable = nil
        let place = reader.l1EntryOffset(index)
        let entry = try l1Entry(index)
        let offset: UInt64?
        do throws(Qcow2Error) {
            offset = try currentReader().tableOffset(entry: entry, at: place)
        } catch { throw .overlay(path: path, error) }
        guard let offset else { return nil }
        do throws(IOError) {
            try file.read(at: offset, into: table.slice(0, reader.header.clusterSize))
        } catch { throw .io(error) }
        return offset
    }

    /// L1 entries are read 512 at a time.
    private func l1Entry(_ index: Int) throws(DiskReplicaError) -> UInt64 {
        let page = index / 512
        if l1Page != page {
            l1Page = nil
            l1.bytes.initializeMemory(as: UInt8.self, repeating: 0)
            let start = reader.l1EntryOffset(page * 512)
            do throws(IOError) {
                _ = try file.readAvailable(at: start, into: l1.bytes)
            } catch { throw .io(error) }
            l1Page = page
        }
        return UInt64(bigEndian: l1.bytes.loadUnaligned(fromByteOffset: index % 512 * 8, as: UInt64.self))
    }
}
