import QEMU
import Testing

@Suite struct JSONFramerTests {
    private func all(_ framer: inout JSONFramer) throws -> [JSONValue] {
        var out: [JSONValue] = []
        while let value = try framer.next() { out.append(value) }
        return out
    }

    @Test func objectsOnOneLineAndOverManyLinesAreCutAtTheirBraces() throws {
        var framer = JSONFramer()
        framer.receive(Array("{\"a\":1}{\"b\":\"}{\\\"\"}\r\n{\n  \"c\": [\n {}\n ]\n}\r\n  ".utf8))
        #expect(try all(&framer) == [["a": 1], ["b": "}{\""], ["c": [[:]]]])
        #expect(framer.pendingCount == 0)
    }

    @Test func everySplitOfTheBytesGivesTheSameObjects() throws {
        let bytes = Array("{\"x\":\"\\\\\",\"y\":[1,2]}\r\n{\"é\":\"🙂\"}\n".utf8)
        let expected: [JSONValue] = [["x": "\\", "y": [1, 2]], ["é": "🙂"]]
        for cut in 0...bytes.count {
            var framer = JSONFramer()
            framer.receive(bytes[..<cut])
            var values = try all(&framer)
            framer.receive(bytes[cut...])
            values += try all(&framer)
            #expect(values == expected, "cut at \(cut)")
        }
    }

    @Test func wordsOfAHumanMonitorAreRefusedAtTheirFirstByte() {
        var framer = JSONFramer()
        framer.receive(Array("\r\nQEMU 7.2.22 monitor".utf8))
        #expect(throws: JSONFramer.Failure.unexpected(byte: UInt8(ascii: "Q"), offset: 2)) { try framer.next() }
    }

    @Test func anObjectLongerThanTheLimitIsRefusedBeforeItsEnd() throws {
        var framer = JSONFramer(limit: 16)
        framer.receive(Array("{\"a\":\"234567\"}".utf8))
        #expect(try framer.next() == ["a": "234567"])
        framer.receive(Array("{\"a\":\"0123456789A".utf8))
        #expect(throws: JSONFramer.Failure.tooLong(limit: 16)) { try framer.next() }
    }

    @Test func nestingHasALimit() {
        var framer = JSONFramer()
        framer.receive(Array(("{\"a\":" + String(repeating: "[", count: 1_000)).utf8))
        #expect(throws: JSONFramer.Failure.tooDeep(offset: 5 + 127)) { try framer.next() }
    }

    @Test func anObjectThatIsNotJSONIsNamedByItsPlace() {
        var framer = JSONFramer()
        framer.receive(Array("  {\"a\":]}".utf8))
        #expect {
            _ = try framer.next()
            _ = try framer.next()
        } throws: { error in
            guard case JSONFramer.Failure.malformed(_, let offset) = error else { return false }
            return offset == 2
        }
    }

    @Test func randomBytesNeverTrapAndNeverHang() {
        for seed in UInt64(1)...300 {
            var random = SplitMix64(seed: seed)
            let alphabet = Array("{}[]\":,\\ \n01ae\u{ff}".utf8)
            let bytes = (0..<200).map { _ in alphabet[Int(random.next() % UInt64(alphabet.count))] }
            var framer = JSONFramer(limit: 64)
            framer.receive([UInt8(ascii: "{")] + bytes)
            var objects = 0
            while let value = try? framer.next() {
                objects += 1
                #expect(value.objectValue != nil, "seed \(seed)")
            }
            #expect(objects <= 201, "seed \(seed)")
        }
    }
}

private struct SplitMix64 {
    private var state: UInt64
    init(seed: UInt64) { state = seed }
    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var z = state
        z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
        return z ^ (z >> 31)
    }
}
