import CAio
import Glibc
import SystemPackage

/// A regular file or a block device for data: opened with O_DIRECT where that means something, buffered where it does
/// not: a file in tmpfs is in memory already.
///
/// Transfers whose offset, length and memory are all multiples of 4 KiB go past the page cache; all others (the last
/// block of an odd-sized disk, headers in unaligned memory) take a second, buffered descriptor of the same file, which
/// the kernel keeps coherent. Confined to one thread. The descriptors are closed when the object dies.
public final class DirectFile {
    /// How a file is opened.
    public enum Mode: Sendable {
        /// It must exist; writing fails.
        case readOnly
        /// It must exist.
        case readWrite
        /// It must not exist; it is made empty with permissions 0600.
        case create
        /// It is made empty with permissions 0600, or emptied when it exists.
        case createOrTruncate
    }

    /// The file as it was named when it was opened.
    public let path: String
    /// Whether aligned transfers go past the page cache.
    public let isDirect: Bool
    private let directDescriptor: CInt
    private let bufferedDescriptor: CInt
    /// Sees each call on this file before it is made; nil but in tests.
    let observer: (any FileObserver)?

    /// Opens a file (open(2)). With `direct` false the page cache is always used.
    public init(path: String, mode: Mode, direct: Bool = true) throws(IOError) {
        var flags = caio_O_CLOEXEC
        let observer = FileObservation.observer(of: path)
        if let observer, mode == .create || mode == .createOrTruncate { try observer.willPerform(.create(path: path)) }
        switch mode {
        case .readOnly: flags |= O_RDONLY
        case .readWrite: flags |= O_RDWR
        case .create: flags |= O_RDWR | O_CREAT | O_EXCL
        case .createOrTruncate: flags |= O_RDWR | O_CREAT | O_TRUNC
        }
        let buffered = CInt(try checked(Int64(caio_open(path, flags, 0o600)), "open", path))
        let reopen = (flags & ~(O_CREAT | O_EXCL | O_TRUNC)) | caio_O_DIRECT
        let isMemory = caio_is_memory_file_system(buffered) != 0
        let opened = direct && !isMemory ? caio_open(path, reopen, 0) : -1
        self.path = path
        self.observer = observer
        self.bufferedDescriptor = buffered
        self.isDirect = opened >= 0
        self.directDescriptor = opened >= 0 ? opened : buffered
    }

    deinit {
        if isDirect { caio_close(directDescriptor) }
        caio_close(bufferedDescriptor)
    }

    /// The descriptor that a transfer of these bytes must use.
    @inline(__always)
    func descriptor(offset: UInt64, buffer: UnsafeRawBufferPointer) -> CInt {
        guard isDirect else { return bufferedDescriptor }
        let address = UInt(bitPattern: buffer.baseAddress)
        let mixed = UInt64(address) | offset | UInt64(buffer.count)
        return mixed & UInt64(AlignedBuffer.alignment - 1) == 0 ? directDescriptor : bufferedDescriptor
    }

    // MARK: Bytes

