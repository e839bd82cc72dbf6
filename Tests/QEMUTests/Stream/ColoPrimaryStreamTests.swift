import QEMU
import Testing

/// One conversation: the segments that end where QEMU waits, and the calls that the whole must lead to.
private struct Conversation {
    var segments: [[UInt8]] = []
    var calls: [RecordingSink.Call] = []

    static func short() -> Conversation {
        var writer = StreamWriter()
        let first: [StreamWriter.RamItem] = [
            .page(block: 0, offset: 0, contents: pageContents(1)),
            .filled(block: 0, offset: 4096, byte: 0),
            .filled(block: 2, offset: 0, byte: 0),
        ]
        let last: [StreamWriter.RamItem] = [.filled(block: 2, offset: 0, byte: 0xFF)]
        let dirty: [StreamWriter.RamItem] = [
            // The block of the section before: only the CONTINUE flag tells.
            .page(block: 2, offset: 0, contents: pageContents(2)),
            .page(block: 0, offset: 63 << 12, contents: pageContents(3)),
            .filled(block: 0, offset: 0, byte: 0),
        ]
        var conversation = Conversation()
        conversation.segments = [
            writer.initial([first, last]), StreamWriter.request, writer.checkpoint(dirty), StreamWriter.request,
            writer.checkpoint([], commands: StreamWriter.command(11, [1, 2, 3])),
        ]
        conversation.calls =
            [
                .configuration(writer.configurationPayload), .machine("pc-i440fx-7.2"),
                .layout(writer.blocks, writer.sectionID),
            ] + first.map(RecordingSink.expected) + [.round] + last.map(RecordingSink.expected)
            + [.round, .initial(writer.deviceState), .requested, .boundary] + dirty.map(RecordingSink.expected)
            + [.complete(writer.deviceState), .requested, .boundary, .complete(writer.deviceState)]
        return conversation
    }
}

@Suite("The stream of a COLO primary")
struct ColoPrimaryStreamTests {
    @Test("An initial copy and two checkpoints come out as they were written")
    func conversationInOnePiece() throws {
        let conversation = Conversation.short()
        var player = StreamPlayer()
        for segment in conversation.segments {
            try player.feed(segment)
            #expect(player.held.isEmpty)
            player.answer()
        }
        #expect(player.sink.calls == conversation.calls)
        #expect(player.answers == [0, 2, 5, 6, 2, 5, 6].flatMap { be(UInt32($0)) })
        #expect(player.stream.state == .running)
        #expect(player.stream.checkpoint == 2)
        #expect(player.stream.offset == UInt64(conversation.segments.reduce(0) { $0 + $1.count }))
    }

    @Test("A stream that is cut in two at any byte means the same")
    func cutAtEveryByte() throws {
        let conversation = Conversation.short()
        var player = StreamPlayer()
        for (index, segment) in conversation.segments.enumerated() {
            var whole = player
            try whole.feed(segment)
            var failures: [Int] = []
            for cut in 1..<segment.count {
                var pieces = player
                try pieces.feed(segment[..<cut])
                let isEarly = pieces.stream.state == whole.stream.state
                try pieces.feed(segment[cut...])
                let isSame = pieces.sink.calls == whole.sink.calls && pieces.stream.state == whole.stream.state
                if isEarly || !isSame || !pieces.held.isEmpty { failures.append(cut) }
            }
            #expect(failures == [], "segment \(index)")
            player = whole
            player.answer()
        }
        #expect(player.sink.calls == conversation.calls)
    }

    @Test("A stream that comes byte by byte means the same, and little is left to the caller")
    func byteByByte() throws {
        let conversation = Conversation.short()
        var player = StreamPlayer()
        var most = 0
        for segment in conversation.segments {
            for byte in segment {
                try player.feed(CollectionOfOne(byte))
                most = max(most, player.held.count)
            }
            #expect(player.held.isEmpty)
            player.answer()
        }
        #expect(player.sink.calls == conversation.calls)
        #expect(most < ColoPrimaryStream.maxContiguousBytes)
        #expect(most > 4096)
    }

