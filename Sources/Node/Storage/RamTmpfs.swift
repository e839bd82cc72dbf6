import AsyncIO
import Glibc
import SystemPackage
import Units

/// Directories in shared memory, where anybody may have put something under our name.
///
/// A directory is used only when it is one (no symbolic link), belongs to us and nobody else may enter it; everything
/// below such a directory is then ours.
enum RamTmpfs {
    /// Where guests' RAM is kept unless the operator says otherwise.
    static var defaultBase: String { "/dev/shm/colo-blk-\(geteuid())" }

    /// Makes or checks `base` and the directory `name` in it; returns the path of the latter.
    ///
    /// - Parameter name: must be a ``FileSafeName``; traps otherwise.
    static func prepare(base: String, name: String) throws(RamStoreError) -> String {
        precondition(!name.isEmpty && !name.contains("/") && !name.hasPrefix("."))
        try secure(base)
        let path = base + "/" + name
        try secure(path)
        return path
    }

    /// Makes a directory with mode 0700, or accepts one that is there already and that only we can enter.
    static func secure(_ path: String) throws(RamStoreError) {
        try RamStoreError.wrap { () throws(IOError) in try Directory.create(path) }
        let descriptor = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
        guard descriptor >= 0 else {
            let reason = Glibc.errno
            if reason == ELOOP || reason == ENOTDIR {
                throw RamStoreError(.unsafeDirectory(reason: "it is not a directory"), path: path)
            }
            let error = IOError(operation: "open directory", path: path, errno: Errno(rawValue: reason))
            throw RamStoreError(.io(error), path: path)
        }
        defer { close(descriptor) }
        var status = stat()
        guard fstat(descriptor, &status) == 0 else {
            let error = IOError(operation: "fstat", path: path, errno: Errno(rawValue: Glibc.errno))
            throw RamStoreError(.io(error), path: path)
        }
        guard status.st_uid == geteuid() else {
            throw RamStoreError(.unsafeDirectory(reason: "it belongs to user \(status.st_uid)"), path: path)
        }
        guard status.st_mode & 0o077 == 0 else {
            let mode = String(status.st_mode & 0o7777, radix: 8)
            throw RamStoreError(.unsafeDirectory(reason: "others may enter it (mode \(mode))"), path: path)
        }
    }

    /// Removes a directory and the files in it; one that is missing is no error.
    static func removeDirectory(_ path: String) throws(RamStoreError) {
        guard Directory.exists(path) else { return }
        try RamStoreError.wrap { () throws(IOError) in
            for name in try Directory.names(in: path) { try Directory.removeFile(path + "/" + name) }
        }
        guard rmdir(path) == 0 || Glibc.errno == ENOENT else {
            let error = IOError(operation: "rmdir", path: path, errno: Errno(rawValue: Glibc.errno))
            throw RamStoreError(.io(error), path: path)
        }
    }

    /// The parts of a file that hold data, in bytes (lseek(2) with SEEK_DATA and SEEK_HOLE).
    static func dataRanges(of path: String, size: UInt64) throws(RamStoreError) -> [Range<UInt64>] {
        // <unistd.h> shows these two only to programs that ask for GNU extensions.
        let seekData: CInt = 3
        let seekHole: CInt = 4
        func failure(_ operation: String, _ offset: off_t) -> RamStoreError {
            let reason = Errno(rawValue: Glibc.errno)
            let error = IOError(operation: operation, path: path, offset: UInt64(offset), errno: reason)
            return RamStoreError(.io(error), path: path)
        }
        let descriptor = open(path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC)
        guard descriptor >= 0 else { throw failure("open", 0) }
        defer { close(descriptor) }
        var ranges: [Range<UInt64>] = []
        var offset: off_t = 0
        while offset < off_t(size) {
            let start = lseek(descriptor, offset, seekData)
            if start < 0 && Glibc.errno == ENXIO { break }
            guard start >= 0 else { throw failure("lseek", offset) }
            let end = lseek(descriptor, start, seekHole)
            guard end > start else { throw failure("lseek", start) }
            ranges.append(UInt64(start)..<min(UInt64(end), size))
            offset = end
        }
        return ranges
    }
}
