import Foundation
import TestSupport
import Testing

@Suite("TLS", .enabled(if: Tools.have("openssl", "nbdinfo", "nbdcopy"), Tools.missing("openssl", "nbdinfo")))
struct TlsTests {
    /// A folder of certificates as QEMU and libnbd name them: an authority, a server's and a client's.
    private func certificates(_ folder: Folder, _ name: String) throws -> String {
        let path = folder[name]
        try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
        try tool(
            "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
            "-subj",
            "/CN=authority", "-keyout", "\(path)/ca-key.pem", "-out", "\(path)/ca-cert.pem")
        for (role, usage) in [("server", "serverAuth"), ("client", "clientAuth")] {
            let extensions = "\(path)/\(role).cnf"
            try "subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=\(usage)\n".write(
                toFile: extensions, atomically: true, encoding: .utf8)
            try tool(
                "openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj",
                "/CN=localhost",
                "-keyout", "\(path)/\(role)-key.pem", "-out", "\(path)/\(role).csr")
            try tool(
                "openssl", "x509", "-req", "-in", "\(path)/\(role).csr", "-CA", "\(path)/ca-cert.pem", "-CAkey",
                "\(path)/ca-key.pem", "-CAcreateserial", "-days", "2", "-extfile", extensions, "-out",
                "\(path)/\(role)-cert.pem")
        }
        return path
    }

    private func encrypted(_ server: DiskServer, _ options: String) throws -> String {
        let uri = try #require(server.loggedURI)
        #expect(uri.hasPrefix("nbds://127.0.0.1:"), "\(uri)")
        return "\(uri)?\(options)"
    }

    @Test("certificates both ways: copied in and out, clear connections are refused")
    func x509() throws {
        let folder = try Folder()
        let certificates = try certificates(folder, "pki")
        let server = try DiskServer(
            folder, ["--size", "8M", "--listen", "127.0.0.1:0", "--tls-certificates", certificates])
        let uri = try encrypted(server, "tls-certificates=\(certificates)")
        let file = try folder.makeDisk("in.raw", size: 8 << 20, seed: Tools.seed &+ 61)
        try tool("nbdcopy", "--connections=2", file, uri)
        try tool("nbdcopy", uri, folder["out.raw"])
        #expect(try sameContents(folder["out.raw"], file), "seed \(Tools.seed)")
        let clear = try Program.run("nbdinfo", [uri.replacing(/^nbds/, with: "nbd")])
        #expect(!clear.succeeded)
        // A stranger's certificate opens nothing.
        let strange = try self.certificates(folder, "strangers")
        for name in ["ca-cert.pem"] {
            try FileManager.default.removeItem(atPath: "\(strange)/\(name)")
            try FileManager.default.copyItem(atPath: "\(certificates)/\(name)", toPath: "\(strange)/\(name)")
        }
        #expect(try !Program.run("nbdinfo", [try encrypted(server, "tls-certificates=\(strange)")]).succeeded)
        try expectSize(uri, 8 << 20)
        try server.stop()
    }

    @Test("a shared key opens the export, another one does not")
    func sharedKey() throws {
        let folder = try Folder()
        let right = folder["keys.psk"], wrong = folder["wrong.psk"]
        try "guest:\(String(repeating: "1f", count: 32))\n".write(toFile: right, atomically: true, encoding: .utf8)
        try "guest:\(String(repeating: "2e", count: 32))\n".write(toFile: wrong, atomically: true, encoding: .utf8)
        for path in [right, wrong] {
            try FileManager.default.setAttributes([.posixPermissions: 0o600], ofItemAtPath: path)
        }
        let server = try DiskServer(folder, ["--size", "8M", "--listen", "127.0.0.1:0", "--tls-psk", right])
        let address = try #require(server.loggedURI).replacing(/^nbds:\/\//, with: "nbds://guest@")
        let file = try folder.makeDisk("in.raw", size: 8 << 20, seed: Tools.seed &+ 62)
        try tool("nbdcopy", file, "\(address)?tls-psk-file=\(right)")
        try tool("nbdcopy", "\(address)?tls-psk-file=\(right)", folder["out.raw"])
        #expect(try sameContents(folder["out.raw"], file), "seed \(Tools.seed)")
        #expect(try !Program.run("nbdinfo", ["\(address)?tls-psk-file=\(wrong)"]).succeeded)
        try server.stop()
    }
}
