import Foundation
import Testing

extension BadInput {
    @Suite("Options")
    struct Options {
        /// What `attach` needs besides the option under test; nothing of it is ever reached.
        private let attach = ["attach", "--qmp", "/nonexistent/qmp.sock", "--to", "127.0.0.1:1"]

        @Test(
            "an option's bad value is refused with what it takes, as a usage error",
            arguments: [
                (["--interval", "0"], "--interval"), (["--interval", "5ms"], "10ms"),
                (["--interval", "-1s"], "--interval"),
                (["--interval", "fast"], "--interval"), (["--budget", "1"], "16 to 65536"),
                (["--budget", "x"], "--budget"),
                (["--durability", "paper"], "--durability"), (["--log-level", "loud"], "debug"),
                (["--store", "/tmp/x"], "either --to"), (["--nonsense"], "--nonsense"),
            ])
        func badValue(options: [String], word: String) throws {
            let ending = try FakeTool.run(attach + options)
            #expect(ending.code == 64, "\(ending)")
            let first = ending.error.split(separator: "\n").first.map(String.init) ?? ""
            #expect(first.hasPrefix("Error: "), "\(ending)")
            #expect(first.contains(word), "\(ending)")
        }

        @Test("attach wants one of --to and --store")
        func neitherToNorStore() throws {
            let ending = try FakeTool.run(["attach", "--qmp", "/nonexistent/qmp.sock"])
            #expect(ending.code == 64, "\(ending)")
            #expect(ending.error.contains("either --to"))
        }

        @Test(
            "a link in clear text does not leave the machine unless that is said",
            arguments: ["0.0.0.0:7700", "10.0.0.1:7700"])
        func clearText(address: String) throws {
            let folder = try FakeFolder()
            let serve = try FakeTool.run(["serve", "--store", folder["store"], "--listen", address])
            expectRefusal(serve, address, "clear text", "--insecure")
            #expect(!FileManager.default.fileExists(atPath: folder["store"]), "a refused serve made its store")
            let attach = try FakeTool.run(["attach", "--qmp", folder["qmp"], "--to", address])
            expectRefusal(attach, address, "clear text", "--insecure")
        }

        @Test(
            "a malformed address is refused with the forms that there are",
            arguments: [
                "", "here", "127.0.0.1:70000", "::1:77", "unix:", ":77", "unix:/\(String(repeating: "x", count: 120))",
            ])
        func malformedAddress(address: String) throws {
            let folder = try FakeFolder()
            let serve = try FakeTool.run(["serve", "--store", folder["store"], "--listen", address])
            expectRefusal(serve, "is not an address", "unix:/PATH")
            let attach = try FakeTool.run(["attach", "--qmp", folder["qmp"], "--to", address])
            expectRefusal(attach, "is not an address", "unix:/PATH")
        }

        @Test("every option that --help shows is in docs/cli.md, and every option there exists")
        func document() throws {
            let file = FakeTool.repository.appending(path: "docs/cli.md")
            let document = try String(contentsOf: file, encoding: .utf8)
            var shown: Set<String> = []
            for verb in [
                "", "serve", "attach", "status", "failover", "detach", "remove", "doctor", "ram info", "ram verify",
                "image info", "image check", "image map", "image convert", "recover", "check", "verify", "disk serve",
                "disk checkpoint", "disk status", "disk rollback", "export", "keys create",
            ] {
                let help = try FakeTool.run(verb.split(separator: " ").map(String.init) + ["--help"])
                #expect(help.code == 0)
                let options = Self.options(in: help.out)
                #expect(!options.isEmpty, "\(verb)")
                let section = try #require(
                    Self.section(of: verb, in: document), "docs/cli.md lacks a section for \(verb)")
                for option in options where !["--help", "--version"].contains(option) {
                    #expect(section.contains("`\(option)"), "\(verb) \(option) is not in docs/cli.md")
                }
                shown.formUnion(options)
            }
            for option in Self.options(in: document) {
                #expect(
                    shown.contains(option) || option == "--qemu-matrix", "docs/cli.md has \(option), no --help does")
            }
        }

        private static func options(in text: String) -> Set<String> {
            Set(text.matches(of: /--[a-z][a-z-]+/).map { String($0.output) })
        }

        /// From the heading "## `verb`" to the next one; the whole document for no verb.
        private static func section(of verb: String, in document: String) -> String? {
            guard !verb.isEmpty else { return document }
            guard let start = document.range(of: "\n## \(verb)\n") else { return nil }
            let rest = document[start.upperBound...]
            return String(rest[..<(rest.range(of: "\n## ")?.lowerBound ?? rest.endIndex)])
        }
    }
}