    /// Fills `buffer` from `offset` (pread(2), repeated until full). A file that ends before is an error.
    public func read(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(IOError) {
        let count = try readAvailable(at: offset, into: buffer)
        guard count == buffer.count else {
            throw IOError(operation: "pread", path: path, offset: offset + UInt64(count), errno: .noData)
        }
    }

    /// Reads until `buffer` is full or the file ends; returns the number of bytes read.
    public func readAvailable(
        at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer
    ) throws(IOError) -> Int {
        if let observer { try observer.willPerform(.read(path: path, offset: offset, length: buffer.count)) }
        var done = 0
        while done < buffer.count {
            let rest = UnsafeMutableRawBufferPointer(rebasing: buffer[done...])
            let place = offset + UInt64(done)
            let source = descriptor(offset: place, buffer: UnsafeRawBufferPointer(rest))
            let answer = caio_pread(source, rest.baseAddress, rest.count, try position(place, "pread"))
            let count = try checked(answer, "pread", path, place)
            if count == 0 { break }
            done += count
        }
        return done
    }

    /// Writes all of `buffer` at `offset` (pwrite(2), repeated until done).
    public func write(at offset: UInt64, from buffer: UnsafeRawBufferPointer) throws(IOError) {
        if let observer { try observer.willPerform(.write(path: path, offset: offset, bytes: buffer)) }
        var done = 0
        while done < buffer.count {
            let rest = UnsafeRawBufferPointer(rebasing: buffer[done...])
            let place = offset + UInt64(done)
            let target = descriptor(offset: place, buffer: rest)
            let answer = caio_pwrite(target, rest.baseAddress, rest.count, try position(place, "pwrite"))
            let count = try checked(answer, "pwrite", path, place)
            guard count > 0 else { throw IOError(operation: "pwrite", path: path, offset: place, errno: .ioError) }
            done += count
        }
    }

    /// Writes all of `bytes` at `offset`.
    public func write(at offset: UInt64, from bytes: [UInt8]) throws(IOError) {
        // Typed throws do not cross withUnsafeBytes of every library version; the outcome is carried out by hand.
        let outcome: Result<Void, IOError> = bytes.withUnsafeBytes { buffer in
            do throws(IOError) {
                try write(at: offset, from: buffer)
                return .success(())
            } catch { return .failure(error) }
        }
        try outcome.get()
    }

    // MARK: Space

    /// Whether it is a block device, whose size does not change.
    public var isBlockDevice: Bool { caio_block_device_size(bufferedDescriptor) != -Int64(ENOTBLK) }

    /// Size in bytes (fstat(2); ioctl(2) with BLKGETSIZE64 of a block device).
    public func size() throws(IOError) -> UInt64 {
        let device = caio_block_device_size(bufferedDescriptor)
        if device != -Int64(ENOTBLK) { return UInt64(try checked(device, "BLKGETSIZE64", path)) }
        var status = stat()
        guard fstat(bufferedDescriptor, &status) == 0 else {
            throw IOError(operation: "fstat", path: path, errno: Errno(rawValue: Glibc.errno))
        }
        return UInt64(status.st_size)
    }

    /// Bytes that the file occupies on its file system, holes left out (fstat(2)); all of a block device.
    public func allocatedBytes() throws(IOError) -> UInt64 {
        if isBlockDevice { return try size() }
        var status = stat()
        guard fstat(bufferedDescriptor, &status) == 0 else {
            throw IOError(operation: "fstat", path: path, errno: Errno(rawValue: Glibc.errno))
        }
        return UInt64(status.st_blocks) * 512
    }

    /// Cuts the file or lets it grow with a hole (ftruncate(2)).
    public func truncate(to size: UInt64) throws(IOError) {
        let length = try position(size, "ftruncate")
        if let observer { try observer.willPerform(.truncate(path: path, size: size)) }
        _ = try checked(Int64(caio_truncate(bufferedDescriptor, length)), "ftruncate", path, size)
    }

    /// Gives the range's space back; it reads as zeroes (fallocate(2) with PUNCH_HOLE and KEEP_SIZE). Returns false,
    /// with nothing done, where the file system cannot.
    public func punchHole(at offset: UInt64, length: UInt64) throws(IOError) -> Bool {
        if let observer { try observer.willPerform(.zero(path: path, offset: offset, length: length)) }
        return try allocateOrDecline(
            mode: caio_FALLOC_FL_PUNCH_HOLE | caio_FALLOC_FL_KEEP_SIZE, offset, length, "punch hole")
    }

    /// First byte at or behind `offset` that may hold data (lseek(2) with SEEK_DATA); nil when there is only a hole up to
    /// the end. A file system that does not tell says that everything is data.
    public func nextData(at offset: UInt64) throws(IOError) -> UInt64? {
        let answer = caio_next_data(bufferedDescriptor, try position(offset, "lseek"))
        if answer == -Int64(ENXIO) { return nil }
        if answer == -Int64(EINVAL) || answer == -Int64(EOPNOTSUPP) { return offset < (try size()) ? offset : nil }
        return UInt64(try checked(answer, "lseek", path, offset))
    }

    /// First byte at or behind `offset` that is in a hole, or the end of the file (lseek(2) with SEEK_HOLE). A file system
    /// that does not tell says that there is none.
    public func nextHole(at offset: UInt64) throws(IOError) -> UInt64 {
        let answer = caio_next_hole(bufferedDescriptor, try position(offset, "lseek"))
        if [-Int64(ENXIO), -Int64(EINVAL), -Int64(EOPNOTSUPP)].contains(answer) { return try size() }
        return UInt64(try checked(answer, "lseek", path, offset))
    }

    /// Makes the range read as zeroes and keeps its space (fallocate(2) with ZERO_RANGE). Returns false, with nothing
    /// done, where the file system cannot.
    public func zeroRange(at offset: UInt64, length: UInt64) throws(IOError) -> Bool {
        if let observer { try observer.willPerform(.zero(path: path, offset: offset, length: length)) }
        return try allocateOrDecline(mode: caio_FALLOC_FL_ZERO_RANGE, offset, length, "zero range")
    }

    /// Reserves space for the range and lets the file grow to its end (fallocate(2)). Returns false, with nothing
    /// done, where the file system cannot.
    public func allocate(at offset: UInt64, length: UInt64) throws(IOError) -> Bool {
        if let observer { try observer.willPerform(.allocate(path: path, offset: offset, length: length)) }
        return try allocateOrDecline(mode: 0, offset, length, "fallocate")
    }

    private func allocateOrDecline(
        mode: CInt, _ offset: UInt64, _ length: UInt64, _ operation: String
    ) throws(IOError) -> Bool {
        guard length > 0 else { return true }
        let answer = caio_fallocate(
            bufferedDescriptor, mode, try position(offset, operation), try position(length, operation))
        if answer == -EOPNOTSUPP || answer == -ENOSYS { return false }
        _ = try checked(Int64(answer), operation, path, offset)
        return true
    }

    /// Lets the file, which must be empty, share all blocks of another one of this length (ioctl_ficlone(2)). Returns
    /// false, with nothing done, where the file system cannot, or the files lie on different ones.
    public func clone(from source: String, length: UInt64) throws(IOError) -> Bool {
        // A call that an observer does not know is not made in front of it.
        guard observer == nil else { return false }
        let file = try DirectFile(path: source, mode: .readOnly, direct: false)
        guard try file.size() == length, caio_clone(bufferedDescriptor, file.bufferedDescriptor) == 0 else {
            return false
        }
        return true
    }

    // MARK: Durability

    /// Makes everything written durable, and the size (fdatasync(2)).
    public func sync() throws(IOError) {
        if let observer { try observer.willPerform(.sync(path: path)) }
        _ = try checked(Int64(caio_fdatasync(bufferedDescriptor)), "fdatasync", path)
    }

    /// Makes the names in a directory durable (fsync(2) of the directory).
    public static func syncDirectory(_ path: String) throws(IOError) {
        try FileObservation.announce(.syncDirectory(path: path), of: path)
        let directory = CInt(
            try checked(Int64(caio_open(path, O_RDONLY | O_DIRECTORY | caio_O_CLOEXEC, 0)), "open directory", path))
        defer { caio_close(directory) }
        _ = try checked(Int64(caio_fsync(directory)), "fsync of directory", path)
    }

    @inline(__always)
    private func position(_ offset: UInt64, _ operation: @autoclosure () -> String) throws(IOError) -> Int64 {
        guard let value = Int64(exactly: offset) else {
            throw IOError(operation: operation(), path: path, offset: offset, errno: .invalidArgument)
        }
        return value
    }
}
