import TestSupport
import Testing

@Suite("qemu-io over NBD", .enabled(if: Tools.have("qemu-io", "qemu-img"), Tools.missing("qemu-io", "qemu-img")))
struct QemuIoTests {
    @Test("aligned patterns are read back, also by another client")
    func aligned() throws {
        try withServer("--size", "16M") { server in
            try qemuIO(server.uri, "write -P 1 0 4k", "write -P 2 4k 60k", "write -P 3 1M 1M", "read -P 1 0 4k")
            try qemuIO(server.uri, "read -P 1 0 4k", "read -P 2 4k 60k", "read -P 0 64k 960k", "read -P 3 1M 1M")
        }
    }

    @Test("writes at any offset and of any length, around sectors and blocks")
    func unaligned() throws {
        try withServer("--size", "1M") { server in
            try qemuIO(
                server.uri, "write -P 1 0 64k", "write -P 2 1 1", "write -P 3 511 2", "write -P 4 4095 2",
                "write -P 5 8000 5000", "write -P 6 65535 1")
            try qemuIO(
                server.uri, "read -P 1 0 1", "read -P 2 1 1", "read -P 1 2 509", "read -P 3 511 2",
                "read -P 1 513 3582",
                "read -P 4 4095 2", "read -P 1 4097 3903", "read -P 5 8000 5000", "read -P 1 13000 52535",
                "read -P 6 65535 1", "read -P 0 65536 1000")
        }
    }

    @Test("the last bytes of a disk that is no multiple of 4 KiB", arguments: [512, 4608, 1_049_088])
    func oddEnd(size: Int) throws {
        try withServer("--size", "\(size)") { server in
            try qemuIO(server.uri, "write -P 1 0 \(size)", "write -P 2 \(size - 512) 512", "write -P 3 \(size - 1) 1")
            try server.checkpoint()
            try qemuIO(server.uri, "write -z 0 \(size)", "read -P 0 0 \(size)")
            server.kill()
            try server.checkFiles()
            try server.start()
            try qemuIO(server.uri, "read -P 2 \(size - 512) 511", "read -P 3 \(size - 1) 1")
        }
    }

    @Test("a request behind the end is refused, and nothing else suffers")
    func behindTheEnd() throws {
        try withServer("--size", "1M") { server in
            let outcome = try Program.run("qemu-io", ["-f", "raw", "-c", "write 1M 4k", server.uri])
            #expect(!outcome.succeeded || (outcome.output + outcome.errors).contains("failed"))
            try qemuIO(server.uri, "write -P 4 1020k 4k", "read -P 4 1020k 4k")
        }
    }

    @Test(
        "zeroes, with and without giving space back, over data and over nothing",
        arguments: ["write -z", "write -z -u"])
    func zeroes(command: String) throws {
        try withServer("--size", "8M") { server in
            try qemuIO(
                server.uri, "write -P 7 0 4M", "\(command) 64k 1M", "\(command) 3M 2M", "\(command) 1000 3000",
                options: ["-d", "unmap"])
            try qemuIO(
                server.uri, "read -P 7 0 1000", "read -P 0 1000 3000", "read -P 7 4000 61536", "read -P 0 64k 1M",
                "read -P 7 1088k 1984k", "read -P 0 3M 5M")
        }
    }

    @Test("discarded space is given back and reads as zeroes")
    func discard() throws {
        try withServer("--size", "64M") { server in
            try qemuIO(server.uri, "write -P 7 0 32M", "flush")
            func allocated() throws -> Int { try #require(server.verb("status")["secondaryBytes"] as? Int) }
            try qemuIO(server.uri, "read -P 7 0 32M")
            let before = try allocated()
            try qemuIO(server.uri, "discard 0 24M", options: ["-d", "unmap"])
            try qemuIO(server.uri, "read -P 0 0 24M", "read -P 7 24M 8M")
            let after = try allocated()
            #expect(before - after >= 20 << 20, "from \(before) bytes to \(after)")
        }
    }

    @Test("FUA and flush are done and answered")
    func forced() throws {
        try withServer("--size", "8M") { server in
            try qemuIO(
                server.uri, "write -f -P 1 0 64k", "flush", "write -f -z 64k 64k", "flush", "read -P 1 0 64k",
                options: ["-t", "none"])
        }
    }

    @Test("many requests at once, overlapping ones in the order of their answers")
    func asynchronous() throws {
        try withServer("--size", "32M") { server in
            let writes = (0..<64).map { "aio_write -P \($0 + 1) \($0 * 256)k 256k" }
            let reads = (0..<64).map { "aio_read -P \($0 + 1) \($0 * 256)k 256k" }
            let output = try tool(
                "qemu-io",
                ["-f", "raw"] + (writes + ["aio_flush"] + reads + ["aio_flush"]).flatMap { ["-c", $0] } + [server.uri])
            #expect(!output.contains("failed"), "\(output)")
        }
    }

    @Test("requests of 32 MiB and more")
    func large() throws {
        try withServer("--size", "128M") { server in
            try qemuIO(
                server.uri, "write -P 1 0 32M", "write -P 2 32M 32M", "write -P 3 60M 40M", "read -P 1 0 32M",
                "read -P 2 32M 28M", "read -P 3 60M 40M", "read -P 0 100M 28M")
        }
    }

    @Test("overlapping writes of one epoch: the last one counts, checkpoints see each its own")
    func overlaps() throws {
        try withServer("--size", "1M") { server in
            try qemuIO(server.uri, "write -P 1 0 1M")
            try server.checkpoint()
            try qemuIO(
                server.uri, "write -P 2 0 16k", "write -P 3 4k 8k", "write -z 6k 4k", "write -P 4 5k 2k",
                "discard 512k 64k")
            try qemuIO(
                server.uri, "read -P 2 0 4k", "read -P 3 4k 1k", "read -P 4 5k 2k", "read -P 0 7k 3k",
                "read -P 3 10k 2k",
                "read -P 2 12k 4k", "read -P 0 512k 64k")
            try server.rollBack()
            try qemuIO(server.uri, "read -P 1 0 1M")
        }
    }
}
