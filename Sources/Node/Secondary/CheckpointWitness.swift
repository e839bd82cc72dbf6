import AsyncIO
import Glibc

/// Length and time of last change of every file that a promoted guest's own disks lie upon, as they were at the failover:
/// `STORE/GUEST/promoted`, a line each.
struct CheckpointWitness: Equatable {
    private static let fileName = "promoted"
    private static let lengthMax = 1 << 20

    let lines: [String]

    /// Looks at the secondary and hidden disks in these folders.
    static func take(of folders: [String]) throws -> CheckpointWitness {
        var lines: [String] = []
        for folder in folders {
            for name in try Directory.names(in: folder).sorted()
            where name == "secondary.raw" || name.hasPrefix("hidden-") {
                var status = stat()
                guard stat("\(folder)/\(name)", &status) == 0 else { continue }
                let changed = "\(status.st_mtim.tv_sec).\(status.st_mtim.tv_nsec)"
                lines.append("\(name) \(status.st_size) \(changed)")
            }
        }
        return CheckpointWitness(lines: lines)
    }

    func save(directory: String) throws {
        let text = lines.map { "\($0)\n" }.joined()
        try WholeFile.write("\(directory)/\(Self.fileName)", Array(text.utf8), durable: true)
        try DirectFile.syncDirectory(directory)
    }

    static func load(directory: String) throws -> CheckpointWitness {
        let bytes = try WholeFile.read("\(directory)/\(fileName)", limit: lengthMax)
        return CheckpointWitness(lines: String(decoding: bytes, as: UTF8.self).split(separator: "\n").map(String.init))
    }
}
