import QEMU

/// What came out: every packet, whether the stream was given up, and how much was kept at most.
struct Outcome: Equatable {
    var packets: [[UInt8]] = []
    var error: PacketFramer.Malformed?
}

/// Feeds a filter's stream in pieces of this length.
func run(_ stream: UnsafeRawBufferPointer, hasHeaderLength: Bool, piece: Int) -> Outcome {
    var framer = PacketFramer(hasHeaderLength: hasHeaderLength)
    var outcome = Outcome()
    let prefix = framer.prefixLength
    var start = 0
    while start < stream.count {
        let end = min(start + piece, stream.count)
        do throws(PacketFramer.Malformed) {
            try framer.take(UnsafeRawBufferPointer(rebasing: stream[start..<end])) { packet in
                precondition((prefix + 1...prefix + PacketFramer.packetMax).contains(packet.count))
                outcome.packets.append(Array(packet))
            }
        } catch {
            outcome.error = error
            break
        }
        precondition(framer.pendingCount < PacketFramer.packetMax + 8, "more is kept than a packet")
        start = end
    }
    // What came out is what went in, in order and without a gap.
    precondition(outcome.packets.joined().elementsEqual(stream.prefix(outcome.packets.reduce(0) { $0 + $1.count })))
    return outcome
}

/// The first byte chooses the filter's shape, the second how the rest is cut; the rest is what QEMU says.
@_cdecl("LLVMFuzzerTestOneInput")
public func fuzz(_ start: UnsafeRawPointer, _ count: Int) -> CInt {
    guard count >= 2 else { return 0 }
    let bytes = UnsafeRawBufferPointer(start: start, count: count)
    let stream = UnsafeRawBufferPointer(rebasing: bytes[2...])
    let whole = run(stream, hasHeaderLength: bytes[0] & 1 == 1, piece: max(1, stream.count))
    let cut = run(stream, hasHeaderLength: bytes[0] & 1 == 1, piece: Int(bytes[1]) + 1)
    precondition(whole == cut, "pieces change what a stream means")
    return 0
}
