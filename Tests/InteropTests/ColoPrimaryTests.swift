import Foundation
import TestSupport
import Testing

@Suite(
    "A stock QEMU COLO primary",
    .enabled(
        if: Tools.have("qemu-system-x86_64", "qemu-img", "qemu-io", "python3"), Tools.missing("qemu-system-x86_64")))
struct ColoPrimaryTests {
    @Test(
        "QEMU's quorum and replication driver write into our export; we keep the checkpoint and show the later writes",
        arguments: ["disk", "memory"])
    func writes(durability: String) throws {
        let size = 32 << 20
        try withServer("--size", "\(size)", "--durability", durability) { server in
            let local = try server.folder.makeDisk("primary.raw", size: size, seed: Tools.seed &+ 51)
            // Both start with the same contents, as the document demands.
            try tool("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", local, server.uri)
            try server.checkpoint()
            try tool(
                "python3", Tools.resource("colo_primary.py"), server.folder.path, local, server.socket, DiskServer.name,
                try #require(Tools.binary), server.disk)
            #expect(try sameContents(server.uri, server.folder["later.raw"]), "the live disk lacks later writes")
            server.kill()
            try server.expectCheckpoint(server.folder["checkpoint.raw"])
            #expect(try !sameContents(server.folder["later.raw"], server.folder["checkpoint.raw"]))
        }
    }
}
