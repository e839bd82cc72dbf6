import Foundation
import Glibc
import Link
import Testing
import Units

extension BadInput {
    /// A primary, or whoever found the socket, does not keep to the rules of the link.
    @Suite("Link")
    struct TheLink {
        private func refusal(_ hello: Hello, frameVersion: UInt8 = 1, _ serve: FakeServe) throws -> Refuse? {
            let primary = try FakePrimary(serve.address)
            primary.send(FakeFrames.frame(hello, version: frameVersion))
            return primary.refusal()
        }

        @Test("another version of the link is refused by name, in hello and in the frame's header")
        func otherVersion() throws {
            let serve = try FakeServe()
            let inHello = try #require(try refusal(FakeFrames.hello(guest: "vm", version: 9), serve))
            #expect(inHello.code == .version)
            #expect(inHello.message.contains("9") && inHello.message.contains("same release"))
            let inHeader = try #require(try refusal(FakeFrames.hello(guest: "vm"), frameVersion: 9, serve))
            #expect(inHeader.code == .version)
            #expect(inHeader.message.contains("9"))
            #expect(try serve.status("vm") == nil, "a refused guest has a folder")
            try serve.expectAlive()
        }

        @Test(
            "a disk larger than the store can take is refused and leaves nothing behind",
            arguments: [UInt64(129) << 40, UInt64(1) << 62, UInt64.max - 511])
        func diskTooLarge(size: UInt64) throws {
            let serve = try FakeServe()
            let disks = [Hello.Disk(id: "small", size: 1 << 20), Hello.Disk(id: "big", size: size)]
            let refuse = try #require(try refusal(FakeFrames.hello(guest: "vm", disks: disks), serve))
            #expect(refuse.code == .diskTooLarge, "\(refuse)")
            #expect(refuse.message.contains("'big'") && refuse.message.contains("\(size)"), "\(refuse)")
            let left = try FileManager.default.contentsOfDirectory(atPath: "\(serve.store.path)/vm/disks")
            #expect(left.isEmpty, "\(left)")
            try serve.expectAlive()
        }

        @Test("a disk of no bytes or of half a sector is refused", arguments: [UInt64(0), 100, 513])
        func diskOddSize(size: UInt64) throws {
            let serve = try FakeServe()
            let hello = FakeFrames.hello(guest: "vm", disks: [Hello.Disk(id: "odd", size: size)])
            let refuse = try #require(try refusal(hello, serve))
            #expect(refuse.message.contains("odd"), "\(refuse)")
            try serve.expectAlive()
        }

        @Test("a name that cannot be a folder is refused", arguments: [String(repeating: "n", count: 41), "lock"])
        func badName(name: String) throws {
            let serve = try FakeServe()
            let refuse = try #require(try refusal(FakeFrames.hello(guest: name), serve))
            #expect(refuse.code == .name, "\(refuse)")
            #expect(refuse.message.contains(name))
        }

        @Test("a second primary for a guest is refused, and the first one stays")
        func alreadyProtected() throws {
            let serve = try FakeServe()
            let first = try FakePrimary(serve.address)
            first.send(FakeFrames.frame(FakeFrames.hello(guest: "vm")))
            #expect(first.welcome() != nil)
            let refuse = try #require(try refusal(FakeFrames.hello(guest: "vm"), serve))
            #expect(refuse.code == .alreadyProtected)
            #expect(refuse.message.contains("a test") && refuse.message.contains("detach"), "\(refuse)")
            #expect(try serve.status("vm")?["state"] as? String == "syncing")
        }

        @Test("a generation that is not the store's is refused")
        func otherGeneration() throws {
            let serve = try FakeServe()
            let refuse = try #require(try refusal(FakeFrames.hello(guest: "vm", generation: 7), serve))
            #expect(refuse.code == .generation)
            #expect(refuse.message.contains("7") && refuse.message.contains("'vm'"), "\(refuse)")
        }

        @Test("anything but hello as the first word is refused")
        func notHello() throws {
            let serve = try FakeServe()
            let primary = try FakePrimary(serve.address)
            primary.send(FakeFrames.frame(Bye(code: 0, reason: "")))
            let refuse = try #require(primary.refusal())
            #expect(refuse.code == .protocol)
            #expect(refuse.message.contains("hello"))
        }

        /// Rows of bytes that no primary of ours sends, and which are each wrong in one way.
        private static var garbage: [(name: String, bytes: [UInt8])] {
            let hello = FakeFrames.frame(FakeFrames.hello(guest: "vm"))
            var headerDamaged = hello
            headerDamaged[30] ^= 1
            var payloadDamaged = hello
            payloadDamaged[45] ^= 1
            var random = SystemRandomNumberGenerator()
            return [
                ("text", Array("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".utf8) + [UInt8](repeating: 32, count: 100)),
                ("noise", (0..<4096).map { _ in UInt8.random(in: 0...255, using: &random) }),
                ("zeroes", [UInt8](repeating: 0, count: 4096)),
                ("right magic, wrong header checksum", headerDamaged),
                ("right header, wrong payload checksum", payloadDamaged),
                ("length of 4 GiB", FakeFrames.header(kind: 16, length: .max)),
                ("hello of no bytes", FakeFrames.header(kind: 16, length: 0)),
                ("unknown kind", FakeFrames.header(kind: 200, length: 0)),
                ("unknown flags", FakeFrames.header(kind: 16, flags: 1, length: 64)),
                ("reserved not zero", FakeFrames.header(kind: 16, length: 64, reserved: 1)),
                ("a frame of the secondary", FakeFrames.command(.ready, generation: 1, epoch: 1)),
                ("half a frame", Array(hello.dropLast(7))),
            ]
        }

