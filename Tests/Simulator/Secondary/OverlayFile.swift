import BlockReplica
import Qcow2
import Units

/// Stands for Node's DiskOverlay: the hidden disk of one epoch.
final class OverlayFile {
    let epoch: Epoch
    let path: String
    private let storage: Storage
    private let durable: Bool
    private var writer: OverlayWriter?
    private var fileSize: Int
    private let reader: OverlayReader

    static func name(_ epoch: Epoch) -> String { "hidden-\(epoch).qcow2" }

    private init(_ epoch: Epoch, path: String, storage: Storage, durable: Bool, writer: OverlayWriter?) throws {
        self.epoch = epoch
        self.path = path
        self.storage = storage
        self.durable = durable
        self.writer = writer
        fileSize = try storage.size(path)
        reader = try Self.reader(storage, path)
    }

    static func reader(_ storage: Storage, _ path: String) throws -> OverlayReader {
        let size = try storage.size(path)
        let head = try storage.read(path, at: 0, count: min(size, Qcow2Header.encodedLength))
        return try head.withUnsafeBytes { try OverlayReader(headerBytes: $0, fileLength: UInt64(size)) }
    }

    static func create(
        _ epoch: Epoch, in folder: String, size: UInt64, storage: Storage, durable: Bool
    ) throws -> OverlayFile {
        let writer = try OverlayWriter(virtualSize: size, backingFile: "secondary.raw", backingFormat: .raw)
        let path = "\(folder)/\(name(epoch))"
        try storage.createWhole(
            path, length: Int(writer.fileLength), writes: try writer.initialWrites(), durable: durable)
        return try OverlayFile(epoch, path: path, storage: storage, durable: durable, writer: writer)
    }

    static func open(_ epoch: Epoch, in folder: String, size: UInt64, storage: Storage) throws -> OverlayFile {
        let file = try OverlayFile(
            epoch, path: "\(folder)/\(name(epoch))", storage: storage, durable: true, writer: nil)
        guard file.reader.header.virtualSize == size else {
            throw StoreModel.Failed("\(file.path) is of another disk")
        }
        return file
    }

    func isPreserved(_ unit: UInt64) -> Bool { writer?.contains(unit) ?? false }

    /// Data, then what makes it part of the image; durable when it returns, where syncs count.
    func preserve(_ batch: DrainBatch, old: UnsafeRawPointer) throws {
        guard var writer else { preconditionFailure("a hidden disk that was found is only read") }
        self.writer = nil
        var growth = OverlayGrowth()
        try writer.extend(data: batch.preImageBlocks, zeroes: batch.zeroPreImageBlocks, &growth)
        if Int(growth.fileLength) > fileSize {
            try storage.grow(path, to: Int(growth.fileLength) + 8192)
            fileSize = Int(growth.fileLength) + 8192
        }
        let mappingFirst = storage.mutation == .mappingBeforeData
        if mappingFirst { try write(growth.mappingWrites) }
        var place = Int(growth.dataOffset)
        for run in batch.preImages {
            let count = run.count * writer.unit
            let start = old + run.position * writer.unit
            try storage.write(path, at: place, Array(UnsafeRawBufferPointer(start: start, count: count)))
            place += count
        }
        try write(growth.refcountWrites)
        if !mappingFirst {
            if durable, !growth.refcountWrites.isEmpty { try storage.sync(path) }
            try write(growth.mappingWrites)
        }
        if durable, storage.mutation != .skipHiddenSync { try storage.sync(path) }
        self.writer = writer
    }

    private func write(_ writes: FileWrites) throws {
        for write in writes.separate { try storage.write(path, at: Int(write.offset), write.bytes) }
    }

    /// Puts a younger hidden disk between this one and the secondary disk.
    func setBackingFile(_ name: String) throws {
        guard var writer else { return }
        let write = try writer.setBackingFile(name, format: .qcow2)
        try storage.write(path, at: Int(write.offset), write.bytes)
        if durable { try storage.sync(path) }
        self.writer = writer
    }

    /// Bytes in a cluster.
    var clusterSize: Int { reader.header.clusterSize }

    func forEachRun(_ body: (OverlayRun) throws -> Void) throws {
        for run in try Self.runs(storage, path, reader) { try body(run) }
    }

    /// Everything that an overlay holds, rising.
    static func runs(_ storage: Storage, _ path: String, _ found: OverlayReader) throws -> [OverlayRun] {
        var reader = found
        reader.fileLength = UInt64(try storage.size(path))
        var runs: [OverlayRun] = []
        for index in 0..<reader.header.l1Entries {
            let place = reader.l1EntryOffset(index)
            let raw = try storage.read(path, at: Int(place), count: 8)
            let entry = raw.reduce(UInt64(0)) { $0 << 8 | UInt64($1) }
            guard let offset = try reader.tableOffset(entry: entry, at: place) else { continue }
            let table = try storage.read(path, at: Int(offset), count: reader.header.clusterSize)
            runs += try table.withUnsafeBytes { try reader.runs(table: $0, index: index, tableOffset: offset) }
        }
        return runs
    }
}

extension Storage {
    /// Stands for DiskIO.createWhole: complete under another name, then under its own.
    func createWhole(_ path: String, length: Int, writes: [FileWrite], durable: Bool) throws {
        let temporary = path + ".new"
        try create(temporary)
        try truncate(temporary, to: length)
        for part in writes { try write(temporary, at: Int(part.offset), part.bytes) }
        if durable { try sync(temporary) }
        try rename(temporary, to: path)
        if durable, mutation != .skipDirectorySync { try syncDirectory(DiskImage.directory(path)) }
    }
}
