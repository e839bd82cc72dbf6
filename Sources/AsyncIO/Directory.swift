import Glibc
import SystemPackage

/// Names in a directory: what the store needs beside its data.
public enum Directory {
    /// Makes a directory with permissions 0700 (mkdir(2)); one that is there already is kept as it is.
    public static func create(_ path: String) throws(IOError) {
        try FileObservation.announce(.makeDirectory(path: path), of: path)
        guard mkdir(path, 0o700) == 0 || Glibc.errno == EEXIST else {
            throw IOError(operation: "mkdir", path: path, errno: Errno(rawValue: Glibc.errno))
        }
    }

    /// The names in a directory, sorted, without `.` and `..` (readdir(3)).
    public static func names(in path: String) throws(IOError) -> [String] {
        guard let stream = opendir(path) else {
            throw IOError(operation: "opendir", path: path, errno: Errno(rawValue: Glibc.errno))
        }
        defer { closedir(stream) }
        var names: [String] = []
        while let entry = readdir(stream) {
            let name = withUnsafePointer(to: &entry.pointee.d_name) { pointer in
                pointer.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
            }
            if name != "." && name != ".." { names.append(name) }
        }
        return names.sorted()
    }

    /// The directory that a path is in; `.` for a name alone.
    public static func parent(of path: String) -> String {
        guard let slash = path.lastIndex(of: "/") else { return "." }
        return slash == path.startIndex ? "/" : String(path[..<slash])
    }

    /// Whether something has this name (access(2)).
    public static func exists(_ path: String) -> Bool { access(path, F_OK) == 0 }

    /// Removes a file (unlink(2)); one that is missing is no error.
    public static func removeFile(_ path: String) throws(IOError) {
        try FileObservation.announce(.remove(path: path), of: path)
        guard unlink(path) == 0 || Glibc.errno == ENOENT else {
            throw IOError(operation: "unlink", path: path, errno: Errno(rawValue: Glibc.errno))
        }
    }

    /// Removes a directory that is empty (rmdir(2)); one that is missing is no error.
    public static func remove(_ path: String) throws(IOError) {
        try FileObservation.announce(.removeDirectory(path: path), of: path)
        guard rmdir(path) == 0 || Glibc.errno == ENOENT else {
            throw IOError(operation: "rmdir", path: path, errno: Errno(rawValue: Glibc.errno))
        }
    }

    /// Makes a symbolic link (symlink(2)).
    public static func link(_ path: String, to target: String) throws(IOError) {
        guard symlink(target, path) == 0 else {
            throw IOError(operation: "symlink", path: path, errno: Errno(rawValue: Glibc.errno))
        }
    }

    /// What a symbolic link names (readlink(2)); nil for anything else.
    public static func linkTarget(_ path: String) -> String? {
        let target = [UInt8](unsafeUninitializedCapacity: Int(PATH_MAX)) { bytes, count in
            count = bytes.baseAddress.map { max(readlink(path, $0, bytes.count), 0) } ?? 0
        }
        return target.isEmpty ? nil : String(decoding: target, as: UTF8.self)
    }

    /// Gives a file another name, replacing what had it (rename(2)).
    public static func rename(_ from: String, to target: String) throws(IOError) {
        try FileObservation.announce(.rename(from: from, to: target), of: target)
        guard Glibc.rename(from, target) == 0 else {
            throw IOError(operation: "rename", path: from, errno: Errno(rawValue: Glibc.errno))
        }
    }
}
