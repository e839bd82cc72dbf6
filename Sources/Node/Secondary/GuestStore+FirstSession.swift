import AsyncIO
import Checkpointer
import Glibc
import Link
import Units

/// The disks of a replica before anything is committed.
extension GuestStore {
    /// Makes the disks of a first session. What an earlier session, which never came to a commit, or a seed has left of a
    /// disk of the same size is kept: the primary is told what it holds. Everything else goes.
    func prepareDisks(_ wanted: [Hello.Disk], durable: Bool) throws {
        try checkSeeds(wanted)
        for id in try Directory.names(in: "\(directory)/disks") where FileSafeName.isValid(id) {
            let folder = diskDirectory(id)
            let size = try? DirectFile(path: "\(folder)/\(DiskFiles.secondary)", mode: .readOnly, direct: false).size()
            let isKept = size != nil && wanted.contains { $0.id == id && $0.size == size }
            if !isKept, let device = Directory.linkTarget("\(folder)/\(DiskFiles.secondary)") {
                let found = size.map { "\($0) bytes" } ?? "no size that can be told"
                throw Refuse(
                    code: .identityMismatch,
                    message: "disk '\(id)' of '\(name)' lies on \(device), which has \(found), and the guest has no "
                        + "such disk of that size: 'colo-blk remove \(name)' on the secondary first")
            }
            for file in try Directory.names(in: folder) where !(isKept && file == DiskFiles.secondary) {
                try Directory.removeFile("\(folder)/\(file)")
            }
            if !isKept { rmdir(folder) }
        }
        var made: [String] = []
        do {
            for disk in wanted where !Directory.exists("\(diskDirectory(disk.id))/\(DiskFiles.secondary)") {
                made.append(disk.id)
                try make(disk, durable: durable)
            }
        } catch {
            for id in made {
                let folder = diskDirectory(id)
                for file in (try? Directory.names(in: folder)) ?? [] { unlink("\(folder)/\(file)") }
                rmdir(folder)
            }
            throw error
        }
        guard durable else { return }
        try DirectFile.syncDirectory("\(directory)/disks")
        // What was deleted here, or by the recovery, must not come back: under this session's first record a hidden disk of
        // an earlier life would be rolled back into the disk.
        for disk in wanted { try DirectFile.syncDirectory(diskDirectory(disk.id)) }
    }

    private func make(_ disk: Hello.Disk, durable: Bool) throws {
        do {
            _ = try DiskReplica.create(directory: diskDirectory(disk.id), size: disk.size, durable: durable)
        } catch {
            guard case .overlay(_, let reason) = error else { throw error }
            throw Refuse(code: .diskTooLarge, message: "disk '\(disk.id)' of \(disk.size) bytes: \(reason)")
        }
    }

    private func checkSeeds(_ wanted: [Hello.Disk]) throws {
        if let problem = DiskSeed.mismatch(seeds: seeded, disks: wanted.map { ($0.id, $0.size) }) {
            throw Refuse(code: .identityMismatch, message: "\(problem), or start without it")
        }
    }
}
