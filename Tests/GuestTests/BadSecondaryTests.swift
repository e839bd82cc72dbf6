import Foundation
import Glibc
import Link
import Testing
import Units

extension BadInput {
    /// The secondary is not there, not ours, or says no. The guest, a real one, never notices.
    @Suite("Secondary")
    struct TheSecondary {
        private func attach(to address: String, _ guest: BadGuest, limit: Double = 20) throws -> FakeTool.Ending {
            try FakeTool.run(["attach", "--qmp", guest.qmp, "--to", address, "--guest", "vm"], limit: limit)
        }

        @Test("nobody listens: neither on a port nor on a socket")
        func unreachable() throws {
            let guest = try BadGuest.running()
            let folder = try FakeFolder()
            let port = try FakeListener("127.0.0.1:0") { _ in }
            port.stop()
            for address in [port.address, "unix:\(folder["none.sock"])"] {
                expectRefusal(try attach(to: address, guest), address, "cannot be reached", "colo-blk serve")
            }
            try guest.expectUntouched()
        }

        @Test("it speaks something else", arguments: ["SSH-2.0-OpenSSH_9.2\r\n", "\u{16}\u{3}\u{1}\u{2}\0\u{1}"])
        func otherLanguage(words: String) throws {
            let guest = try BadGuest.running()
            let padding = [UInt8](repeating: 0, count: 64)
            let secondary = try FakeSecondary(answer: Array(words.utf8) + padding, stays: true)
            expectRefusal(try attach(to: secondary.address, guest), "magic", "is the peer colo-blk")
            try guest.expectUntouched()
        }

        @Test("it closes at once")
        func closes() throws {
            let guest = try BadGuest.running()
            let secondary = try FakeSecondary(answer: [])
            expectRefusal(try attach(to: secondary.address, guest), "closed the connection")
            try guest.expectUntouched()
        }

        @Test("it speaks another version of the link")
        func otherVersion() throws {
            let guest = try BadGuest.running()
            let welcome = Welcome(
                generation: Generation(1), firstEpoch: Epoch(1), lastCommitted: .none, creditWindow: 0,
                serverVersion: "9.0")
            let secondary = try FakeSecondary(answer: FakeFrames.frame(welcome, version: 9))
            expectRefusal(try attach(to: secondary.address, guest), "version 9", "same release")
            try guest.expectUntouched()
        }

        @Test("it refuses, for each of its reasons: its words reach the user", arguments: Refuse.Code.allCases)
        func refuses(code: Refuse.Code) throws {
            let guest = try BadGuest.running()
            let refuse = Refuse(code: code, message: "because of reason \(code.rawValue), do that")
            let secondary = try FakeSecondary(answer: FakeFrames.frame(refuse))
            let ending = try attach(to: secondary.address, guest)
            expectRefusal(ending, "the secondary refuses", "because of reason \(code.rawValue), do that")
            try guest.expectTicking()
        }

        @Test("it answers hello with another frame")
        func otherFrame() throws {
            let guest = try BadGuest.running()
            let secondary = try FakeSecondary(answer: FakeFrames.command(.ready, generation: 1, epoch: 1))
            expectRefusal(try attach(to: secondary.address, guest), "answered hello with")
            try guest.expectUntouched()
        }

        @Test("it is silent: a signal still detaches at once")
        func silent() throws {
            let guest = try BadGuest.running()
            let secondary = try FakeSecondary(answer: [], stays: true)
            let attach = try FakeProcess(
                ["attach", "--qmp", guest.qmp, "--to", secondary.address, "--guest", "vm"])
            sleep(2)
            #expect(attach.isRunning)
            attach.signal(SIGTERM)
            let ending = attach.end(within: 3)
            #expect(ending.code == 0, "\(ending)")
            try guest.expectUntouched()
        }

        @Test("it welcomes and falls silent: the guest is given back within seconds")
        func silentAfterWelcome() throws {
            let guest = try BadGuest.running()
            let welcome = Welcome(
                generation: Generation(1), firstEpoch: Epoch(1), lastCommitted: .none, creditWindow: 0,
                serverVersion: "0.1")
            let secondary = try FakeSecondary(answer: FakeFrames.frame(welcome), stays: true)
            let ending = try attach(to: secondary.address, guest)
            expectRefusal(ending, code: 2, "silent")
            #expect(ending.seconds < 10)
            try guest.expectUntouched()
        }

        @Test("it welcomes and then speaks garbage: the guest is given back")
        func garbageAfterWelcome() throws {
            let guest = try BadGuest.running()
            let welcome = Welcome(
                generation: Generation(1), firstEpoch: Epoch(1), lastCommitted: .none, creditWindow: 0,
                serverVersion: "0.1")
            for garbage in [
                [UInt8](repeating: 0x5A, count: 100), FakeFrames.command(.received, generation: 1, epoch: 7),
                FakeFrames.frame(Credit(consumedTotal: 1 << 60), generation: 1), FakeFrames.header(kind: 77, length: 0),
            ] {
                let secondary = try FakeSecondary(answer: FakeFrames.frame(welcome) + garbage, stays: true)
                expectRefusal(try attach(to: secondary.address, guest), code: 2, "the secondary is lost")
                try guest.expectUntouched()
            }
        }

        @Test(
            "a name that cannot be a replica's is refused before the secondary is asked",
            arguments: ["a b", "../x", "-x"])
        func badName(name: String) throws {
            let guest = try BadGuest.running()
            let ending = try FakeTool.run(
                ["attach", "--qmp", guest.qmp, "--to", "127.0.0.1:1", "--guest=\(name)"])
            expectRefusal(ending, "'\(name)'", "--guest")
            try guest.expectTicking()
        }

        @Test(
            "its disk is full: the guest runs on and the store keeps what it had",
            .enabled(if: FakeTool.isRoot, "only root can mount a small tmpfs"), arguments: [1, 24])
        func full(mebibytes: Int) throws {
            let guest = try BadGuest.running()
            let folder = try FakeFolder()
            #expect(mkdir(folder["small"], 0o700) == 0)
            let mounted = try FakeTool.shell(
                "/bin/mount", "-t", "tmpfs", "-o", "size=\(mebibytes)m", "tmpfs", folder["small"])
            try #require(mounted == 0, "a tmpfs cannot be mounted here")
            defer { _ = try? FakeTool.shell("/bin/umount", "-l", folder["small"]) }
            let serve = try FakeServe(store: FakeStore(at: folder["small"]), ["--no-proof"])
            let ending = try attach(to: serve.address, guest, limit: 60)
            #expect(ending.code == 1 || ending.code == 2, "\(ending)")
            #expect(ending.sentences.count == 1, "\(ending)")
            let sentence = ending.sentences.first ?? ""
            #expect(sentence.contains("the secondary") && sentence.contains("space"), "\(ending)")
            #expect(sentence.contains(folder["small"]), "the file or folder is not named: \(sentence)")
            try guest.expectUntouched()
            try serve.expectAlive()
            serve.store.forgetRam()
            serve.process.kill()
        }
    }
}
