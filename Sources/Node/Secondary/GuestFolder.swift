import AsyncIO
import Checkpointer
import Units

/// The files of one guest in a store, as docs/store-format.md lists them.
struct GuestFolder {
    let path: String

    var commit: String { "\(path)/commit" }

    func disk(_ id: String) -> String { "\(path)/disks/\(id)" }

    /// Makes the folder of a guest that the store does not know; what an interrupted attempt left is taken over. The
    /// commit file comes last: with it the store knows the guest.
    func create() throws {
        try Directory.create(path)
        for folder in ["disks", "ram", "device", "sessions"] { try Directory.create("\(path)/\(folder)") }
        try DirectFile.syncDirectory(path)
        try DirectFile.syncDirectory(Directory.parent(of: path))
        try CommitFile.create(in: path)
    }

    /// What is there, for the recovery plan.
    func listing() throws -> StoreListing {
        var listing = StoreListing(ram: try files(in: "\(path)/ram"), device: try files(in: "\(path)/device"))
        for id in try Directory.names(in: "\(path)/disks") where FileSafeName.isValid(id) {
            listing.disks[id] = try files(in: disk(id))
        }
        return listing
    }

    private func files(in folder: String) throws -> [StoreListing.File] {
        try Directory.names(in: folder).map { name in
            let file = try DirectFile(path: "\(folder)/\(name)", mode: .readOnly, direct: false)
            return StoreListing.File(name: name, length: try file.size())
        }
    }

    /// Performs one action of a recovery plan; each may be repeated. `rollBack` takes a disk back to a checkpoint.
    func perform(_ action: RecoveryPlan.Action, rollBack: (_ id: String, _ to: Epoch) throws -> Void) throws {
        switch action {
        case .rollBackDisk(let id, let epoch):
            try rollBack(id, epoch)
        case .truncate(let folder, let file, let length):
            let file = try DirectFile(path: "\(path)/\(folder)/\(file)", mode: .readWrite, direct: false)
            try file.truncate(to: length)
            try file.sync()
        case .deleteFile(let folder, let file):
            try Directory.removeFile("\(path)/\(folder)/\(file)")
        case .deleteDisk(let id):
            let folder = disk(id)
            for file in try Directory.names(in: folder) { try Directory.removeFile("\(folder)/\(file)") }
            try Directory.remove(folder)
        }
    }
}
