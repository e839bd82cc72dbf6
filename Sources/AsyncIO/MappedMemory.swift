import CAio
import Glibc
import SystemPackage

/// A file mapped into memory and shared with it (mmap(2) with MAP_SHARED and MAP_NORESERVE).
///
/// On a tmpfs the file is the memory: other processes may map the same file. Touching a hole on a full file system
/// kills the process (SIGBUS), so call ``reserve(offset:length:)`` before the first write to a range whose space
/// matters. The mapping ends when the object dies; the file stays. Confined to one thread, or read by several.
public final class MappedMemory {
    /// The file as it was named.
    public let path: String
    /// The mapped bytes. Writing to a read-only mapping traps.
    public let bytes: UnsafeMutableRawBufferPointer
    private let descriptor: CInt

    /// Makes a sparse file of `size` bytes with permissions 0600 and maps it. The file must not exist.
    public static func create(path: String, size: Int) throws(IOError) -> MappedMemory {
        let descriptor = CInt(
            try checked(Int64(caio_open(path, O_RDWR | O_CREAT | O_EXCL | caio_O_CLOEXEC, 0o600)), "open", path))
        let answer = caio_truncate(descriptor, Int64(size))
        guard answer == 0 else {
            caio_close(descriptor)
            throw IOError(operation: "ftruncate", path: path, errno: Errno(rawValue: -answer))
        }
        return try MappedMemory(path: path, descriptor: descriptor, size: size, writable: true)
    }

    /// Maps all of an existing file. An empty file is an error.
    public static func open(path: String, writable: Bool) throws(IOError) -> MappedMemory {
        let flags = (writable ? O_RDWR : O_RDONLY) | caio_O_CLOEXEC
        let descriptor = CInt(try checked(Int64(caio_open(path, flags, 0)), "open", path))
        var status = stat()
        guard fstat(descriptor, &status) == 0 else {
            let reason = Errno(rawValue: Glibc.errno)
            caio_close(descriptor)
            throw IOError(operation: "fstat", path: path, errno: reason)
        }
        return try MappedMemory(path: path, descriptor: descriptor, size: Int(status.st_size), writable: writable)
    }

    /// Takes the descriptor over; it is closed even when mapping fails.
    private init(path: String, descriptor: CInt, size: Int, writable: Bool) throws(IOError) {
        let protection = writable ? PROT_READ | PROT_WRITE : PROT_READ
        let address =
            size > 0
            ? mmap(nil, size, protection, caio_MAP_SHARED | caio_MAP_NORESERVE, descriptor, 0) : MAP_FAILED
        guard let address, address != MAP_FAILED else {
            let reason = size > 0 ? Errno(rawValue: Glibc.errno) : .invalidArgument
            caio_close(descriptor)
            throw IOError(operation: "mmap", path: path, errno: reason)
        }
        self.path = path
        self.descriptor = descriptor
        self.bytes = UnsafeMutableRawBufferPointer(start: address, count: size)
    }

    deinit {
        munmap(bytes.baseAddress, bytes.count)
        caio_close(descriptor)
    }

    /// Size in bytes.
    public var count: Int { bytes.count }

    /// Gives the range's memory back; it reads as zeroes (fallocate(2) with PUNCH_HOLE). Where the file system cannot,
    /// zeroes are written. Traps when the range does not lie inside.
    public func punchHole(offset: Int, length: Int) throws(IOError) {
        precondition(offset >= 0 && length >= 0 && offset <= count - length)
        guard length > 0 else { return }
        let mode = caio_FALLOC_FL_PUNCH_HOLE | caio_FALLOC_FL_KEEP_SIZE
        let answer = caio_fallocate(descriptor, mode, Int64(offset), Int64(length))
        if answer == -EOPNOTSUPP || answer == -ENOSYS {
            UnsafeMutableRawBufferPointer(rebasing: bytes[offset..<offset + length]).initializeMemory(
                as: UInt8.self, repeating: 0)
            return
        }
        _ = try checked(Int64(answer), "punch hole", path, UInt64(offset))
    }

    /// Takes space for the range now, so that writing to it cannot run out (fallocate(2)). A file system without
    /// fallocate is no error. Traps when the range does not lie inside.
    public func reserve(offset: Int, length: Int) throws(IOError) {
        precondition(offset >= 0 && length >= 0 && offset <= count - length)
        guard length > 0 else { return }
        let answer = caio_fallocate(descriptor, 0, Int64(offset), Int64(length))
        if answer == -EOPNOTSUPP || answer == -ENOSYS { return }
        _ = try checked(Int64(answer), "fallocate", path, UInt64(offset))
    }

    /// Makes all changes durable (msync(2) with MS_SYNC, then fdatasync(2)).
    public func sync() throws(IOError) {
        guard msync(bytes.baseAddress, bytes.count, Int32(MS_SYNC)) == 0 else {
            throw IOError(operation: "msync", path: path, errno: Errno(rawValue: Glibc.errno))
        }
        _ = try checked(Int64(caio_fdatasync(descriptor)), "fdatasync", path)
    }
}
