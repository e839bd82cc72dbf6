import Foundation
import Link
import Testing

extension BadInput {
    /// The store is not what a daemon or a verb needs.
    @Suite("Store")
    struct Store {
        private func serve(_ store: String, _ socket: String) throws -> FakeTool.Ending {
            try FakeTool.run(["serve", "--store", store, "--listen", "unix:\(socket)"])
        }

        @Test("a store that another daemon holds; that daemon goes on")
        func locked() throws {
            let first = try FakeServe()
            let folder = try FakeFolder()
            let ending = try serve(first.store.path, folder["link.sock"])
            expectRefusal(ending, first.store.path, "in use by another colo-blk")
            try first.expectAlive()
            let attach = try FakeTool.run(["attach", "--qmp", folder["none"], "--store", first.store.path])
            expectRefusal(attach, "no such socket")
        }

        @Test("an attach with the store of a running daemon is refused and the guest runs on")
        func lockedForAttach() throws {
            let guest = try BadGuest.running()
            let serve = try FakeServe()
            let ending = try FakeTool.run(
                ["attach", "--qmp", guest.qmp, "--store", serve.store.path, "--guest", "vm"])
            expectRefusal(ending, serve.store.path, "in use by another colo-blk")
            try guest.expectUntouched()
            try serve.expectAlive()
        }

        @Test("a folder with something else in it is left as it is")
        func foreignFolder() throws {
            let folder = try FakeFolder()
            _ = try folder.write("letter.txt", "dear all")
            let ending = try serve(folder.path, folder["link.sock"])
            expectRefusal(ending, folder.path, "no colo-blk store", "empty")
            #expect(try FileManager.default.contentsOfDirectory(atPath: folder.path) == ["letter.txt"])
            expectRefusal(
                try FakeTool.run(["status", "--store", folder.path]), folder.path, "no colo-blk store", "--store")
        }

        @Test("a file where the store should be")
        func fileInsteadOfFolder() throws {
            let folder = try FakeFolder()
            let path = try folder.write("store", "x")
            expectRefusal(try serve(path, folder["link.sock"]), path)
            expectRefusal(try FakeTool.run(["status", "--store", path]), path, "no colo-blk store")
        }

        @Test("a folder that cannot be made")
        func impossibleFolder() throws {
            let folder = try FakeFolder()
            let path = try folder.write("file", "x") + "/store"
            expectRefusal(try serve(path, folder["link.sock"]), path)
            expectRefusal(try serve("/proc/colo-blk-store", folder["link.sock"]), "/proc/colo-blk-store")
        }

        @Test(
            "a store.info that is foreign, damaged, or of a newer release",
            arguments: [
                ("colo-blk store\nformat: 2\nid: 0123456789abcdef0123456789abcdef\n", "format 2"),
                ("something else\n", "no colo-blk store"), ("", "no colo-blk store"),
                ("colo-blk store\nformat: one\nid: 0123456789abcdef0123456789abcdef\n", "line 2"),
                ("colo-blk store\nformat: 1\nid: 0123\n", "line 3"),
                (String(repeating: "x", count: 10_000), "store.info"),
            ])
        func foreignDescription(text: String, words: String) throws {
            let folder = try FakeFolder()
            _ = try folder.write("store.info", text)
            let ending = try serve(folder.path, folder["link.sock"])
            expectRefusal(ending, folder.path, "store.info", words)
            #expect(try String(contentsOfFile: folder["store.info"], encoding: .utf8) == text, "store.info was changed")
            expectRefusal(try FakeTool.run(["status", "--store", folder.path]), "store.info", words)
        }

        @Test("an address in use")
        func addressInUse() throws {
            let listener = try FakeListener("127.0.0.1:0") { _ in }
            let folder = try FakeFolder()
            let ending = try FakeTool.run(["serve", "--store", folder["store"], "--listen", listener.address])
            expectRefusal(ending, listener.address, "in use")
            listener.stop()
        }

        @Test("the socket path of a link that is a file keeps the file")
        func socketPathIsFile() throws {
            let folder = try FakeFolder()
            let path = try folder.write("precious.txt", "not a socket")
            let ending = try serve(folder["store"], path)
            expectRefusal(ending, path)
            #expect(try String(contentsOfFile: path, encoding: .utf8) == "not a socket")
        }

        @Test("verbs on a guest that the store does not have name those that it has")
        func unknownGuest() throws {
            let serve = try FakeServe()
            for verb in [["status"], ["failover"], ["failover", "--dry-run"], ["detach"], ["remove"]] {
                let ending = try FakeTool.run(verb + ["nobody", "--store", serve.store.path])
                expectRefusal(ending, "no replica 'nobody'", serve.store.path, "none")
            }
            serve.process.kill()
            expectRefusal(
                try FakeTool.run(["failover", "nobody", "--store", serve.store.path]), "no replica 'nobody'")
            for name in ["../store", "", ".", "a/b"] {
                let ending = try FakeTool.run(["remove", name, "--store", serve.store.path])
                expectRefusal(ending, "no replica")
            }
        }

        @Test("a replica without a checkpoint cannot fail over, in words")
        func nothingCommitted() throws {
            let serve = try FakeServe()
            let primary = try FakePrimary(serve.address)
            primary.send(FakeFrames.frame(FakeFrames.hello(guest: "new")))
            #expect(primary.welcome() != nil)
            for options in [[], ["--dry-run"], ["--force"]] {
                let ending = try FakeTool.run(["failover", "new", "--store", serve.store.path] + options)
                expectRefusal(ending, options == [] ? "still answers" : "nothing has been committed")
            }
            let status = try #require(try serve.status("new"))
            #expect(status["state"] as? String == "syncing")
            #expect(status["committedEpoch"] == nil)
            #expect(status["generation"] as? Int == 1)
            expectRefusal(try FakeTool.run(["remove", "new", "--store", serve.store.path]), "detach")
        }
    }
}
