import QEMU
import Testing

@Suite struct QMPCodecTests {
    private func decode(_ text: String) throws -> [QMPMessage] {
        var codec = QMPCodec()
        codec.receive(Array(text.utf8))
        var out: [QMPMessage] = []
        while let message = try codec.next() { out.append(message) }
        return out
    }

    @Test func theGreetingOfDebiansQEMUIsRead() throws {
        let messages = try decode(
            #"{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "#
                + #""package": "Debian 1:7.2+dfsg-7+deb12u18"}, "capabilities": ["oob"]}}"# + "\r\n")
        guard case .greeting(let greeting) = messages.first else {
            Issue.record("no greeting: \(messages)")
            return
        }
        #expect(greeting.version.description == "7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)")
        #expect(greeting.offersOutOfBand)
        #expect(greeting.version > QEMUVersion(7, 2, 9) && greeting.version < QEMUVersion(8, 0, 0))
    }

    @Test func answersErrorsAndEventsAreToldApart() throws {
        let messages = try decode(
            """
            {"return": {}, "id": "a-1"}
            {"id": 7, "error": {"class": "CommandNotFound", "desc": "The command foo has not been found"}}
            {"timestamp": {"seconds": 12, "microseconds": 34}, "event": "STOP"}
            {"error": {"class": "GenericError", "desc": "JSON parse error"}}
            """)
        #expect(
            messages == [
                .success(id: "a-1", value: [:]),
                .failure(
                    id: 7, QMPCommandError(errorClass: "CommandNotFound", text: "The command foo has not been found")),
                .event(QMPEvent(name: "STOP", data: [:], seconds: 12, microseconds: 34)),
                .failure(id: nil, QMPCommandError(errorClass: "GenericError", text: "JSON parse error")),
            ])
    }

    @Test(arguments: [#"{"hello":1}"#, #"{"QMP":{}}"#, #"{"error":{}}"#, #"{"event":3}"#])
    func jsonThatIsNotQMPIsRefused(text: String) {
        #expect {
            try decode(text)
        } throws: { error in
            if case QMPCodec.Failure.notQMP = error { return true }
            return false
        }
    }

    @Test func commandsAreOneLineWithIdAndArguments() {
        let plain = QMPCommand("query-status", id: "x")
        #expect(String(decoding: plain.encoded(), as: UTF8.self) == #"{"execute":"query-status","id":"x"}"# + "\n")
        let yank = QMPCommand("yank", arguments: ["instances": []], id: 3, outOfBand: true)
        #expect(
            String(decoding: yank.encoded(), as: UTF8.self)
                == #"{"arguments":{"instances":[]},"exec-oob":"yank","id":3}"# + "\n")
    }

    @Test func aVersionOutsideAllReasonIsNoVersion() {
        #expect(QEMUVersion(["qemu": ["major": 7, "minor": .integer(.max), "micro": 0]]) == nil)
        #expect(QEMUVersion(["qemu": ["major": 7, "minor": -1, "micro": 0]]) == nil)
        #expect(QEMUVersion(nil) == nil)
    }
}
