import QEMU
import Testing

/// How the end of the initial device state is found, which nothing announces.
@Suite("The end of the initial device state")
struct DeviceStateEndTests {
    /// A player that has read everything before the device sections.
    private func player(_ writer: StreamWriter) throws -> StreamPlayer {
        var writer = writer
        var player = StreamPlayer()
        try player.feed(StreamWriter.header + writer.configuration + StreamWriter.colo + writer.start)
        try player.feed(writer.section(3, []))
        return player
    }

    @Test("A description that a guest has planted in a device is not taken for the end, wherever the bytes are cut")
    func plantedDescription() throws {
        var writer = StreamWriter()
        var planted = StreamWriter()
        planted.devices = [writer.devices[0]]
        // Well formed, in its place, and naming the first device truthfully, but followed by no footer of it.
        let bait = [0] + planted.vmdesc(.qemu7)
        writer.devices[1].contents = bait + [1, 2, 3] + bait
        let bytes = writer.deviceState + writer.vmdesc(.qemu7)
        let start = try player(writer)
        var early: [Int] = []
        for cut in 1..<bytes.count {
            var player = start
            try player.feed(bytes[..<cut])
            if player.stream.state != .initialDevices { early.append(cut) }
        }
        #expect(early == [])
        var player = start
        try player.feed(bytes)
        #expect(player.sink.calls.last == .initial(writer.deviceState))
    }

    @Test(
        "Text that is no description of devices is not taken for the end",
        arguments: [
            "{\"page_size\": 4096}", "{\"devices\": [{\"name\": \"timer\", \"instance_id\": 0}]}", "{\"\": 1}",
            "{\"page_size\": 1, \"devices\": []}", "{\"page_size\": 1, \"devices\": [{\"name\": \"timer\"}]}",
            "{\"page_size\": 1, \"devices\": [{\"name\": 1, \"instance_id\": 0}]}",
            "{\"page_size\": 1, \"devices\": [{\"name\": \"timer\", \"instance_id\": 0}]}}",
            "{\"page_size\": 1, \"devices\": [{\"name\": \"timer\", \"instance_id\": 0}",
            "{\"page_size\": 1,, \"devices\": [{\"name\": \"timer\", \"instance_id\": 0}]}",
            "{\"page_size\": 1, \"x\": \(String(repeating: "[", count: 5000)), \"devices\": []}",
            "{\"page_size\": \"\u{1}\", \"devices\": [{\"name\": \"timer\", \"instance_id\": 0}]}",
        ])
    func otherText(text: String) throws {
        var writer = StreamWriter()
        writer.devices.removeSubrange(1...)
        var player = try player(writer)
        let bytes = Array(text.utf8)
        try player.feed(writer.deviceState + [6] + be(UInt32(bytes.count)) + bytes)
        #expect(player.stream.state == .initialDevices)
        let isEnd = player.stream.silence(into: &player.sink)
        #expect(!isEnd)
        #expect(player.stream.state == .initialDevices)
    }

    @Test("Names with escapes and negative instances are read")
    func escapes() throws {
        var writer = StreamWriter()
        writer.devices = [
            StreamWriter.Device(name: "a\"b\\c/d\u{E9}\n", instance: UInt32.max, contents: [1]),
            StreamWriter.Device(name: "second", instance: 0, contents: []),
        ]
        let text =
            "{\"configuration\":{},\"devices\" : [\n{\"name\":\"a\\\"b\\\\c\\/d\\u00e9\\n\",\"instance_id\":-1},"
            + "{\"instance_id\": 0, \"name\": \"second\"}]}"
        var player = try player(writer)
        try player.feed(writer.deviceState + [6] + be(UInt32(text.utf8.count)) + Array(text.utf8))
        #expect(player.sink.calls.last == .initial(writer.deviceState))
    }

    @Test("A description of other devices is believed only after silence")
    func silence() throws {
        let writer = StreamWriter()
        var other = writer
        other.devices[2].name = "renamed"
        var player = try player(writer)
        try player.feed(writer.deviceState + other.vmdesc(.qemu10))
        #expect(player.stream.state == .initialDevices)
        let isEnd = player.stream.silence(into: &player.sink)
        #expect(isEnd)
        #expect(player.stream.state == .awaitingReady)
        #expect(player.sink.calls.last == .initial(writer.deviceState))
    }

    @Test("A machine without a description times out, in words that say what to do")
    func noDescription() throws {
        let writer = StreamWriter()
        var player = try player(writer)
        try player.feed(writer.deviceState)
        let isEnd = player.stream.silence(into: &player.sink)
        #expect(!isEnd)
        let error = player.stream.timedOut()
        #expect(error.reason == .deviceStateWithoutEnd(bytes: writer.deviceState.count))
        #expect(error.description.contains("suppress-vmdesc"))
        // Only the caller knows how long is too long: the rest may still come.
        try player.feed(writer.vmdesc(.qemu7))
        #expect(player.stream.state == .awaitingReady)
        #expect(player.stream.timedOut().reason == .timedOut)
    }

    @Test("Silence means nothing at other times")
    func silenceElsewhere() {
        var player = StreamPlayer()
        let isEnd = player.stream.silence(into: &player.sink)
        #expect(!isEnd)
        #expect(player.stream.state == .header)
        #expect(player.sink.calls.isEmpty)
    }
}
