import AsyncIO
import Glibc
import Testing

@testable import Node

/// A folder on disk and one in shared memory.
struct Place {
    let directory: String
    let base: String
    var tmpfs: String { base + "/g" }

    init() throws {
        var name = Array("/tmp/colo-blk-test-XXXXXX".utf8CString)
        _ = try #require(mkdtemp(&name))
        directory = String(decoding: name.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self) + "/g"
        base = "/dev/shm/\(directory.split(separator: "/")[1])"
        try makeTmpfs()
    }

    func makeTmpfs() throws { _ = try RamTmpfs.prepare(base: base, name: "g") }

    func remove() {
        try? FileTree.remove(String(directory.dropLast(2)))
        try? FileTree.remove(base)
    }
}

extension GuestStatus {
    /// Whatever became of the last one.
    var hasNoPrimary: Bool { state == .idle || state == .primaryLost }
}
