import NBD
import Units

/// A disk in memory that traps when a request reaches outside of it, or comes against what its export allows.
struct ModelDisk: NBDRequestHandler {
    static let size = 9_001
    let isReadOnly: Bool
    let blockMin: Int
    var contents = [UInt8](repeating: 0, count: ModelDisk.size)

    private func check(_ offset: UInt64, _ count: Int, _ isChange: Bool) {
        precondition(!isChange || !isReadOnly, "a change of a read-only disk")
        precondition(
            count > 0 && offset <= UInt64(Self.size) && count <= Self.size - Int(offset), "outside of the disk")
        precondition(Int(offset) % blockMin == 0 && count % blockMin == 0, "not aligned")
    }

    mutating func read(export: Int, offset: UInt64, into memory: UnsafeMutableRawBufferPointer) -> NBDErrno? {
        check(offset, memory.count, false)
        memory.copyBytes(from: contents[Int(offset)..<Int(offset) + memory.count])
        return memory.count % 7 == 6 ? .io : nil
    }

    mutating func write(export: Int, offset: UInt64, bytes: UnsafeRawBufferPointer, fua: Bool) -> NBDErrno? {
        check(offset, bytes.count, true)
        contents.replaceSubrange(Int(offset)..<Int(offset) + bytes.count, with: bytes)
        return nil
    }

    mutating func zero(export: Int, range: ByteRange, mayPunchHole: Bool, fast: Bool, fua: Bool) -> NBDErrno? {
        check(range.offset, Int(range.length), true)
        for place in range.offset..<range.end { contents[Int(place)] = 0 }
        return nil
    }

    mutating func trim(export: Int, range: ByteRange, fua: Bool) -> NBDErrno? {
        check(range.offset, Int(range.length), true)
        return nil
    }

    mutating func flush(export: Int) -> NBDErrno? { nil }

    mutating func cache(export: Int, range: ByteRange) -> NBDErrno? {
        check(range.offset, Int(range.length), false)
        return nil
    }

    mutating func extents(export: Int, range: ByteRange, limit: Int) -> [NBDExtent] {
        check(range.offset, Int(range.length), false)
        return (0..<min(limit, 3)).map { NBDExtent(byteCount: UInt32($0) + 1, isHole: $0 == 1, isZero: true) }
    }
}

/// One run: the first byte chooses the server's shape, the second how the rest is cut into pieces; the rest is what a
/// client says. Everything the session promises is checked: progress, bounds, and the same answers in one piece.
struct Conversation {
    var session: NBDServerSession
    var disk: ModelDisk
    var held: [UInt8] = []
    var answers: [UInt8] = []
    var error: NBDError?

    init(shape: UInt8) {
        let isReadOnly = shape & 1 != 0
        let tells = shape & 2 != 0
        let tls: NBDTLSMode = shape & 4 == 0 ? .off : shape & 8 == 0 ? .allow : .required
        var flags: NBDExportFlags = shape & 16 == 0 ? .full : [.flush]
        if isReadOnly { flags.insert(.readOnly) }
        let exports = ["", "b"].map { name in
            NBDExport(
                name: name, size: UInt64(ModelDisk.size), flags: flags, blockMax: shape & 32 == 0 ? 32 << 20 : 4096,
                description: name, tellsAllocation: tells)
        }
        session = NBDServerSession(exports: exports, tls: tls)
        disk = ModelDisk(isReadOnly: isReadOnly, blockMin: Int(exports[0].blockMin))
        session.start(output: &answers)
        if shape & 64 != 0 {
            // Straight to transmission: structured replies, block status, GO to the first export.
            hear(Self.greeting(tells: tells))
        }
    }

    private static func greeting(tells: Bool) -> [UInt8] {
        var writer = ByteWriter()
        func option(_ number: UInt32, _ data: [UInt8]) {
            writer.write(utf8: "IHAVEOPT")
            writer.write(number)
            writer.write(UInt32(data.count))
            writer.write(bytes: data)
        }
        writer.write(UInt32(3))
        option(8, [])
        var context = ByteWriter()
        context.write(UInt32(0))
        context.write(UInt32(1))
        context.write(UInt32(15))
        context.write(utf8: "base:allocation")
        option(10, context.bytes)
        option(7, [0, 0, 0, 0, 0, 0])
        return writer.bytes
    }

    mutating func hear(_ bytes: some Sequence<UInt8>) {
        held.append(contentsOf: bytes)
        while error == nil, !held.isEmpty, held.count >= session.bytesNeeded, !session.isFinished {
            precondition(session.bytesNeeded > 0 && session.bytesNeeded <= 32 << 20)
            if session.awaitsTLS {
                // What is held here stands for what comes encrypted.
                session.tlsStarted()
                continue
            }
            var output: [UInt8] = []
            let outcome = held.withUnsafeBytes { raw in
                Result { () throws(NBDError) in try session.consume(raw, output: &output, handler: &disk) }
            }
            precondition(output.count < NBDLimits.outputHigh + (128 << 10), "output is not bounded")
            answers += output
            switch outcome {
            case .success(let used):
                precondition(used > 0 || session.awaitsTLS, "no progress")
                held.removeFirst(used)
            case .failure(let fault):
                error = fault
                precondition(!fault.description.isEmpty && session.isFinished)
            }
        }
    }
}

@_cdecl("LLVMFuzzerTestOneInput")
public func fuzz(_ start: UnsafePointer<UInt8>, _ count: Int) -> CInt {
    guard count >= 2 else { return 0 }
    let bytes = UnsafeBufferPointer(start: start, count: count)
    var whole = Conversation(shape: bytes[0])
    whole.hear(bytes[2...])
    var pieces = Conversation(shape: bytes[0])
    var cut = UInt64(bytes[1])
    var place = 2
    while place < count {
        cut = cut &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
        let end = min(count, place + 1 + Int(cut >> 33) % (bytes[1] & 1 == 0 ? 64 : 3))
        pieces.hear(bytes[place..<end])
        place = end
    }
    precondition(whole.disk.contents == pieces.disk.contents, "the disk depends on how the bytes were cut")
    precondition(whole.error == pieces.error, "the error depends on how the bytes were cut")
    precondition(whole.answers == pieces.answers, "the answers depend on how the bytes were cut")
    return 0
}
