import AsyncIO
import RamCache
import Units

/// Appends sealed epochs to `ram/delta-N.log` (format: ``DeltaLog``). Confined to the storage thread.
final class RamLog {
    private static let bufferBytes = 1 << 20

    /// The first epoch of the file.
    let firstEpoch: Epoch
    let path: String
    private let file: DirectFile
    private var buffer: [UInt8] = []
    /// Bytes written to the file; those in `buffer` come behind them.
    private var written: UInt64
    /// Bytes up to and with the last seal.
    private(set) var sealedBytes: UInt64
    private var chain: UInt32

    /// Makes an empty log, replacing a file of the same name, which cannot belong to a committed epoch.
    ///
    /// - Parameter beginsSession: it holds the session's first epoch; otherwise it continues another log.
    static func create(
        directory: String, session: Identifier, layout: RamLayout, firstEpoch: Epoch, beginsSession: Bool
    ) throws(RamStoreError) -> RamLog {
        let path = directory + "/" + RamFileReference.logName(firstEpoch)
        return try RamStoreError.wrap(firstEpoch) { () throws(IOError) in
            let file = try DirectFile(path: path, mode: .createOrTruncate, direct: false)
            let header = DeltaLog.header(
                session: session, layoutDigest: layout.digest, firstEpoch: firstEpoch, beginsSession: beginsSession)
            try file.write(at: 0, from: header)
            try file.sync()
            try DirectFile.syncDirectory(directory)
            return RamLog(firstEpoch, path, file, UInt64(header.count), chain: 0)
        }
    }

    /// Opens a log to go on behind what the commit record vouches for; anything behind that is cut.
    /// The file must be at least that long.
    static func open(directory: String, reference: RamFileReference) throws(RamStoreError) -> RamLog {
        let path = directory + "/" + reference.name
        let file = try RamStoreError.wrap { () throws(IOError) in
            try DirectFile(path: path, mode: .readWrite, direct: false)
        }
        try RamStoreError.wrap { () throws(IOError) in
            let size = try file.size()
            precondition(size >= reference.length, "checked before")
            if size > reference.length { try file.truncate(to: reference.length) }
        }
        return RamLog(reference.epoch, path, file, reference.length, chain: reference.digest)
    }

    private init(_ firstEpoch: Epoch, _ path: String, _ file: DirectFile, _ length: UInt64, chain: UInt32) {
        self.firstEpoch = firstEpoch
        self.path = path
        self.file = file
        self.written = length
        self.sealedBytes = length
        self.chain = chain
        buffer.reserveCapacity(Self.bufferBytes + DeltaLogReader.maximumRecordBytes)
    }

    /// What the commit record must say about the file.
    var reference: RamFileReference {
        RamFileReference(kind: .log, epoch: firstEpoch, length: sealedBytes, digest: chain)
    }

    /// Adds a batch.
    ///
    /// - Parameter digest: of the epoch, this batch included.
    func append(_ batch: UnsafeRawBufferPointer, epoch: Epoch, digest: RamEpochDigest) throws(RamStoreError) {
        buffer += DeltaLog.batchHeader(
            epoch: epoch, index: digest.batches - 1, length: batch.count, digest: digest.value)
        buffer.append(contentsOf: batch)
        if buffer.count >= Self.bufferBytes { try flush(epoch) }
    }

    /// Ends the epoch and makes it durable (fdatasync(2)).
    func seal(_ epoch: Epoch, digest: RamEpochDigest) throws(RamStoreError) {
        let next = DeltaLog.chain(after: chain, epoch: epoch, digest: digest)
        buffer += DeltaLog.seal(epoch: epoch, digest: digest, chain: next)
        try flush(epoch)
        try RamStoreError.wrap(epoch) { () throws(IOError) in try file.sync() }
        chain = next
        sealedBytes = written
    }

    /// Takes back everything behind `reference`, which this log had before.
    func cut(to reference: RamFileReference) throws(RamStoreError) {
        precondition(reference.epoch == firstEpoch && reference.length <= sealedBytes)
        buffer.removeAll(keepingCapacity: true)
        try RamStoreError.wrap { () throws(IOError) in try file.truncate(to: reference.length) }
        written = reference.length
        sealedBytes = reference.length
        chain = reference.digest
    }

    private func flush(_ epoch: Epoch) throws(RamStoreError) {
        try RamStoreError.wrap(epoch) { () throws(IOError) in try file.write(at: written, from: buffer) }
        written += UInt64(buffer.count)
        buffer.removeAll(keepingCapacity: true)
    }
}