    @Test("A checkpoint acknowledged ahead, wherever it has got to, means the same and ends with the guest running")
    func acknowledgedAhead() throws {
        let conversation = Conversation.short()
        var player = StreamPlayer()
        for segment in conversation.segments[..<2] {
            try player.feed(segment)
            player.answer()
        }
        let checkpoint = conversation.segments[2]
        var whole = player
        try whole.feed(checkpoint)
        #expect(!whole.stream.mayAcknowledgeAhead)
        var failures: [Int] = []
        var ahead = 0
        for cut in 1..<checkpoint.count {
            var pieces = player
            try pieces.feed(checkpoint[..<cut])
            guard pieces.stream.mayAcknowledgeAhead else {
                // Nothing to acknowledge before the boundary.
                if cut >= 4 { failures.append(cut) }
                continue
            }
            ahead += 1
            let isRight = pieces.stream.acknowledgeAhead() == be(UInt32(5)) + be(UInt32(6))
            let isOnce = !pieces.stream.mayAcknowledgeAhead
            try pieces.feed(checkpoint[cut...])
            let isSame = pieces.sink.calls == whole.sink.calls && pieces.stream.state == .running
            // The next one is acknowledged in its own right.
            try pieces.feed(conversation.segments[3])
            pieces.answer()
            try pieces.feed(conversation.segments[4])
            let isNext = pieces.stream.state == .awaitingReceived && pieces.sink.calls == conversation.calls
            if !isRight || !isOnce || !isSame || !isNext || !pieces.held.isEmpty { failures.append(cut) }
        }
        #expect(failures == [])
        #expect(ahead > 8000)
    }

    @Test("QEMU 10's description and commands are understood")
    func newerPrimary() throws {
        var writer = StreamWriter()
        writer.machine = "pc-q35-10.0"
        writer.subsections = [5] + named("configuration/capabilities") + be(UInt32(1)) + be(UInt32(0))
        writer.subsections += [5] + named("configuration/target-page-bits") + be(UInt32(1)) + be(UInt32(12))
        var bytes =
            StreamWriter.header + writer.configuration + StreamWriter.command(900, Array(repeating: 1, count: 65535))
        bytes += StreamWriter.colo + writer.start + StreamWriter.command(11, [])
        bytes += writer.section(3, []) + StreamWriter.command(11, [9]) + writer.deviceState + writer.vmdesc(.qemu10)
        var player = StreamPlayer()
        var random = StreamRandom(seed: 4)
        try player.feed(bytes) { Int.random(in: 1...4096, using: &random) }
        #expect(player.stream.state == .awaitingReady)
        #expect(player.sink.calls.first == .configuration(writer.configurationPayload))
        #expect(player.sink.calls.last == .initial(writer.deviceState))
        #expect(player.stream.machine?.subsections == [.capabilities([]), .targetPageBits(12)])
        #expect(player.stream.ramSectionID == 2)
        #expect(player.stream.blocks == writer.blocks)
    }

    @Test("Whole pages are lent from the caller's own buffer")
    func pagesAreNotCopied() throws {
        struct Sink: MigrationSink {
            var first: UnsafeRawPointer?
            func configuration(_ bytes: UnsafeRawBufferPointer) {}
            func machineName(_ name: String) {}
            func ramLayout(_ blocks: [RamBlockDescription], sectionID: UInt32) {}
            mutating func page(block: Int, offset: UInt64, data: UnsafeRawBufferPointer) { first = data.baseAddress }
            func zeroPage(block: Int, offset: UInt64) {}
            func ramRoundEnded() {}
            func initialStateComplete(deviceState: [UInt8]) {}
            func checkpointRequested() {}
            func epochBoundary() {}
            func checkpointComplete(deviceState: [UInt8]) {}
        }
        var writer = StreamWriter()
        let front = StreamWriter.header + writer.configuration + StreamWriter.colo + writer.start
        let bytes = front + writer.section(2, [.page(block: 0, offset: 0, contents: pageContents(1))])
        var stream = ColoPrimaryStream()
        let distance = try bytes.withUnsafeBytes { buffer in
            var sink = Sink()
            _ = try stream.consume(buffer, into: &sink)
            return sink.first.flatMap { page in buffer.baseAddress.map { page - $0 } }
        }
        #expect(distance == front.count + 5 + 8 + 1 + "pc.ram".utf8.count)
    }

