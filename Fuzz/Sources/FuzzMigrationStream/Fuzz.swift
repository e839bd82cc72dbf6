import QEMU

func be<T: FixedWidthInteger>(_ value: T) -> [UInt8] { withUnsafeBytes(of: value.bigEndian) { Array($0) } }
func named(_ name: String) -> [UInt8] { [UInt8(name.utf8.count)] + Array(name.utf8) }

/// What a true QEMU says before the bytes under test, so that every phase is reached in the first run.
enum Opening {
    static let header = Array("QEVM".utf8) + be(UInt32(3))
    static let configuration = [7] + be(UInt32(13)) + Array("pc-i440fx-7.2".utf8)
    static let colo: [UInt8] = [8] + be(UInt16(8)) + be(UInt16(0))
    static let footer: [UInt8] = [0x7E] + be(UInt32(2))
    static let blocks: [UInt8] = named("pc.ram") + be(UInt64(64 << 12)) + named("pc.bios") + be(UInt64(2 << 12))
    static let layout =
        [1] + be(UInt32(2)) + named("ram") + be(UInt32(0)) + be(UInt32(4)) + be(UInt64(66 << 12 | 4)) + blocks
        + be(UInt64(0x10)) + footer
    static let pages = [3] + be(UInt32(2)) + be(UInt64(0x02)) + named("pc.ram") + [0] + be(UInt64(0x10)) + footer
    static let devices: [UInt8] =
        [4] + be(UInt32(10)) + named("timer") + be(UInt32(0)) + be(UInt32(1)) + [1, 2, 3, 0x7E] + be(UInt32(10)) + [0]
    static let description = Array(
        "{\"page_size\": 4096, \"devices\": [{\"name\": \"timer\", \"instance_id\": 0}]}".utf8)
    static let request = be(UInt32(1))
    static let send = be(UInt32(3))

    /// From nothing at all to the middle of a checkpoint.
    static let all: [[UInt8]] = [
        [], header + configuration, header + configuration + colo + layout,
        header + configuration + colo + layout + pages,
        header + configuration + colo + layout + pages + devices + [6] + be(UInt32(description.count)) + description,
        header + configuration + colo + layout + pages + devices + [6] + be(UInt32(description.count)) + description
            + request + send,
    ]
}

/// Keeps what a stream said as a digest, and traps when it lies about pages.
struct Listener: MigrationSink {
    var digest: UInt64 = 0xCBF2_9CE4_8422_2325
    var blocks: [RamBlockDescription] = []

    mutating func note(_ value: UInt64) { digest = (digest ^ value) &* 0x100_0000_01B3 }

    mutating func configuration(_ bytes: UnsafeRawBufferPointer) throws(MigrationStreamError) { note(1) }
    mutating func machineName(_ name: String) { note(2) }

    mutating func ramLayout(_ blocks: [RamBlockDescription], sectionID: UInt32) {
        precondition(self.blocks.isEmpty && !blocks.isEmpty)
        precondition(blocks.reduce(0) { $0 + $1.length } <= 1 << 40, "more RAM than is allowed")
        self.blocks = blocks
        note(UInt64(sectionID))
    }

    mutating func page(block: Int, offset: UInt64, data: UnsafeRawBufferPointer) {
        precondition(data.count == 4096 && offset % 4096 == 0 && offset < blocks[block].length)
        note(offset + UInt64(block))
        for byte in stride(from: 0, to: 4096, by: 64) { note(UInt64(data[byte])) }
    }

    mutating func zeroPage(block: Int, offset: UInt64) {
        precondition(offset % 4096 == 0 && offset < blocks[block].length)
        note(offset + UInt64(block) + 1)
    }

    mutating func ramRoundEnded() { note(3) }
    mutating func initialStateComplete(deviceState: [UInt8]) { note(UInt64(deviceState.count) + 4) }
    mutating func checkpointRequested() { note(5) }
    mutating func epochBoundary() { note(6) }
    mutating func checkpointComplete(deviceState: [UInt8]) {
        precondition(!deviceState.isEmpty)
        note(UInt64(deviceState.count) + 7)
    }
}

/// A connection: holds what the parser leaves, and answers when it is our turn.
struct Connection {
    var stream = ColoPrimaryStream()
    var listener = Listener()
    var held: [UInt8] = []
    var error: MigrationStreamError?

    mutating func hear(_ bytes: some Sequence<UInt8>) {
        guard error == nil else { return }
        held.append(contentsOf: bytes)
        while error == nil, !held.isEmpty {
            do throws(MigrationStreamError) {
                let count = held.count
                let before = stream.offset
                var failure: MigrationStreamError?
                let used = held.withUnsafeBytes { raw in
                    do throws(MigrationStreamError) { return try stream.consume(raw, into: &listener) } catch {
                        failure = error
                        return 0
                    }
                }
                if let failure { throw failure }
                precondition(used >= 0 && used <= count && stream.offset == before + UInt64(used))
                held.removeFirst(used)
                answer()
                if used == 0 {
                    precondition(held.count < ColoPrimaryStream.maxContiguousBytes, "too much is left to the caller")
                    return
                }
            } catch {
                precondition(!error.description.isEmpty)
                self.error = error
            }
        }
    }

    var spokeOutOfTurn: Bool {
        if case .unexpectedData = error?.reason { return true }
        return false
    }

    private mutating func answer() {
        switch stream.state {
        case .awaitingReady: precondition(stream.ready().count == 4)
        case .awaitingReply: precondition(stream.reply().count == 4)
        case .awaitingReceived: precondition((stream.received() + stream.loaded()).count == 8)
        default: break
        }
    }
}

/// The first byte chooses how far a true QEMU has got, the second how the rest is cut.
@_cdecl("LLVMFuzzerTestOneInput")
public func fuzz(_ start: UnsafePointer<UInt8>, _ count: Int) -> CInt {
    guard count >= 2 else { return 0 }
    let bytes = UnsafeBufferPointer(start: start, count: count)
    let phase = Int(bytes[0]) % Opening.all.count
    var whole = Connection()
    // QEMU waits for our word at these places, so they are heard apart.
    opening(phase, &whole)
    whole.hear(bytes[2...])
    var pieces = Connection()
    opening(phase, &pieces)
    var cut = UInt64(bytes[1])
    var place = 2
    while place < count {
        cut = cut &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
        let end = min(count, place + 1 + Int(cut >> 33) % (bytes[1] & 1 == 0 ? 512 : 3))
        pieces.hear(bytes[place..<end])
        place = end
    }
    // Before the first checkpoint the end of the device state depends on where the bytes end. Bytes that come while it is
    // our turn are refused when they are there before our word.
    if phase >= 4, !whole.spokeOutOfTurn, !pieces.spokeOutOfTurn {
        precondition(whole.error?.reason == pieces.error?.reason, "the error depends on how the bytes were cut")
        precondition(whole.listener.digest == pieces.listener.digest, "the meaning depends on how the bytes were cut")
    }
    _ = whole.stream.silence(into: &whole.listener)
    precondition(!whole.stream.connectionClosed().description.isEmpty && !whole.stream.timedOut().description.isEmpty)
    return 0
}

private func opening(_ phase: Int, _ connection: inout Connection) {
    guard phase == 5 else { return connection.hear(Opening.all[phase]) }
    connection.hear(Opening.all[4])
    connection.hear(Opening.request)
    connection.hear(Opening.send)
}
