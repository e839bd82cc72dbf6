import TestSupport
import Testing

/// nbdkit as our client (its nbd plugin is libnbd), with its own filters on top.
@Suite(
    "nbdkit's nbd plugin", .enabled(if: Tools.have("nbdkit", "qemu-io", "nbdcopy"), Tools.missing("nbdkit", "qemu-io")))
struct NbdkitTests {
    /// Runs a shell command with `$uri` of an nbdkit in front of the server.
    private func behind(_ server: DiskServer, _ options: [String], _ command: String) throws {
        try tool("nbdkit", ["-U", "-"] + options + ["nbd", "uri=\(server.uri)", "--run", command])
    }

    @Test("patterns pass through nbdkit both ways")
    func patterns() throws {
        try withServer("--size", "16M") { server in
            try behind(
                server, [],
                "qemu-io -f raw -c 'write -P 7 0 3M' -c 'write -P 8 1000001 77' -c 'flush' -c 'read -P 8 1000001 77' \"$uri\""
            )
            try qemuIO(server.uri, "read -P 7 0 1000001", "read -P 8 1000001 77", "read -P 7 1000078 1000")
        }
    }

    @Test("a shared plugin serves several clients over one connection of ours")
    func shared() throws {
        try withServer("--size", "16M") { server in
            let file = try server.folder.makeDisk("in.raw", size: 16 << 20, seed: Tools.seed &+ 5)
            try tool(
                "nbdkit",
                [
                    "-U", "-", "nbd", "uri=\(server.uri)", "shared=true", "--run",
                    "nbdcopy --connections=4 \(file) \"$uri\"",
                ])
            #expect(try sameContents(server.uri, file), "seed \(Tools.seed)")
        }
    }

    @Test("zeroes and trims pass through nbdkit's extents and zero filters")
    func zeroes() throws {
        try withServer("--size", "16M") { server in
            try qemuIO(server.uri, "write -P 3 0 16M")
            try behind(
                server, [],
                "qemu-io -f raw -d unmap -c 'write -z 1M 1M' -c 'write -z -u 4M 1M' -c 'discard 8M 1M' \"$uri\" && nbdinfo --map \"$uri\""
            )
            try qemuIO(server.uri, "read -P 3 0 1M", "read -P 0 1M 1M", "read -P 0 4M 1M", "read -P 3 5M 3M")
        }
    }

    @Test("a copy-on-write filter reads through us and leaves us as we were")
    func copyOnWrite() throws {
        try withServer("--size", "16M") { server in
            try qemuIO(server.uri, "write -P 3 0 16M")
            try behind(
                server, ["--filter=cow"],
                "qemu-io -f raw -c 'write -P 4 1M 5M' -c 'read -P 4 1M 5M' -c 'read -P 3 6M 10M' \"$uri\"")
            try qemuIO(server.uri, "read -P 3 0 16M")
        }
    }
}
