import QEMU

/// Records every call; of a page only a sum of some of its bytes.
struct RecordingSink: MigrationSink {
    enum Call: Equatable {
        case configuration([UInt8])
        case machine(String)
        case layout([RamBlockDescription], UInt32)
        case page(block: Int, offset: UInt64, sum: UInt64)
        case zero(block: Int, offset: UInt64)
        case round
        case initial([UInt8])
        case requested
        case boundary
        case complete([UInt8])
    }

    var calls: [Call] = []
    var refusal: String?

    static func sum(_ data: UnsafeRawBufferPointer) -> UInt64 {
        var sum = UInt64(data.count)
        for offset in stride(from: 0, to: data.count, by: 45) { sum = sum &* 31 &+ UInt64(data[offset]) }
        return sum
    }

    static func expected(_ item: StreamWriter.RamItem) -> Call {
        switch item {
        case .page(let block, let offset, let contents):
            .page(block: block, offset: offset, sum: contents.withUnsafeBytes { sum($0) })
        case .filled(let block, let offset, 0): .zero(block: block, offset: offset)
        case .filled(let block, let offset, let byte):
            .page(
                block: block, offset: offset,
                sum: [UInt8](repeating: byte, count: 4096).withUnsafeBytes { sum($0) })
        }
    }

    mutating func configuration(_ bytes: UnsafeRawBufferPointer) throws(MigrationStreamError) {
        if let refusal { throw .refusal(refusal) }
        calls.append(.configuration(Array(bytes)))
    }
    mutating func machineName(_ name: String) { calls.append(.machine(name)) }
    mutating func ramLayout(_ blocks: [RamBlockDescription], sectionID: UInt32) {
        calls.append(.layout(blocks, sectionID))
    }
    mutating func page(block: Int, offset: UInt64, data: UnsafeRawBufferPointer) {
        calls.append(.page(block: block, offset: offset, sum: Self.sum(data)))
    }
    mutating func zeroPage(block: Int, offset: UInt64) { calls.append(.zero(block: block, offset: offset)) }
    mutating func ramRoundEnded() { calls.append(.round) }
    mutating func initialStateComplete(deviceState: [UInt8]) { calls.append(.initial(deviceState)) }
    mutating func checkpointRequested() { calls.append(.requested) }
    mutating func epochBoundary() { calls.append(.boundary) }
    mutating func checkpointComplete(deviceState: [UInt8]) { calls.append(.complete(deviceState)) }
}

/// A caller of the parser: keeps what was not consumed, answers when it is our turn.
struct StreamPlayer {
    var stream: ColoPrimaryStream
    var sink = RecordingSink()
    /// Bytes that the parser has left to us.
    var held: [UInt8] = []
    var answers: [UInt8] = []

    init(limits: MigrationLimits = MigrationLimits()) {
        stream = ColoPrimaryStream(limits: limits)
    }

    mutating func feed(_ piece: some Sequence<UInt8>) throws(MigrationStreamError) {
        var bytes = held
        bytes.append(contentsOf: piece)
        var result: Result<Int, MigrationStreamError> = .success(0)
        bytes.withUnsafeBytes { buffer in
            do throws(MigrationStreamError) {
                result = .success(try stream.consume(buffer, into: &sink))
            } catch {
                result = .failure(error)
            }
        }
        bytes.removeFirst(try result.get())
        held = bytes
    }

    /// Feeds `bytes` in pieces of the given lengths, the last of which may be cut short.
    mutating func feed(_ bytes: [UInt8], pieces: () -> Int) throws(MigrationStreamError) {
        var position = 0
        while position < bytes.count {
            let end = min(bytes.count, position + pieces())
            try feed(bytes[position..<end])
            position = end
        }
    }

    /// Says what is due, if it is our turn.
    mutating func answer() {
        switch stream.state {
        case .awaitingReady: answers += stream.ready()
        case .awaitingReply: answers += stream.reply()
        case .awaitingReceived:
            answers += stream.received()
            answers += stream.loaded()
        default: break
        }
    }

    /// The error that `bytes` lead to; nil when there is none.
    static func error(
        _ segments: [[UInt8]], limits: MigrationLimits = MigrationLimits(), refusal: String? = nil
    ) -> MigrationStreamError? {
        var player = StreamPlayer(limits: limits)
        player.sink.refusal = refusal
        for segment in segments {
            do throws(MigrationStreamError) {
                try player.feed(segment)
            } catch {
                return error
            }
            player.answer()
        }
        return nil
    }
}
