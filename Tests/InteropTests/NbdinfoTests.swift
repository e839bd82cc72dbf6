import Foundation
import TestSupport
import Testing

@Suite("nbdinfo", .enabled(if: Tools.have("nbdinfo", "qemu-io"), Tools.missing("nbdinfo", "qemu-io")))
struct NbdinfoTests {
    @Test("the list of exports has the disk with its size and description")
    func list() throws {
        try withServer("--size", "64M") { server in
            let all = try json(tool("nbdinfo", "--list", "--json", "nbd+unix:///?socket=\(server.socket)"))
            let exports = try #require(all["exports"] as? [[String: Any]])
            #expect(exports.count == 1)
            #expect(exports.first?["export-name"] as? String == DiskServer.name)
            #expect(exports.first?["export-size"] as? Int == 64 << 20)
            #expect(exports.first?["description"] as? String == "colo-blk secondary disk")
        }
    }

    @Test("the protocol is fixed newstyle with structured replies, the blocks' sizes are told")
    func information() throws {
        try withServer("--size", "10M") { server in
            let all = try json(tool("nbdinfo", "--json", server.uri))
            #expect(all["protocol"] as? String == "newstyle-fixed")
            #expect(all["structured"] as? Bool == true)
            let export = try #require((all["exports"] as? [[String: Any]])?.first)
            #expect(export["export-size"] as? Int == 10 << 20)
            #expect(export["is_read_only"] as? Bool == false)
            #expect(export["block_size_minimum"] as? Int == 1)
            #expect(export["block_size_preferred"] as? Int == 4096)
            #expect(export["block_size_maximum"] as? Int == 32 << 20)
            #expect(export["contexts"] as? [String] == ["base:allocation"])
        }
    }

    @Test("the empty name is the disk")
    func defaultExport() throws {
        try withServer("--size", "3M") { server in
            try expectSize("nbd+unix:///?socket=\(server.socket)", 3 << 20)
        }
    }

    @Test("another name is refused")
    func unknownExport() throws {
        try withServer("--size", "1M") { server in
            let outcome = try Program.run("nbdinfo", ["nbd+unix:///other?socket=\(server.socket)"])
            #expect(!outcome.succeeded)
            try expectSize(server.uri, 1 << 20)
        }
    }

    @Test(
        "the size is exactly what was asked for, suffixes as in qemu-img",
        arguments: [("4608", 4608), ("1.5M", 1_572_864), ("10G", 10 << 30), ("4T", 4 << 40)])
    func size(text: String, bytes: Int) throws {
        try withServer("--size", text) { server in
            try expectSize(server.uri, bytes)
        }
    }

    @Test(
        "every ability is offered",
        arguments: ["connect", "write", "flush", "fua", "trim", "zero", "cache", "df", "multi-conn"])
    func can(ability: String) throws {
        try withServer("--size", "1M") { server in
            let outcome = try Program.run("nbdinfo", ["--can", ability, server.uri])
            #expect(outcome.status == 0, "\(outcome.errors)")
        }
    }

    @Test("the disk is not read-only")
    func isWritable() throws {
        try withServer("--size", "1M") { server in
            let outcome = try Program.run("nbdinfo", ["--is", "read-only", server.uri])
            #expect(outcome.status == 2)
        }
    }

    @Test("the map shows data where it was written, holes elsewhere and where it was trimmed")
    func map() throws {
        try withServer("--size", "64M") { server in
            func map() throws -> [[Int]] {
                try jsonList(tool("nbdinfo", "--map", "--json", server.uri)).map { extent in
                    [extent["offset"], extent["length"], extent["type"]].map { $0 as? Int ?? -1 }
                }
            }
            #expect(try map() == [[0, 64 << 20, 3]])
            try qemuIO(server.uri, "write -P 1 1M 2M", "write -P 1 32M 64k")
            #expect(
                try map() == [
                    [0, 1 << 20, 3], [1 << 20, 2 << 20, 0], [3 << 20, 29 << 20, 3], [32 << 20, 64 << 10, 0],
                    [(32 << 20) + (64 << 10), (32 << 20) - (64 << 10), 3],
                ])
            try qemuIO(server.uri, "discard 1M 2M")
            #expect(try map().first == [0, 32 << 20, 3])
        }
    }

    @Test("a TCP port of this machine is served, and named in the log")
    func tcp() throws {
        try withServer("--size", "2M", "--listen", "127.0.0.1:0") { server in
            let uri = try #require(server.loggedURI)
            #expect(uri.hasPrefix("nbd://127.0.0.1:"))
            try expectSize(uri, 2 << 20)
            try qemuIO(uri, "write -P 9 0 2M", "read -P 9 0 2M")
        }
    }
}
