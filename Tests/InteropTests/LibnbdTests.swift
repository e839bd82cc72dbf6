import TestSupport
import Testing

@Suite(
    "libnbd's Python module",
    .enabled(
        if: Tools.binary != nil && Tools.pythonWithNbd != nil, "COLO_BLK_BIN is not set, or python3-libnbd is missing"))
struct LibnbdTests {
    private func script(_ name: String, _ arguments: String...) throws {
        let python = try #require(Tools.pythonWithNbd)
        try tool(python, [Tools.resource(name)] + arguments)
    }

    @Test(
        "random operations agree with a model, checkpoints and rollbacks among them",
        arguments: [
            (4096 + 512, "disk", "1"), (1 << 20, "disk", "16"), ((3 << 20) + 512, "memory", "1"),
            (48 << 20, "disk", "2"), (80 << 20, "memory", "64"),
        ])
    func random(size: Int, durability: String, budget: String) throws {
        let seed = Tools.seed &+ UInt64(size)
        try withServer("--size", "\(size)", "--durability", durability, "--budget", budget) { server in
            do {
                try script(
                    "libnbd_random.py", server.uri, "\(server.store)/control.sock", "\(size)", "\(seed)",
                    size < 16 << 20 ? "600" : "250")
            } catch {
                throw InteropFailure("seed \(seed): \(error)")
            }
        }
    }

    @Test("a client that vanishes in the middle of requests harms nobody")
    func vanishes() throws {
        try withServer("--size", "16M") { server in
            try qemuIO(server.uri, "write -P 1 0 16M")
            try script("libnbd_vanish.py", server.uri, "\(Tools.seed)")
            try qemuIO(server.uri, "write -P 2 1M 1M", "read -P 2 1M 1M")
            #expect(try server.checkpoint() == 1)
        }
    }

    @Test("EXPORT_NAME without structured replies, as old clients speak")
    func oldStyle() throws {
        try withServer("--size", "4608") { server in
            try script("libnbd_plain.py", server.uri)
        }
    }
}
