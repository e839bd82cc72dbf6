import Foundation
import TestSupport
import Testing

@Suite(
    "Checkpoints of a served disk",
    .enabled(if: Tools.have("qemu-img", "qemu-io"), Tools.missing("qemu-img", "qemu-io")))
struct CheckpointTests {
    private static let size = 16 << 20

    @Test("kill -9 leaves exactly the last checkpoint, whatever was written since", arguments: ["disk", "memory"])
    func killed(durability: String) throws {
        try withServer("--size", "\(Self.size)", "--durability", durability) { server in
            var random = SplitMix64(seed: Tools.seed &+ 21)
            for round in 1...4 {
                let file = try server.folder.makeDisk(
                    "\(round).raw", size: Self.size, seed: Tools.seed &+ UInt64(round))
                try tool("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", file, server.uri)
                #expect(try server.checkpoint() > 0)
                for _ in 0..<Int.random(in: 0...3, using: &random) {
                    let start = Int.random(in: 0..<Self.size / 2, using: &random)
                    let length = Int.random(in: 1...Self.size / 2, using: &random)
                    try qemuIO(server.uri, "write -P \(round) \(start) \(length)")
                }
                server.kill()
                try server.expectCheckpoint(file, afterCrash: true)
            }
        }
    }

    @Test("a rollback while clients are connected brings the checkpoint back")
    func rollBack() throws {
        try withServer("--size", "\(Self.size)") { server in
            let file = try server.folder.makeDisk("in.raw", size: Self.size, seed: Tools.seed &+ 31)
            try tool("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", file, server.uri)
            try server.checkpoint()
            for pattern in 1...3 {
                try qemuIO(server.uri, "write -P \(pattern) 0 8M", "write -z 9M 1M", "discard 12M 4M")
                try server.rollBack()
                #expect(try sameContents(server.uri, file), "seed \(Tools.seed)")
            }
        }
    }

    @Test("an ordinary end also leaves exactly the last checkpoint")
    func stopped() throws {
        try withServer("--size", "\(Self.size)") { server in
            let file = try server.folder.makeDisk("in.raw", size: Self.size, seed: Tools.seed &+ 41)
            try tool("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", file, server.uri)
            try server.checkpoint()
            try qemuIO(server.uri, "write -P 1 1M 3M")
            try server.stop()
            try server.expectCheckpoint(file)
        }
    }

    @Test("before the first checkpoint nothing is kept, and a rollback is refused")
    func none() throws {
        try withServer("--size", "1M") { server in
            try qemuIO(server.uri, "write -P 1 0 1M")
            #expect(throws: InteropFailure.self) { try server.rollBack() }
            #expect(try server.verb("status")["committedEpoch"] == nil)
            server.kill()
            try server.start()
            try qemuIO(server.uri, "read -P 0 0 1M")
        }
    }

    @Test("status tells the epoch, what the hidden disk holds and what came in")
    func status() throws {
        try withServer("--size", "64M") { server in
            try qemuIO(server.uri, "write -P 1 0 8M")
            #expect(try server.checkpoint() == 1)
            try qemuIO(server.uri, "write -P 2 0 4M", "read -P 2 0 4M")
            let status = try server.verb("status")
            #expect(status["disk"] as? String == DiskServer.name)
            #expect(status["size"] as? Int == 64 << 20)
            #expect(status["committedEpoch"] as? Int == 1)
            #expect(status["openEpoch"] as? Int == 2)
            #expect(status["durability"] as? String == "disk")
            let hidden = try #require(status["hiddenBytes"] as? Int)
            let buffered = try #require(status["bufferedBytes"] as? Int)
            #expect(hidden + buffered >= 4 << 20, "\(status)")
            #expect(try server.checkpoint() == 2)
        }
    }

    @Test("the hidden disk costs little more than what was overwritten")
    func space() throws {
        try withServer("--size", "64M") { server in
            try qemuIO(server.uri, "write -P 1 0 64M")
            try server.checkpoint()
            for block in 0..<64 { try qemuIO(server.uri, "write -P 2 \(block)M 4k") }
            try qemuIO(server.uri, "read -P 2 0 4k")
            let hidden = try #require(server.verb("status")["hiddenBytes"] as? Int)
            // QEMU's driver takes 64 KiB for each: 4 MiB. The file grows in steps of 1 MiB.
            #expect(hidden <= 3 << 19, "\(hidden) bytes for 64 blocks of 4 KiB")
        }
    }

    @Test("a disk is as large as the file that it is to be like")
    func like() throws {
        let folder = try Folder()
        let file = try folder.makeDisk("like.raw", size: 5 << 20, seed: Tools.seed)
        let server = try DiskServer(folder, ["--like", file])
        #expect(
            try json(tool("qemu-img", "info", "--output=json", "-f", "raw", server.uri))["virtual-size"] as? Int == 5
                << 20)
        try server.stop()
    }

    @Test(
        "wrong sizes, names and addresses are refused in words",
        arguments: [
            (["--size", "1000"], "multiple of 512"), ([], "--size"), (["--size", "0"], "multiple of 512"),
            (["--like", "/nonexistent"], "--size"),
        ])
    func refusals(options: [String], words: String) throws {
        let folder = try Folder()
        let binary = try #require(Tools.binary)
        let outcome = try Program.run(
            binary, ["disk", "serve", folder["store/x"], "--socket", folder["s.sock"]] + options)
        #expect(outcome.status == 1)
        #expect(outcome.errors.hasPrefix("colo-blk: ") && outcome.errors.contains(words), "\(outcome.errors)")
    }

    @Test("a second server of the same store is refused, verbs without a server too")
    func alone() throws {
        try withServer("--size", "1M") { server in
            let binary = try #require(Tools.binary)
            let second = try Program.run(
                binary, ["disk", "serve", server.disk, "--size", "1M", "--socket", server.folder["other.sock"]])
            #expect(second.status == 1 && second.errors.contains("in use"), "\(second.errors)")
            try server.stop()
            let verb = try Program.run(binary, ["disk", "checkpoint", server.disk])
            #expect(verb.status == 1 && verb.errors.contains("nobody serves"), "\(verb.errors)")
        }
    }
}
