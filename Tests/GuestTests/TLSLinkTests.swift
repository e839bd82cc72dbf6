import Foundation
import Glibc
import Testing

extension RealGuests {
    /// The link with TLS, made by hand as an operator makes it.
    @Suite struct TLSLinkTests {
        /// `colo-blk keys create`.
        private func makeKeys(_ directory: String, _ options: [String]) throws {
            let made = try FakeTool.run(["keys", "create", directory] + options)
            guard made.code == 0 else { throw TestFailure("keys create: \(made)") }
        }

        @Test("a guest is protected over TLS; when the secondary's keys are others the waiting ends, and says why")
        func strangers() throws {
            try Scene.run("tls") { scene in
                let hosts = ["--primary", "a", "--secondary", "b"]
                for name in ["own", "strange"] { try makeKeys("\(scene.directory)/\(name)", hosts) }
                let guest = try scene.launch(.init(workload: .all))
                let secondary = try scene.secondary()
                secondary.options = ["--tls-certificates", "\(scene.directory)/own/secondary"]
                try secondary.start()
                let name = scene.guestName("g")
                try guest.waitUntilBusy()
                let before = try guest.footprint()
                let attach = try scene.attach(
                    guest, to: secondary, name: name,
                    options: ["--tls-certificates", "\(scene.directory)/own/primary"])
                try attach.waitUntilProtected()
                try secondary.waitForCheckpoints(3, of: name)
                try secondary.stop()
                secondary.options = ["--tls-certificates", "\(scene.directory)/strange/secondary"]
                try secondary.start()
                try attach.waitForExit(2, within: 30)
                #expect(attach.log.contains("the secondary's certificate is not accepted"), "\(attach.log)")
                #expect(secondary.log.contains("the primary does not accept this side's certificate"))
                try guest.waitUntilUntouched(before, within: 2)
                try guest.checkAlive()
                // With a shared key, in the other form, and to the end: what was sent over TLS starts.
                try secondary.stop()
                try makeKeys("\(scene.directory)/shared", ["--psk"])
                secondary.options = ["--tls-psk", "\(scene.directory)/shared/secondary/link.psk"]
                try secondary.start()
                let again = try scene.attach(
                    guest, to: secondary, name: name,
                    options: ["--tls-psk", "\(scene.directory)/shared/primary/link.psk"])
                try again.waitUntilProtected()
                try secondary.waitForCheckpoints(2, of: name)
                try secondary.waitForProof(name)
                try again.detach()
                try guest.waitUntilUntouched(before, within: 2)
            }
        }
    }
}

extension BadInput {
    /// Credentials on the command line, and what is wrong about them.
    @Suite("Keys") struct TheKeys {
        private func keys(_ folder: FakeFolder, _ name: String, _ options: [String]) throws -> String {
            let made = try FakeTool.run(["keys", "create", folder[name]] + options)
            #expect(made.code == 0, "\(made)")
            return folder[name]
        }

        @Test("keys are made once, for their owner alone, and never over others")
        func create() throws {
            let folder = try FakeFolder()
            let keys = try keys(
                folder, "k", ["--primary", "a", "--secondary", "b.example", "--secondary", "192.0.2.7"])
            let paths = FileManager.default.enumerator(atPath: keys)?.compactMap { $0 as? String } ?? []
            #expect(paths.count == 15, "\(paths)")
            for path in paths + [""] {
                var information = stat()
                #expect(lstat("\(keys)/\(path)", &information) == 0)
                #expect(information.st_mode & 0o077 == 0, "\(path) has mode \(String(information.st_mode, radix: 8))")
            }
            expectRefusal(
                try FakeTool.run(["keys", "create", keys, "--primary", "a", "--secondary", "b"]), "never overwritten")
            expectRefusal(try FakeTool.run(["keys", "create", keys, "--psk"]), "never overwritten")
            for options in [[], ["--primary", "a"], ["--psk", "--primary", "a"], ["--psk", "--days", "0"]] {
                #expect(try FakeTool.run(["keys", "create", folder["n"]] + options).code == 64, "\(options)")
            }
            #expect(!FileManager.default.fileExists(atPath: folder["n"]))
        }

        @Test("with TLS an address of another host is taken; wrong files and contradictions are refused")
        func options() throws {
            let folder = try FakeFolder()
            let own = try keys(folder, "k", ["--primary", "a", "--secondary", "b"])
            let shared = try keys(folder, "p", ["--psk"])
            let attach = ["attach", "--qmp", folder["none"], "--to", "198.51.100.7:7700"]
            // The next thing that is missing is the guest.
            for options in [
                ["--tls-certificates", "\(own)/primary"], ["--tls-psk", "\(shared)/primary/link.psk"],
                ["--tls-certificates", "\(own)/primary", "--tls-name", "b"],
            ] {
                let ending = try FakeTool.run(attach + options)
                expectRefusal(ending, folder["none"])
                #expect(!ending.error.contains("clear text"), "\(ending)")
            }
            expectRefusal(
                try FakeTool.run(attach + ["--tls-psk", "\(shared)/primary/link.psk", "--insecure"]), "--insecure")
            expectRefusal(
                try FakeTool.run(attach + ["--tls-certificates", folder["nowhere"]]), "ca-cert.pem", "keys create")
            let serve = ["serve", "--store", folder["store"], "--listen", "127.0.0.1:0"]
            expectRefusal(
                try FakeTool.run(serve + ["--tls-certificates", "\(own)/authority"]), "server-cert.pem", "keys create")
            chmod("\(own)/secondary/server-key.pem", 0o644)
            expectRefusal(
                try FakeTool.run(serve + ["--tls-certificates", "\(own)/secondary"]), "server-key.pem", "chmod 600")
            chmod("\(shared)/secondary/link.psk", 0o640)
            expectRefusal(
                try FakeTool.run(serve + ["--tls-psk", "\(shared)/secondary/link.psk"]), "link.psk", "chmod 600")
            #expect(!FileManager.default.fileExists(atPath: folder["store"]), "a refused serve made its store")
            for options in [
                ["--tls-psk", "x", "--tls-certificates", "y"], ["--tls-psk", "x", "--tls-name", "b"],
            ] {
                #expect(try FakeTool.run(attach + options).code == 64, "\(options)")
            }
            let store = ["attach", "--qmp", folder["none"], "--store", folder["store"], "--tls-psk", "x"]
            #expect(try FakeTool.run(store).code == 64)
        }

        @Test("without openssl keys create says what to install, and makes nothing")
        func withoutOpenssl() throws {
            let folder = try FakeFolder()
            let binary = try #require(FakeTool.binary)
            let process = try ChildProcess(
                "keys create", binary, ["keys", "create", folder["k"], "--primary", "a", "--secondary", "b"],
                output: folder["out"], environment: ["PATH": folder["empty"]])
            #expect(try process.waitForExit(within: 20) == 1)
            #expect(process.outputText.contains("apt install openssl"), "\(process.outputText)")
            #expect(try FileManager.default.contentsOfDirectory(atPath: folder.path) == ["out"])
        }
    }
}
