import NBD
import Testing
import Units

@Suite("NBD robustness")
struct RobustnessTests {
    /// A whole conversation with a bit of everything.
    private static func conversation() -> [UInt8] {
        Client.flags + Client.option(3) + Client.option(99, [1, 2, 3]) + Client.option(8)
            + Client.option(10, text("vda") + be32(1) + text("base:allocation")) + Client.go("vda", [3])
            + Client.request(1, cookie: 1, offset: 512, length: 600, data: Array(repeating: 5, count: 600))
            + Client.request(1, cookie: 2, offset: 1 << 40, length: 100, data: Array(repeating: 6, count: 100))
            + Client.request(0, cookie: 3, offset: 512, length: 700) + Client.request(3, cookie: 4)
            + Client.request(6, cookie: 5, offset: 0, length: 100) + Client.request(2)
    }

    @Test("the answers are the same byte by byte, whatever pieces the bytes come in")
    func pieces() throws {
        let bytes = Self.conversation()
        var whole = Rig()
        whole.start()
        let expected = try whole.say(bytes)
        for seed in UInt64(1)...30 {
            var random = SplitMix64(seed: seed)
            var rig = Rig()
            rig.start()
            var output: [UInt8] = []
            var start = 0
            let longest = seed == 1 ? 1 : 1 + random.next() % 200
            while start < bytes.count {
                let end = min(bytes.count, start + 1 + Int(random.next() % longest))
                output += try rig.say(Array(bytes[start..<end]))
                start = end
            }
            #expect(output == expected, "seed \(seed)")
            #expect(rig.disk.log == whole.disk.log, "seed \(seed)")
            #expect(rig.session.isFinished)
        }
    }

    @Test("a client cut off at any byte has had the answers to what came whole, and half a write was never written")
    func cuts() throws {
        let bytes = Self.conversation()
        var whole = Rig()
        whole.start()
        let expected = try whole.say(bytes)
        for cut in 0..<bytes.count {
            var rig = Rig()
            rig.start()
            let output = try rig.say(Array(bytes[..<cut]))
            #expect(expected.starts(with: output), "cut at \(cut)")
            #expect(whole.disk.log.starts(with: rig.disk.log), "cut at \(cut)")
            #expect(rig.buffer.count < max(1, rig.session.bytesNeeded), "cut at \(cut)")
            #expect(!rig.session.isFinished)
        }
    }

    @Test("changed bytes never crash the session, and never reach outside of the disk")
    func mutations() {
        let bytes = Self.conversation()
        for seed in UInt64(1)...1500 {
            var random = SplitMix64(seed: seed)
            var bad = bytes
            for _ in 0..<1 + random.next() % 4 {
                bad[Int(random.next() % UInt64(bad.count))] = UInt8(truncatingIfNeeded: random.next())
            }
            var rig = Rig()
            rig.start()
            // The disk traps when a request reaches outside.
            _ = rig.fail(bad)
        }
    }

    @Test("random bytes never crash the session")
    func garbage() throws {
        for seed in UInt64(1)...300 {
            var random = SplitMix64(seed: seed)
            var rig = Rig()
            rig.start()
            _ = rig.fail(random.bytes(100))
            var later = try Rig.transmitting()
            #expect(later.fail(random.bytes(100)) != nil, "seed \(seed)")
            #expect(later.disk.log.isEmpty)
        }
    }
}
