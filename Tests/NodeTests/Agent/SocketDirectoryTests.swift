import AsyncIO
import Glibc
import Testing

@testable import Node

@Suite("The agent's directory for sockets")
struct SocketDirectoryTests {
    @Test("only what a dead agent left is swept away")
    func sweep() throws {
        var template = Array("/tmp/colo-sweep-XXXXXX".utf8CString)
        _ = try #require(mkdtemp(&template))
        let parent = String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
        defer { try? FileTree.remove(parent) }
        // No process has a number above the kernel's limit of 2^22.
        let dead = "\(parent)/colo-blk-4194400-abcdef"
        let living = "\(parent)/colo-blk-\(getpid())-abcdef"
        let strange = "\(parent)/colo-blk-notes"
        for path in [dead, living, strange] {
            try Directory.create(path)
            try WholeFile.write("\(path)/nbd.sock", [], durable: false)
        }
        try #require(symlink(living, "\(parent)/colo-blk-4194401-abcdef") == 0)
        SocketDirectory.sweep(parent: parent)
        #expect(!Directory.exists(dead))
        #expect(Directory.exists("\(living)/nbd.sock"))
        #expect(Directory.exists("\(strange)/nbd.sock"))
    }

    @Test("a directory is private and goes with its sockets")
    func life() throws {
        let directory = try SocketDirectory(forProcess: getpid())
        let path = String(directory.path("").dropLast())
        var status = stat()
        try #require(stat(path, &status) == 0)
        #expect(status.st_mode & 0o777 == 0o700)
        try WholeFile.write(directory.path("x.sock"), [], durable: false)
        directory.remove()
        #expect(!Directory.exists(path))
    }
}
