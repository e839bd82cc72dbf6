import NBD
import Testing

@Suite("NBD URIs")
struct NBDURITests {
    @Test("every form is parsed, and printed as it was where that is the shortest")
    func forms() throws {
        let cases: [(String, NBDURI.Place, String, Bool)] = [
            ("nbd://localhost/", .tcp(host: "localhost", port: 10809), "", false),
            ("nbds://host.example:1234/disk", .tcp(host: "host.example", port: 1234), "disk", true),
            ("nbd://[::1]:10810/a/b", .tcp(host: "::1", port: 10810), "a/b", false),
            ("nbd://[fe80::2]/", .tcp(host: "fe80::2", port: 10809), "", false),
            ("nbd+unix:///?socket=/run/x.sock", .unix(path: "/run/x.sock"), "", false),
            ("nbds+unix:///vda?socket=/a%20b%26c", .unix(path: "/a b&c"), "vda", true),
            ("nbd://h/%C3%BC%2525%3F", .tcp(host: "h", port: 10809), "ü%25?", false),
        ]
        for (text, place, export, isEncrypted) in cases {
            let uri = try NBDURI(parsing: text)
            #expect(uri.place == place, "\(text)")
            #expect(uri.export == export, "\(text)")
            #expect(uri.isEncrypted == isEncrypted, "\(text)")
            #expect(uri.description == text)
        }
    }

    @Test("longer forms mean the same")
    func longForms() throws {
        #expect(try NBDURI(parsing: "NBD://localhost").description == "nbd://localhost/")
        #expect(try NBDURI(parsing: "nbd://h:10809/x").description == "nbd://h/x")
        #expect(try NBDURI(parsing: "nbd://h//x").export == "/x")
        #expect(try NBDURI(parsing: "nbd://h/x?unknown=1&y").description == "nbd://h/x")
        let full = try NBDURI(parsing: "nbds://alice%40home@h/x?tls-psk-file=/k%25&tls-certificates=/c")
        #expect(full.user == "alice@home")
        #expect(full.keyFile == "/k%")
        #expect(full.certificates == "/c")
        #expect(full.description == "nbds://alice%40home@h/x?tls-certificates=/c&tls-psk-file=/k%25")
    }

    @Test("what is printed is parsed to the same again, whatever the names are")
    func roundTrip() throws {
        for seed in UInt64(1)...200 {
            var random = SplitMix64(seed: seed)
            func name(_ random: inout SplitMix64) -> String {
                String((0..<random.next() % 12).map { _ in Character(UnicodeScalar(UInt8(1 + random.next() % 255))) })
            }
            var uri = NBDURI(
                seed % 2 == 0
                    ? .unix(path: "/" + name(&random)) : .tcp(host: "h", port: 1 + Int(random.next() % 65535)),
                export: name(&random), isEncrypted: random.next() % 2 == 0)
            if random.next() % 2 == 0 { uri.keyFile = name(&random) }
            #expect(try NBDURI(parsing: uri.description) == uri, "seed \(seed): \(uri)")
        }
    }

    @Test(
        "what is not an NBD URI is refused",
        arguments: [
            "", "nbd", "nbd:localhost", "http://h/", "nbd:///x", "nbd://:5/", "nbd://h:0/", "nbd://h:65536/",
            "nbd://h:/",
            "nbd://h:+5/", "nbd://a:b:5/", "nbd://[::1/", "nbd://[]/", "nbd+unix:///x", "nbd+unix:///?socket=",
            "nbd+unix://host/?socket=/x", "nbd://h/?socket=/x", "nbd://h/%", "nbd://h/%4", "nbd://h/%zz", "nbd://h/%ff",
            "nbd://h/#x", "nbd+unix:///?socket=%ff",
        ])
    func refused(text: String) {
        #expect(throws: NBDURI.Malformed.self, "\(text)") { try NBDURI(parsing: text) }
    }
}
