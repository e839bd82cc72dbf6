import Foundation
import Glibc
import Synchronization
import Testing

extension BadInput {
    /// The monitor that attach and doctor are given is not what they need.
    @Suite("Monitor")
    struct Monitor {
        /// Both verbs that take a monitor must refuse it in the same words.
        private func expectBothRefuse(
            _ qmp: String, _ words: String..., location: SourceLocation = #_sourceLocation
        ) throws {
            for verb in [["attach", "--to", "127.0.0.1:1"], ["doctor"]] {
                let ending = try FakeTool.run(verb + ["--qmp", qmp])
                for word in words { expectRefusal(ending, word, location: location) }
                #expect(ending.seconds < 10, "\(verb[0]) took \(ending.seconds) s", sourceLocation: location)
            }
        }

        @Test("a path where nothing is")
        func missing() throws {
            let folder = try FakeFolder()
            try expectBothRefuse(folder["qmp.sock"], folder["qmp.sock"], "no such socket", "-qmp")
        }

        @Test("a file that is no socket")
        func file() throws {
            let folder = try FakeFolder()
            let path = try folder.write("qmp.sock", "hello\n")
            try expectBothRefuse(path, path, "not a socket")
        }

        @Test("a socket that nobody listens to any more")
        func stale() throws {
            let folder = try FakeFolder()
            // A listener that is stopped removes its path, so the stale one is made by hand.
            var address = sockaddr_un()
            address.sun_family = sa_family_t(AF_UNIX)
            let descriptor = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0)
            withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: folder["qmp.sock"].utf8) }
            let bound = withUnsafePointer(to: &address) { pointer in
                pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                    bind(descriptor, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
                }
            }
            close(descriptor)
            #expect(bound == 0)
            try expectBothRefuse(folder["qmp.sock"], folder["qmp.sock"], "nobody listens", "has ended")
        }

        @Test("a path longer than a socket's may be")
        func tooLong() throws {
            let path = "/tmp/" + String(repeating: "x", count: 120)
            try expectBothRefuse(path, path)
        }

        @Test(
            "a socket that speaks something else",
            arguments: [
                "220 mail ESMTP\r\n", "QEMU 7.2.22 monitor - type 'help'\r\n(qemu) ", "{\"hello\": 1}\n",
                "\0\u{1}\u{2}}}]\n",
            ])
        func garbage(words: String) throws {
            let folder = try FakeFolder()
            let listener = try FakeListener("unix:\(folder["qmp.sock"])") { stream in
                stream.write(Array(words.utf8))
                _ = stream.closes(within: 10)
            }
            try expectBothRefuse(folder["qmp.sock"], folder["qmp.sock"], "QMP")
            listener.stop()
        }

        @Test("a socket that never ends its line")
        func endless() throws {
            let folder = try FakeFolder()
            let listener = try FakeListener("unix:\(folder["qmp.sock"])") { stream in
                let piece = [UInt8](repeating: UInt8(ascii: "["), count: 1 << 16)
                while stream.write(piece) {}
            }
            try expectBothRefuse(folder["qmp.sock"], folder["qmp.sock"], "QMP")
            listener.stop()
        }

        @Test("a socket that says nothing")
        func silent() throws {
            let folder = try FakeFolder()
            let listener = try FakeListener("unix:\(folder["qmp.sock"])") { stream in _ = stream.closes(within: 20) }
            try expectBothRefuse(folder["qmp.sock"], folder["qmp.sock"], "another client", "second -qmp")
            listener.stop()
        }

        @Test("a socket that closes at once")
        func closing() throws {
            let folder = try FakeFolder()
            let listener = try FakeListener("unix:\(folder["qmp.sock"])") { $0.shut() }
            try expectBothRefuse(folder["qmp.sock"], folder["qmp.sock"], "closed the connection")
            listener.stop()
        }

        @Test("a real monitor that another client holds; it stays that client's")
        func busy() throws {
            let guest = try BadGuest.running()
            let holder = try FakeQMP(guest.qmp)
            try expectBothRefuse(guest.qmp, guest.qmp, "another client", "second -qmp")
            let status = try holder.execute("query-status") as? [String: Any]
            #expect(status?["running"] as? Bool == true)
            try guest.expectUntouched()
        }

        @Test("a guest that is paused: it stays paused")
        func paused() throws {
            let guest = try BadGuest.running()
            let monitor = try FakeQMP(guest.otherQMP)
            try monitor.execute("stop")
            let attach = try FakeTool.run(["attach", "--qmp", guest.qmp, "--to", "127.0.0.1:1"])
            expectRefusal(attach, "paused", "cont")
            let doctor = try FakeTool.run(["doctor", "--qmp", guest.qmp])
            #expect(doctor.code == 1, "\(doctor)")
            #expect(doctor.out.contains("paused"), "\(doctor)")
            let status = try monitor.execute("query-status") as? [String: Any]
            #expect(status?["running"] as? Bool == false, "a guest that its user had paused was started")
            try monitor.execute("cont")
            try guest.expectTicking()
        }

        @Test("a QEMU without x-colo")
        func withoutColo() throws {
            let guest = try BadGuest.running()
            let monitor = try FakeMonitor(
                inFrontOf: guest.qmp,
                .init(answer: { command, message in
                    guard command == "query-migrate-capabilities",
                        let list = message["return"] as? [[String: Any]]
                    else { return }
                    message["return"] = list.filter { $0["capability"] as? String != "x-colo" }
                }))
            let attach = try FakeTool.run(
                ["attach", "--qmp", monitor.path, "--pid", "\(guest.pid)", "--to", "127.0.0.1:1"])
            expectRefusal(attach, "without COLO", "Debian")
            let doctor = try FakeTool.run(["doctor", "--qmp", monitor.path, "--json"])
            #expect(doctor.code == 1)
            #expect(doctor.out.contains("\"x-colo\""), "\(doctor)")
            try guest.expectUntouched()
        }

        @Test("doctor finds a good guest good and changes nothing")
        func goodGuest() throws {
            let guest = try BadGuest.running()
            let ending = try FakeTool.run(["doctor", "--qmp", guest.qmp, "--json"])
            #expect(ending.code == 0, "\(ending)")
            let report = try JSONSerialization.jsonObject(with: Data(ending.out.utf8)) as? [String: Any]
            let findings = report?["findings"] as? [[String: Any]] ?? []
            #expect(!findings.isEmpty)
            #expect(!findings.contains { $0["severity"] as? String == "blocker" }, "\(ending.out)")
            try guest.expectUntouched()
        }
    }
}
