import TestSupport
import Testing

@Suite("fio's nbd engine with verify", .enabled(if: Tools.have("fio", "qemu-img"), Tools.missing("fio", "qemu-img")))
struct FioTests {
    /// Runs fio, which verifies every block by its checksum; an error there is an error of the test.
    private func fio(_ server: DiskServer, _ options: String...) throws {
        try tool(
            "fio",
            [
                "--name=load", "--ioengine=nbd", "--uri=\(server.uri)", "--randseed=\(Tools.seed)", "--verify=crc32c",
                "--verify_fatal=1", "--verify_state_save=0",
            ] + options)
    }

    @Test(
        "random writes of many sizes are verified",
        arguments: [("4k", 32), ("512-64k", 16), ("1m", 4)])
    func randomWrites(block: String, depth: Int) throws {
        try withServer("--size", "32M") { server in
            let sizes = block.contains("-") ? "--bsrange=\(block)" : "--bs=\(block)"
            try fio(server, "--rw=randwrite", sizes, "--iodepth=\(depth)", "--size=32M", "--do_verify=1")
        }
    }

    @Test("reads and writes mixed, verified while a checkpoint is made again and again")
    func mixed() throws {
        try withServer("--size", "32M", "--budget", "4") { server in
            try fio(server, "--rw=randrw", "--bs=4k", "--iodepth=16", "--size=16M", "--io_size=4M", "--do_verify=1")
            try server.checkpoint()
            try fio(server, "--rw=randrw", "--bs=8k", "--iodepth=16", "--size=16M", "--io_size=4M", "--do_verify=1")
            try server.checkpoint()
        }
    }

    @Test("four jobs on four connections")
    func jobs() throws {
        try withServer("--size", "64M") { server in
            try fio(
                server, "--rw=randwrite", "--bs=16k", "--iodepth=8", "--numjobs=4", "--size=8M",
                "--offset_increment=8M",
                "--do_verify=1", "--thread")
        }
    }

    @Test(
        "what fio wrote before a checkpoint is verified after kill -9, whatever it wrote behind it",
        arguments: ["disk", "memory"])
    func afterKill(durability: String) throws {
        try withServer("--size", "32M", "--durability", durability) { server in
            try fio(server, "--rw=randwrite", "--bs=4k", "--iodepth=32", "--size=32M", "--do_verify=0")
            try server.checkpoint()
            try tool(
                "fio", "--name=later", "--ioengine=nbd", "--uri=\(server.uri)", "--rw=randwrite", "--bs=8k",
                "--iodepth=16",
                "--size=32M", "--io_size=20M")
            server.kill()
            try server.checkFiles()
            try server.start()
            try fio(server, "--rw=randwrite", "--bs=4k", "--iodepth=32", "--size=32M", "--verify_only=1")
        }
    }

    @Test("trims between verified writes")
    func trims() throws {
        try withServer("--size", "16M") { server in
            try tool(
                "fio", "--name=trim", "--ioengine=nbd", "--uri=\(server.uri)", "--rw=randtrim", "--bs=64k",
                "--iodepth=4",
                "--size=16M")
            try fio(server, "--rw=randwrite", "--bs=4k", "--iodepth=16", "--size=16M", "--do_verify=1")
        }
    }
}
