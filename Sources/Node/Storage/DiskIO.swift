import AsyncIO
import Qcow2

/// All changes that a replicated disk makes to its files go through here: one place that knows whether syncs count.
/// Tests see them, and have them fail, with a ``FileObserver``.
final class DiskIO {
    /// Whether syncs are performed. Without, changes still reach the kernel in order, which a crash of this process
    /// survives, but not one of the machine.
    let durable: Bool

    init(durable: Bool) {
        self.durable = durable
    }

    func create(_ path: String) throws(IOError) -> DirectFile {
        try DirectFile(path: path, mode: .createOrTruncate)
    }

    func truncate(_ file: DirectFile, to size: UInt64) throws(IOError) {
        try file.truncate(to: size)
    }

    /// Lets the file grow to `size` with space behind it, as far as the file system can.
    func grow(_ file: DirectFile, from start: UInt64, to size: UInt64) throws(IOError) {
        if try !file.allocate(at: start, length: size - start) { try file.truncate(to: size) }
    }

    func write(_ file: DirectFile, _ write: FileWrite) throws(IOError) {
        try file.write(at: write.offset, from: write.bytes)
    }

    /// Many small writes, in their order.
    func write(_ file: DirectFile, _ writes: FileWrites) throws(IOError) {
        let outcome: Result<Void, IOError> = writes.bytes.withUnsafeBytes { bytes in
            do throws(IOError) {
                for piece in writes.pieces {
                    try file.write(at: piece.offset, from: UnsafeRawBufferPointer(rebasing: bytes[piece.range]))
                }
                return .success(())
            } catch { return .failure(error) }
        }
        try outcome.get()
    }

    /// Makes the range read as zeroes, without space where the file system or the device can.
    func zero(_ file: DirectFile, at offset: UInt64, length: UInt64) throws(IOError) {
        if try file.punchHole(at: offset, length: length) { return }
        if try file.zeroRange(at: offset, length: length) { return }
        let zeroes = AlignedBuffer(minimumCount: Int(min(length, 1 << 20)))
        var done: UInt64 = 0
        while done < length {
            let count = Int(min(length - done, UInt64(zeroes.count)))
            try file.write(at: offset + done, from: UnsafeRawBufferPointer(zeroes.slice(0, count)))
            done += UInt64(count)
        }
    }

    func sync(_ file: DirectFile) throws(IOError) {
        guard durable else { return }
        try file.sync()
    }

    func syncDirectory(_ path: String) throws(IOError) {
        guard durable else { return }
        try DirectFile.syncDirectory(path)
    }

    func rename(_ from: String, to target: String) throws(IOError) {
        try Directory.rename(from, to: target)
    }

    func remove(_ path: String) throws(IOError) {
        try Directory.removeFile(path)
    }

    /// Makes a file complete under another name, then gives it its own: it is there as a whole, or not at all.
    func createWhole(
        _ name: String, in directory: String, length: UInt64, writes: [FileWrite]
    ) throws(IOError) -> DirectFile {
        let temporary = "\(directory)/\(name)\(DiskFiles.unfinishedSuffix)"
        let path = "\(directory)/\(name)"
        let file = try create(temporary)
        try truncate(file, to: length)
        for part in writes { try write(file, part) }
        try sync(file)
        try rename(temporary, to: path)
        try syncDirectory(directory)
        return try DirectFile(path: path, mode: .readWrite)
    }
}
