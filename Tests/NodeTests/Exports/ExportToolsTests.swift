import Foundation
import NBD
import TestSupport
import Testing

@testable import Node

@Suite("NBD exports and other programs")
struct ExportToolsTests {
    @Test(
        "nbdinfo lists exports with sizes, flags, descriptions and block sizes",
        .enabled(if: !ExportFixture.missing("nbdinfo"), "nbdinfo is missing"))
    func info() async throws {
        let exports = [
            ExportServer.Export(name: "vda", description: "first", device: try MemoryDevice(size: 1_000_001)),
            ExportServer.Export(name: "ro/disk 2", device: try MemoryDevice(size: 1 << 40, isReadOnly: true)),
        ]
        try await ExportFixture.run(exports) { fixture in
            let list = try await fixture.tool("nbdinfo", ["--list", "--json", fixture.uri()])
            let answer = try #require(try JSONSerialization.jsonObject(with: Data(list.utf8)) as? [String: Any])
            let found = try #require(answer["exports"] as? [[String: Any]])
            #expect(found.map { $0["export-name"] as? String } == ["vda", "ro/disk 2"])
            #expect(found[0]["description"] as? String == "first")
            #expect(found[0]["export-size"] as? Int == 1_000_001)
            for what in [
                "can_multi_conn", "can_zero", "can_trim", "can_fua", "can_flush", "can_cache", "can_fast_zero",
            ] {
                #expect(found[0][what] as? Bool == true, "\(what)")
            }
            for what in ["is_read_only", "is_rotational"] { #expect(found[0][what] as? Bool == false, "\(what)") }
            #expect(found[0]["contexts"] as? [String] == ["base:allocation"])
            #expect(found[1]["is_read_only"] as? Bool == true)
            #expect(found[1]["can_trim"] as? Bool == false)
            #expect(found[1]["block_size_minimum"] as? Int == 1)
            let size = try await fixture.tool("nbdinfo", ["--size", fixture.uri("ro/disk 2")])
            #expect(size == "1099511627776\n")
        }
    }

    @Test(
        "nbdcopy and qemu-img copy a sparse disk there and back, and only data travel",
        .enabled(if: !ExportFixture.missing("nbdcopy", "qemu-img"), "nbdcopy or qemu-img is missing"))
    func copies() async throws {
        let source = try MemoryDevice(size: 3 << 20 | 777)
        let target = try MemoryDevice(size: 3 << 20 | 777)
        var random = SplitMix64(seed: 5)
        let data = (0..<300_000).map { _ in UInt8(truncatingIfNeeded: random.next()) }
        source.set(data, at: 70_001)
        source.set([1, 2, 3], at: (3 << 20) + 774)
        let exports = [
            ExportServer.Export(name: "from", device: source), ExportServer.Export(name: "to", device: target),
        ]
        try await ExportFixture.run(exports) { fixture in
            try await fixture.tool("nbdcopy", [fixture.uri("from"), fixture.uri("to")])
            #expect(target.bytes(at: 0, count: Int(target.size)) == source.bytes(at: 0, count: Int(source.size)))
            #expect(fixture.server.figures.bytesWritten < 600_000)
            let file = fixture.folder.appending(path: "copy.raw").path
            try await fixture.tool("nbdcopy", [fixture.uri("from"), file])
            let copied = try Data(contentsOf: URL(filePath: file))
            #expect([UInt8](copied) == source.bytes(at: 0, count: Int(source.size)))
            try await fixture.tool(
                "qemu-img", ["compare", "-f", "raw", "-F", "raw", fixture.uri("to"), fixture.uri("from")])
            let map = try await fixture.tool("nbdinfo", ["--map", fixture.uri("from")])
            #expect(map.contains("hole,zero") && map.contains("data"))
        }
    }

    @Test(
        "fio writes at random through several connections and verifies every block",
        .enabled(if: !ExportFixture.missing("fio"), "fio is missing"))
    func fio() async throws {
        let device = try MemoryDevice(size: 16 << 20)
        try await ExportFixture.run([.init(name: "", device: device)]) { fixture in
            try await fixture.tool(
                "fio",
                [
                    "--name=v", "--ioengine=nbd", "--uri=\(fixture.uri())", "--rw=randwrite", "--bsrange=512-256k",
                    "--blockalign=512", "--iodepth=32", "--size=16m", "--verify=crc32c", "--randseed=7",
                    "--verify_fatal=1",
                    "--verify_state_save=0", "--output=\(fixture.folder.path)/fio.txt",
                ])
            #expect(fixture.server.figures.bytesWritten >= 16 << 20)
        }
    }
}
