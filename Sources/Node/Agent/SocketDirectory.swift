import Glibc

/// A directory for the sockets of one attachment that QEMU, and nobody else, can reach.
final class SocketDirectory: Sendable {
    struct Failed: Error, CustomStringConvertible {
        let description: String
    }

    private let directory: String
    private let owner: (uid: uid_t, gid: gid_t)?

    /// - Parameter pid: the process of QEMU; when it runs as another user, the directory is made that user's.
    init(forProcess pid: Int32?) throws {
        var template = Array("/tmp/colo-blk-XXXXXX".utf8CString)
        guard mkdtemp(&template) != nil else {
            throw Failed(
                description: "no directory for sockets can be made in /tmp: \(String(cString: strerror(errno)))")
        }
        directory = String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
        var status = stat()
        if let pid, stat("/proc/\(pid)", &status) == 0, status.st_uid != geteuid() {
            owner = (status.st_uid, status.st_gid)
            if chown(directory, status.st_uid, status.st_gid) != 0 {
                throw Failed(
                    description:
                        "QEMU runs as user \(status.st_uid), and only root can make sockets for it: run as root")
            }
        } else {
            owner = nil
        }
    }

    /// Removes it with all sockets. QEMU's connections go on.
    func remove() {
        guard let stream = opendir(directory) else { return }
        while let entry = readdir(stream) {
            let name = withUnsafePointer(to: &entry.pointee.d_name) {
                $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
            }
            if name != ".", name != ".." { unlink("\(directory)/\(name)") }
        }
        closedir(stream)
        rmdir(directory)
    }

    func path(_ name: String) -> String { "\(directory)/\(name)" }

    /// To be called for a socket once it is bound: only QEMU's user may connect.
    func protect(_ name: String) {
        chmod(path(name), 0o600)
        if let owner { _ = chown(path(name), owner.uid, owner.gid) }
    }
}
