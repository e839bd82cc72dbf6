import AsyncIO
import Checkpointer
import Glibc
import Units

/// A store's folder, locked for this process. See docs/store-format.md.
final class Store: Sendable {
    struct Failed: Error, CustomStringConvertible {
        let description: String
    }

    let directory: String
    let description: StoreDescription
    private let lock: FileLock

    /// Names must fit into the path of a unix socket below /dev/shm.
    static let guestNameMax = 40
    static let guestNameRule = "1 to \(guestNameMax) of A-Z a-z 0-9 . _ - with a letter, digit or _ first"

    static func isGuestName(_ name: String) -> Bool {
        FileSafeName.isValid(name) && name.utf8.count <= guestNameMax && !reserved.contains(name)
    }

    /// What stands beside the guests' folders.
    private static let reserved: Set<String> = [StoreDescription.fileName, "lock", "control.sock"]

    private init(directory: String, description: StoreDescription, lock: FileLock) {
        self.directory = directory
        self.description = description
        self.lock = lock
    }

    /// Opens and locks a store; makes one where the folder is missing or empty.
    static func open(directory: String) throws -> Store {
        if !Directory.exists(directory) { try makePath(directory) }
        let info = "\(directory)/\(StoreDescription.fileName)"
        let names = try Directory.names(in: directory)
        if !names.contains(StoreDescription.fileName) {
            guard names.allSatisfy({ $0 == "lock" }) else {
                throw Failed(
                    description: "\(directory) is not empty and no colo-blk store; name an empty or a new folder")
            }
        }
        guard chmod(directory, 0o700) == 0 else {
            throw Failed(description: "\(directory): \(String(cString: strerror(errno)))")
        }
        let lock = try lockFile(directory)
        if !names.contains(StoreDescription.fileName) {
            var random = SystemRandomNumberGenerator()
            let temporary = "\(directory)/lock.info"
            try WholeFile.write(temporary, StoreDescription(id: Identifier(using: &random)).encode(), durable: true)
            try Directory.rename(temporary, to: info)
            try DirectFile.syncDirectory(directory)
        }
        return Store(directory: directory, description: try describe(directory, info), lock: lock)
    }

    private static func lockFile(_ directory: String) throws -> FileLock {
        do {
            return try FileLock(path: "\(directory)/lock")
        } catch {
            guard error.isLocked else { throw error }
            throw Failed(
                description:
                    "store \(directory) is in use by another colo-blk process; use its verbs (status, failover), "
                    + "or stop it first")
        }
    }

    private static func describe(_ directory: String, _ info: String) throws -> StoreDescription {
        let bytes = try WholeFile.read(info, limit: StoreDescription.lengthMax)
        do {
            return try StoreDescription.decode(bytes)
        } catch {
            throw Failed(description: "\(directory)/\(error)")
        }
    }

    private static func makePath(_ path: String) throws {
        var built = path.hasPrefix("/") ? "" : "."
        for part in path.split(separator: "/") {
            built += "/\(part)"
            if !Directory.exists(built) { try Directory.create(built) }
        }
    }

    var controlPath: String { "\(directory)/control.sock" }

    /// The folder of a replica in shared memory: short, since sockets live in it.
    static func ramFolderName(_ store: Identifier, _ guest: String) -> String { "\(store.hex.prefix(8))-\(guest)" }

    func guestDirectory(_ name: String) -> String { "\(directory)/\(name)" }

    func guestNames() throws -> [String] {
        try Directory.names(in: directory)
            .filter { Self.isGuestName($0) && Directory.exists("\(directory)/\($0)/commit") }.sorted()
    }
}

/// A folder with everything in it.
enum FileTree {
    static func remove(_ path: String) throws {
        for name in try Directory.names(in: path) {
            let child = "\(path)/\(name)"
            var status = stat()
            guard lstat(child, &status) == 0 else { continue }
            if status.st_mode & S_IFMT == S_IFDIR {
                try remove(child)
            } else {
                try Directory.removeFile(child)
            }
        }
        guard rmdir(path) == 0 else { throw Store.Failed(description: "\(path): \(String(cString: strerror(errno)))") }
    }
}
