import QEMU
import Testing

@Suite struct JSONValueTests {
    @Test func everyKindSurvivesWritingAndReading() throws {
        let value: JSONValue = [
            "null": .null, "yes": true, "no": false, "small": -5, "large": .unsigned(.max),
            "minimum": .integer(.min), "real": 0.25, "text": "a\"b\\c\n\u{1}\u{7f}é🙂", "empty": "",
            "list": [1, [], [:], "x"], "object": ["k": ["k": "v"]],
        ]
        #expect(try JSONValue.parse(value.encoded()) == value)
    }

    @Test func escapesAndSurrogatesAreRead() throws {
        #expect(try JSONValue.parse(#"{"a":"\u00e9\ud83d\ude42\/"}"#)["a"] == "é🙂/")
    }

    @Test func zeroAndOneAreNumbersAndNotTruthValues() throws {
        let value = try JSONValue.parse(#"{"a":0,"b":1,"c":true}"#)
        #expect(value["a"] == .integer(0))
        #expect(value["b"] == .integer(1))
        #expect(value["c"] == .bool(true))
    }

    @Test func numbersKeepSixtyFourBits() throws {
        let value = try JSONValue.parse("[9223372036854775807,9223372036854775808,18446744073709551615,-1]")
        #expect(value[0]?.uintValue == UInt64(Int64.max))
        #expect(value[1]?.uintValue == 1 << 63)
        #expect(value[2]?.uintValue == .max)
        #expect(value[3]?.uintValue == nil)
        #expect(JSONValue.whole(.max) == .unsigned(.max))
        #expect(JSONValue.whole(7) == .integer(7))
    }

    @Test func textOnOneLineWithSortedKeys() {
        let value: JSONValue = ["b": 1, "a": ["x\ny", .null, 1.5]]
        #expect(value.description == #"{"a":["x\ny",null,1.5],"b":1}"#)
        #expect(JSONValue.number(.infinity).description == "null")
    }

    @Test(arguments: ["", "{", "{\"a\"}", "[1 2]", "{\"a\":1}}", "tru", "{\"a\":\"\u{0}\"}"])
    func brokenTextIsRefused(text: String) {
        #expect(throws: JSONValue.ParseError.self) { try JSONValue.parse(text) }
    }
}
