import Foundation
import TestSupport
import Testing

@Suite("qemu-img over NBD", .enabled(if: Tools.have("qemu-img", "qemu-io"), Tools.missing("qemu-img", "qemu-io")))
struct QemuImgTests {
    private static let size = 20 << 20

    @Test("convert from raw, compare, convert back to qcow2")
    func convertRaw() throws {
        try withServer("--size", "\(Self.size)") { server in
            let file = try server.folder.makeDisk("in.raw", size: Self.size, seed: Tools.seed &+ 11)
            try tool("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", file, server.uri)
            #expect(try sameContents(server.uri, file), "seed \(Tools.seed)")
            let out = server.folder["out.qcow2"]
            try tool("qemu-img", "convert", "-f", "raw", "-O", "qcow2", server.uri, out)
            #expect(try sameContents(out, file, formats: ("qcow2", "raw")), "seed \(Tools.seed)")
        }
    }

    @Test("convert from a compressed qcow2")
    func convertQcow2() throws {
        try withServer("--size", "\(Self.size)") { server in
            let file = try server.folder.makeDisk("in.raw", size: Self.size, seed: Tools.seed &+ 12)
            let image = server.folder["in.qcow2"]
            try tool("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", file, image)
            try tool("qemu-img", "convert", "-n", "-f", "qcow2", "-O", "raw", image, server.uri)
            #expect(try sameContents(server.uri, file), "seed \(Tools.seed)")
        }
    }

    @Test("convert out of order with sixteen requests at a time")
    func convertOutOfOrder() throws {
        try withServer("--size", "\(Self.size)") { server in
            let file = try server.folder.makeDisk("in.raw", size: Self.size, seed: Tools.seed &+ 13)
            try tool(
                "qemu-img", "convert", "-n", "-W", "-m", "16", "-f", "raw", "-O", "raw", file, server.uri)
            #expect(try sameContents(server.uri, file), "seed \(Tools.seed)")
        }
    }

    @Test("a new disk is known to be zero: convert to it writes no zeroes")
    func convertToZeroedTarget() throws {
        try withServer("--size", "512M") { server in
            let file = server.folder["empty.raw"]
            try tool("qemu-img", "create", "-q", "-f", "raw", file, "512M")
            try tool("qemu-img", "convert", "-n", "--target-is-zero", "-f", "raw", "-O", "raw", file, server.uri)
            #expect(try sameContents(server.uri, file))
            #expect(try #require(server.verb("status")["secondaryBytes"] as? Int) < 1 << 20)
        }
    }

    @Test("compare tells a single differing byte")
    func compare() throws {
        try withServer("--size", "\(Self.size)") { server in
            let file = try server.folder.makeDisk("in.raw", size: Self.size, seed: Tools.seed &+ 14)
            try tool("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", file, server.uri)
            try qemuIO(server.uri, "write -P 0x5a 12345678 1", "write -P 0xa5 12345679 1")
            #expect(try !sameContents(server.uri, file))
        }
    }

    @Test("map agrees with where data is")
    func map() throws {
        try withServer("--size", "64M") { server in
            try qemuIO(server.uri, "write -P 1 4M 1M", "write -P 1 16M 128k")
            let map = try jsonList(tool("qemu-img", "map", "--output=json", "-f", "raw", server.uri))
            let data = map.filter { $0["data"] as? Bool == true }
            #expect(data.map { $0["start"] as? Int } == [4 << 20, 16 << 20])
            #expect(data.map { $0["length"] as? Int } == [1 << 20, 128 << 10])
            #expect(map.filter { $0["data"] as? Bool == false }.allSatisfy { $0["zero"] as? Bool == true })
        }
    }

    @Test("info tells the size")
    func info() throws {
        try withServer("--size", "\(Self.size)") { server in
            let info = try json(tool("qemu-img", "info", "--output=json", "-f", "raw", server.uri))
            #expect(info["virtual-size"] as? Int == Self.size)
        }
    }

    @Test("bench writes and flushes at queue depth 32, and reads back")
    func bench() throws {
        try withServer("--size", "64M") { server in
            try tool(
                "qemu-img", "bench", "-f", "raw", "-t", "none", "-w", "-c", "3000", "-d", "32", "-s", "4096", "-S",
                "8192",
                "--pattern=0x77", "--flush-interval=64", server.uri)
            try tool(
                "qemu-img", "bench", "-f", "raw", "-t", "none", "-c", "1000", "-d", "16", "-s", "65536", server.uri)
            try qemuIO(server.uri, "read -P 0x77 0 4096", "read -P 0 4096 4096", "read -P 0x77 8192 4096")
        }
    }

    @Test("a qcow2 image on top of the export works as a guest's disk would")
    func imageOnTop() throws {
        try withServer("--size", "64M") { server in
            try tool("qemu-img", "create", "-q", "-f", "qcow2", server.uri, "128M")
            try tool(
                "qemu-io", "-f", "qcow2", "-c", "write -P 0x21 0 1M", "-c", "write -P 0x22 100M 3M", "-c",
                "read -P 0x22 100M 3M", "-c", "discard 0 512k", server.uri)
            try tool("qemu-img", "check", "-f", "qcow2", server.uri)
            try server.checkpoint()
            server.kill()
            try server.start()
            try tool("qemu-img", "check", "-f", "qcow2", server.uri)
            try tool("qemu-io", "-f", "qcow2", "-c", "read -P 0x22 100M 3M", "-c", "read -P 0x21 512k 512k", server.uri)
        }
    }

    @Test("a qcow2 image with the export as its backing file, committed into it")
    func backing() throws {
        try withServer("--size", "32M") { server in
            try qemuIO(server.uri, "write -P 1 0 32M")
            try server.checkpoint()
            let top = server.folder["top.qcow2"]
            try tool("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", server.uri, top)
            try tool("qemu-io", "-f", "qcow2", "-c", "write -P 2 3M 5M", "-c", "read -P 1 0 3M", top)
            try tool("qemu-img", "commit", "-q", top)
            try qemuIO(server.uri, "read -P 1 0 3M", "read -P 2 3M 5M", "read -P 1 8M 24M")
            try server.rollBack()
            try qemuIO(server.uri, "read -P 1 0 32M")
        }
    }
}