        @Test("garbage on the link socket is dropped; nothing is made, nobody crashes")
        func garbageOnLink() throws {
            let serve = try FakeServe()
            for (name, bytes) in Self.garbage {
                let stream = try FakeStream.connect(to: serve.address)
                stream.write(bytes)
                if name == "half a frame" {
                    stream.shut()
                } else {
                    #expect(stream.closes(within: 5), "\(name): the connection stays open")
                }
            }
            #expect(try serve.status("vm") == nil)
            try serve.expectAlive()
        }

        @Test("a primary that connects and says nothing is dropped after 10 s and costs nobody else anything")
        func silentPrimary() throws {
            let serve = try FakeServe()
            let silent = try FakeStream.connect(to: serve.address)
            let other = try FakePrimary(serve.address)
            other.send(FakeFrames.frame(FakeFrames.hello(guest: "vm")))
            #expect(other.welcome() != nil)
            #expect(silent.closes(within: 15))
            try serve.expectAlive()
        }

        @Test("a frame that takes long to come is not silence")
        func slowFrame() throws {
            let serve = try FakeServe()
            let primary = try FakePrimary(serve.address)
            primary.send(FakeFrames.frame(FakeFrames.hello(guest: "vm", disks: [Hello.Disk(id: "d0", size: 1 << 20)])))
            let welcome = try #require(primary.welcome())
            primary.send(
                FakeFrames.header(
                    kind: FrameKind.diskWrite.rawValue, generation: welcome.generation.rawValue,
                    epoch: welcome.firstEpoch.rawValue, length: 4096))
            for _ in 0..<30 {
                primary.send([0])
                usleep(50_000)
            }
            let silent = try #require(try serve.status("vm")?["silentSeconds"] as? Double)
            #expect(silent < 1, "\(silent) s")
        }

        @Test("a welcomed primary that breaks the order is refused and its guest stays usable")
        func wrongOrder() throws {
            let serve = try FakeServe()
            let disks = [Hello.Disk(id: "d0", size: 1 << 20)]
            let wrong: [(String, [UInt8])] = [
                ("a seal before anything", FakeFrames.frame(Seal(), generation: 1, epoch: 1)),
                ("another generation", FakeFrames.command(.send, generation: 3, epoch: 1)),
                ("another epoch", FakeFrames.command(.send, generation: 1, epoch: 99)),
                ("a frame of the secondary", FakeFrames.command(.received, generation: 1, epoch: 1)),
                (
                    "a write behind the disk",
                    FakeFrames.header(
                        kind: 20, generation: 1, epoch: 1, length: 11,
                        payloadChecksum: CRC32C.checksum([0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 7]))
                        + [0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 7]
                ),
                (
                    "a write to disk 5",
                    FakeFrames.header(
                        kind: 20, generation: 1, epoch: 1, length: 11,
                        payloadChecksum: CRC32C.checksum([0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 7]))
                        + [0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 7]
                ),
                ("noise", [UInt8](repeating: 0xA5, count: 400)),
            ]
            for (name, bytes) in wrong {
                let primary = try FakePrimary(serve.address)
                primary.send(FakeFrames.frame(FakeFrames.hello(guest: "vm", disks: disks)))
                let welcome = try #require(primary.welcome(), "\(name): the guest is not welcome any more")
                #expect(welcome.generation == Generation(1))
                primary.send(bytes)
                #expect(primary.stream.closes(within: 5), "\(name): the session goes on")
                #expect(FakeTool.wait(5) { (try? serve.status("vm")?["state"] as? String) == "idle" }, "\(name)")
            }
            try serve.expectAlive()
        }

        @Test("garbage on the control socket is answered or dropped; verbs go on")
        func garbageOnControl() throws {
            let serve = try FakeServe()
            let control = "unix:\(serve.store.path)/control.sock"
            let lines = [
                "\n", "{}\n", "null\n", "[[[[\n", "{\"verb\":\"status\",\"guest\":7}\n", "{\"verb\":\"format\"}\n",
                "\0\u{1}\u{2}\n", "{\"verb\":\"failover\",\"guest\":\"../../etc\"}\n",
            ]
            for line in lines {
                let stream = try FakeStream.connect(to: control)
                stream.setReadLimit(5)
                stream.write(Array(line.utf8))
                let answer = String(decoding: stream.read(), as: UTF8.self)
                #expect(answer.contains("\"error\""), "\(line) is answered with: \(answer)")
            }
            let endless = try FakeStream.connect(to: control)
            let piece = [UInt8](repeating: UInt8(ascii: "x"), count: 1 << 16)
            var sent = 0
            while sent < 64 << 20, endless.write(piece) { sent += piece.count }
            #expect(sent < 64 << 20, "a line of 64 MiB was taken in")
            try serve.expectAlive()
        }

        @Test("the store and its sockets are nobody else's to read")
        func privacy() throws {
            let serve = try FakeServe()
            let primary = try FakePrimary(serve.address)
            primary.send(FakeFrames.frame(FakeFrames.hello(guest: "vm", disks: [Hello.Disk(id: "d0", size: 1 << 20)])))
            #expect(primary.welcome() != nil)
            let files = FileManager.default.enumerator(atPath: serve.store.path)?.compactMap { $0 as? String } ?? []
            #expect(files.count > 5)
            for path in files.map({ "\(serve.store.path)/\($0)" }) + [serve.store.path, serve.socket] {
                var information = stat()
                #expect(lstat(path, &information) == 0)
                #expect(information.st_mode & 0o077 == 0, "\(path) has mode \(String(information.st_mode, radix: 8))")
            }
        }
    }
}
