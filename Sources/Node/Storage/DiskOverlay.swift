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
    /// One L2 table, for reading: its index, whether the image has it, its bytes.
    private let table = AlignedBuffer(minimumCount: BlockGeometry.blockSize)
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
        guard reader.header.clusterBits == OverlayWriter.clusterBits else {
            throw .overlay(
                path: file.path,
                .badField(name: "cluster_bits", value: UInt64(reader.header.clusterBits), allowed: "12"))
        }
        self.epoch = epoch
        self.name = DiskFiles.hidden(epoch)
        self.io = io
        self.file = file
        self.writer = writer
        self.fileSize = length
    }

    /// Makes an empty hidden disk over the secondary disk.
    static func create(
        _ epoch: Epoch, in directory: String, size: UInt64, io: DiskIO
    ) throws(DiskReplicaError) -> DiskOverlay {
        let name = DiskFiles.hidden(epoch)
        let writer: OverlayWriter
        let writes: [FileWrite]
        do throws(Qcow2Error) {
            writer = try OverlayWriter(
                virtualSize: size, backingFile: DiskFiles.secondary, backingFormat: .raw)
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

    /// Whether a pre-image of the block is in the file. For hidden disks of this session only.
    func isPreserved(_ block: UInt64) -> Bool { writer?.contains(guestCluster: block) ?? false }

    /// Makes pre-images part of the image; when it returns they are there, durably so where syncs count. After an error
    /// the object must not be used again.
    ///
    /// - Parameters:
    ///   - blocks: blocks with data, rising; `runs` are the places of their contents in `staging`, in the same order.
    ///   - zeroBlocks: blocks that were all zero, rising.
    func preserve(
        blocks: [UInt64], runs: [BlockRun], staging: AlignedBuffer, zeroBlocks: [UInt64]
    ) throws(DiskReplicaError) {
        guard var writer else { preconditionFailure("a hidden disk that was found is only read") }
        let plan: OverlayAllocation
        do throws(Qcow2Error) {
            plan = try writer.plan(data: blocks, zeroes: zeroBlocks)
        } catch { throw .overlay(path: path, error) }
        self.writer = nil
        do throws(IOError) {
            try makeRoom(plan.fileLength)
            var place = plan.dataOffset
            var operations: [AioOperation] = []
            for run in runs {
                let bytes = staging.slice(run.position * BlockGeometry.blockSize, run.count * BlockGeometry.blockSize)
                operations.append(.write(file, at: place, from: UnsafeRawBufferPointer(bytes)))
                place += UInt64(bytes.count)
            }
            try io.write(operations)
            for write in plan.refcountWrites { try io.write(file, write) }
            if !plan.refcountWrites.isEmpty { try io.sync(file) }
            for write in plan.mappingWrites { try io.write(file, write) }
            try io.sync(file)
        } catch { throw .io(error) }
        writer.apply(plan)
        self.writer = writer
        cachedTable = nil
        l1Page = nil
    }

    /// Grows the file ahead of its use, in steps that keep the number of extents and the waste small.
    private func makeRoom(_ needed: UInt64) throws(IOError) {
        guard needed > fileSize else { return }
        let ahead = min(max(needed / 8, 1 << 20), 16 << 20) / 4096 * 4096
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

    /// What the hidden disk holds for a block.
    func lookup(_ block: UInt64) throws(DiskReplicaError) -> OverlayCluster {
        if let writer, !writer.contains(guestCluster: block) { return .unallocated }
        let index = Int(block / reader.entriesPerTable)
        if cachedTable?.index != index {
            cachedTable = nil
            cachedTable = (index, try readTable(index) != nil)
        }
        guard cachedTable?.exists == true else { return .unallocated }
        let entryOffset = Int(block % reader.entriesPerTable) * 8
        let entry = UInt64(bigEndian: table.bytes.loadUnaligned(fromByteOffset: entryOffset, as: UInt64.self))
        do throws(Qcow2Error) {
            return try currentReader().cluster(entry: entry, at: UInt64(entryOffset))
        } catch { throw .overlay(path: path, error) }
    }

    /// Calls `body` for every run of blocks that the file holds, rising.
    func forEachRun(_ body: (OverlayRun) throws(DiskReplicaError) -> Void) throws(DiskReplicaError) {
        for index in 0..<reader.header.l1Entries {
            guard let offset = try readTable(index) else { continue }
            let runs: [OverlayRun]
            do throws(Qcow2Error) {
                runs = try currentReader().runs(
                    table: UnsafeRawBufferPointer(table.bytes), index: index, tableOffset: offset)
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
        do throws(IOError) { try file.read(at: offset, into: table.bytes) } catch { throw .io(error) }
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
