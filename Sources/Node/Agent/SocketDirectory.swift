import AsyncIO
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
        Self.sweep(parent: "/tmp")
        var template = Array("/tmp/\(Self.prefix)\(getpid())-XXXXXX".utf8CString)
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
    func remove() { Self.remove(directory) }

    private static func remove(_ directory: String) {
        for name in (try? Directory.names(in: directory)) ?? [] { unlink("\(directory)/\(name)") }
        rmdir(directory)
    }

    private static let prefix = "colo-blk-"

    /// Removes what agents left that were killed: directories with the number of a process that is gone. Only those that
    /// belong to our own user, whom nobody else can swap for something else in a sticky directory.
    static func sweep(parent: String) {
        for name in (try? Directory.names(in: parent)) ?? [] where name.hasPrefix(prefix) {
            let parts = name.dropFirst(prefix.count).split(separator: "-")
            guard parts.count == 2, let pid = pid_t(parts[0]), pid > 1, kill(pid, 0) != 0, errno == ESRCH else {
                continue
            }
            let path = "\(parent)/\(name)"
            var status = stat()
            guard lstat(path, &status) == 0, status.st_mode & S_IFMT == S_IFDIR, status.st_uid == geteuid() else {
                continue
            }
            remove(path)
        }
    }

    func path(_ name: String) -> String { "\(directory)/\(name)" }

    /// To be called for a socket once it is bound: only QEMU's user may connect.
    func protect(_ name: String) {
        chmod(path(name), 0o600)
        if let owner { _ = chown(path(name), owner.uid, owner.gid) }
    }
}
