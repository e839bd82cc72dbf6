import Foundation
import TestSupport
import Testing

@Suite("nbdcopy", .enabled(if: Tools.have("nbdcopy", "nbdinfo", "qemu-img"), Tools.missing("nbdcopy", "qemu-img")))
struct NbdcopyTests {
    private static let size = 24 << 20

    @Test("a file copied in and out is the same file", arguments: [24 << 20, (7 << 20) + 512, 4608])
    func roundTrip(size: Int) throws {
        try withServer("--size", "\(size)") { server in
            let file = try server.folder.makeDisk("in.raw", size: size, seed: Tools.seed &+ UInt64(size))
            try tool("nbdcopy", file, server.uri)
            #expect(try sameContents(server.uri, file), "seed \(Tools.seed)")
            try tool("nbdcopy", server.uri, server.folder["out.raw"])
            #expect(try sameContents(server.folder["out.raw"], file), "seed \(Tools.seed)")
            try server.checkpoint()
            server.kill()
            try server.expectCheckpoint(file)
        }
    }

    @Test("four connections at a time copy the same bytes")
    func multiConn() throws {
        try withServer("--size", "\(Self.size)") { server in
            let file = try server.folder.makeDisk("in.raw", size: Self.size, seed: Tools.seed &+ 1)
            try tool("nbdcopy", "--connections=4", "--requests=64", "--flush", file, server.uri)
            try tool("nbdcopy", "--connections=4", "--requests=64", server.uri, server.folder["out.raw"])
            #expect(try sameContents(server.folder["out.raw"], file), "seed \(Tools.seed)")
        }
    }

    @Test("from one server to another, holes stay holes")
    func between() throws {
        let folder = try Folder()
        let from = try DiskServer(folder, prefix: "a", ["--size", "64M"])
        let target = try DiskServer(folder, prefix: "b", ["--size", "64M", "--durability", "memory"])
        try qemuIO(from.uri, "write -P 5 8M 1M", "write -P 6 40M 300k")
        try tool("nbdcopy", from.uri, target.uri)
        #expect(try sameContents(from.uri, target.uri))
        let maps = try [from, target].map { try tool("nbdinfo", "--map", $0.uri) }
        #expect(maps[0] == maps[1])
        for server in [from, target] {
            try server.stop()
            try server.checkFiles()
        }
    }

    @Test("copied over something else with explicit zeroes, nothing of it is left")
    func overOld() throws {
        try withServer("--size", "\(Self.size)") { server in
            let old = try server.folder.makeDisk("old.raw", size: Self.size, seed: Tools.seed &+ 2)
            let new = try server.folder.makeDisk("new.raw", size: Self.size, seed: Tools.seed &+ 3)
            try tool("nbdcopy", old, server.uri)
            try server.checkpoint()
            try tool("nbdcopy", "--allocated", new, server.uri)
            #expect(try sameContents(server.uri, new), "seed \(Tools.seed)")
            server.kill()
            try server.expectCheckpoint(old)
        }
    }

    @Test("the same disk copied to itself in two connections at once reads what it wrote")
    func toNull() throws {
        try withServer("--size", "\(Self.size)") { server in
            let file = try server.folder.makeDisk("in.raw", size: Self.size, seed: Tools.seed &+ 4)
            try tool("nbdcopy", "--sparse=0", file, server.uri)
            try tool("nbdcopy", "--synchronous", server.uri, server.uri)
            #expect(try sameContents(server.uri, file), "seed \(Tools.seed)")
        }
    }
}