    @Test("Random layouts, rounds and cuts come out as they were written", arguments: 0..<25 as Range<UInt64>)
    func randomConversations(seed: UInt64) throws {
        var random = StreamRandom(seed: seed)
        var writer = StreamWriter()
        writer.machine = String(repeating: "m", count: Int.random(in: 1...40, using: &random))
        writer.sectionID = UInt32.random(in: 0...UInt32.max, using: &random)
        writer.blocks = (0..<Int.random(in: 1...12, using: &random)).map {
            RamBlockDescription(name: "block\($0)", length: UInt64.random(in: 1...40, using: &random) << 12)
        }
        writer.devices = (0..<Int.random(in: 1...9, using: &random)).map {
            let contents = random.bytes(Int.random(in: 0...300, using: &random))
            return StreamWriter.Device(name: "device \($0)", instance: UInt32($0), contents: contents)
        }
        let blocks = writer.blocks
        func items() -> [StreamWriter.RamItem] {
            (0..<Int.random(in: 0...12, using: &random)).map { _ in
                let block = Int.random(in: 0..<blocks.count, using: &random)
                let offset = UInt64.random(in: 0..<blocks[block].length >> 12, using: &random) << 12
                if Bool.random(using: &random) { return .filled(block: block, offset: offset, byte: 0) }
                return .page(
                    block: block, offset: offset, contents: pageContents(Int.random(in: 0...9, using: &random)))
            }
        }
        let rounds = (0..<Int.random(in: 1...4, using: &random)).map { _ in items() }
        var segments = [writer.initial(rounds)]
        var calls: [RecordingSink.Call] =
            [.configuration(writer.configurationPayload), .machine(writer.machine), .layout(blocks, writer.sectionID)]
            + rounds.flatMap { $0.map(RecordingSink.expected) + [.round] } + [.initial(writer.deviceState)]
        for _ in 0..<3 {
            let dirty = items()
            segments += [StreamWriter.request, writer.checkpoint(dirty)]
            calls += [.requested, .boundary] + dirty.map(RecordingSink.expected) + [.complete(writer.deviceState)]
        }
        var player = StreamPlayer()
        for segment in segments {
            try player.feed(segment) { Int.random(in: 1...9000, using: &random) }
            player.answer()
        }
        #expect(player.sink.calls == calls, "seed \(seed)")
    }

    @Test("The error of a closed connection names the phase and the checkpoint")
    func closedConnection() throws {
        let conversation = Conversation.short()
        var player = StreamPlayer()
        #expect(player.stream.connectionClosed().state == .header)
        try player.feed(conversation.segments[0])
        #expect(player.stream.connectionClosed().description.contains("10.0 and 10.1"))
        player.answer()
        try player.feed(conversation.segments[1])
        player.answer()
        try player.feed(conversation.segments[2].prefix(1000))
        let error = player.stream.connectionClosed()
        #expect(error.reason == .connectionClosed)
        #expect(error.state == .checkpointRam)
        #expect(error.checkpoint == 1)
        #expect(error.description.contains("checkpoint 1, RAM of the stopped guest: QEMU has closed the connection"))
    }

    @Test("An answer that is not due traps")
    func answerOutOfTurn() async {
        await #expect(processExitsWith: .failure) {
            var stream = ColoPrimaryStream()
            _ = stream.ready()
        }
        await #expect(processExitsWith: .failure) {
            var stream = ColoPrimaryStream()
            _ = stream.loaded()
        }
    }
}
