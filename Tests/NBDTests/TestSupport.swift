import NBD
import Units

/// SplitMix64, seeded.
struct SplitMix64: RandomNumberGenerator {
    private var state: UInt64

    init(seed: UInt64) {
        state = seed
    }

    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var value = state
        value = (value ^ value >> 30) &* 0xBF58_476D_1CE4_E5B9
        value = (value ^ value >> 27) &* 0x94D0_49BB_1331_11EB
        return value ^ value >> 31
    }

    mutating func bytes(_ count: Int) -> [UInt8] { (0..<count).map { _ in UInt8(truncatingIfNeeded: next()) } }
}

/// A disk in memory that writes down what it was asked.
struct MemoryDisk: NBDRequestHandler {
    var contents: [UInt8]
    var log: [String] = []
    /// What every request is answered.
    var answer: NBDErrno?
    /// What block status is answered.
    var extents: [NBDExtent] = []

    /// 64 KiB in which each sector holds its number.
    private static let fresh = (0..<65536).map { UInt8(truncatingIfNeeded: $0 / 512) }

    init() {
        contents = Self.fresh
    }

    mutating func read(export: Int, offset: UInt64, into memory: UnsafeMutableRawBufferPointer) -> NBDErrno? {
        log.append("read \(export) \(offset)+\(memory.count)")
        memory.copyBytes(from: contents[Int(offset)..<Int(offset) + memory.count])
        return answer
    }

    mutating func write(export: Int, offset: UInt64, bytes: UnsafeRawBufferPointer, fua: Bool) -> NBDErrno? {
        log.append("write \(export) \(offset)+\(bytes.count)\(fua ? " fua" : "")")
        if answer == nil { contents.replaceSubrange(Int(offset)..<Int(offset) + bytes.count, with: bytes) }
        return answer
    }

    mutating func zero(export: Int, range: ByteRange, mayPunchHole: Bool, fast: Bool, fua: Bool) -> NBDErrno? {
        log.append("zero \(export) \(range)\(mayPunchHole ? "" : " nohole")\(fast ? " fast" : "")\(fua ? " fua" : "")")
        return answer
    }

    mutating func trim(export: Int, range: ByteRange, fua: Bool) -> NBDErrno? {
        log.append("trim \(export) \(range)\(fua ? " fua" : "")")
        return answer
    }

    mutating func flush(export: Int) -> NBDErrno? {
        log.append("flush \(export)")
        return answer
    }

    mutating func extents(export: Int, range: ByteRange, limit: Int) -> [NBDExtent] {
        log.append("status \(export) \(range)")
        return extents
    }

    mutating func cache(export: Int, range: ByteRange) -> NBDErrno? {
        log.append("cache \(export) \(range)")
        return answer
    }
}

/// Big-endian bytes of values, one behind the other.
func be16(_ value: UInt16) -> [UInt8] { withUnsafeBytes(of: value.bigEndian) { Array($0) } }
func be32(_ value: UInt32) -> [UInt8] { withUnsafeBytes(of: value.bigEndian) { Array($0) } }
func be64(_ value: UInt64) -> [UInt8] { withUnsafeBytes(of: value.bigEndian) { Array($0) } }
func text(_ text: String) -> [UInt8] { be32(UInt32(text.utf8.count)) + Array(text.utf8) }

/// What a client sends.
enum Client {
    static let flags = be32(3)

    static func option(_ number: UInt32, _ data: [UInt8] = []) -> [UInt8] {
        Array("IHAVEOPT".utf8) + be32(number) + be32(UInt32(data.count)) + data
    }

    static func go(_ name: String, _ wanted: [UInt16] = []) -> [UInt8] {
        option(7, text(name) + be16(UInt16(wanted.count)) + wanted.flatMap(be16))
    }

    static func request(
        _ type: UInt16, flags: UInt16 = 0, cookie: UInt64 = 1, offset: UInt64 = 0, length: UInt32 = 0,
        data: [UInt8] = []
    ) -> [UInt8] {
        be32(0x2560_9513) + be16(flags) + be16(type) + be64(cookie) + be64(offset) + be32(length) + data
    }
}

/// What a server answers.
enum Server {
    static let greeting = Array("NBDMAGICIHAVEOPT".utf8) + be16(3)

    static func reply(_ option: UInt32, _ type: UInt32, _ data: [UInt8] = []) -> [UInt8] {
        be64(0x0003_E889_0455_65A9) + be32(option) + be32(type) + be32(UInt32(data.count)) + data
    }

    static func simple(_ error: UInt32, cookie: UInt64 = 1, data: [UInt8] = []) -> [UInt8] {
        be32(0x6744_6698) + be32(error) + be64(cookie) + data
    }

    static func chunk(_ type: UInt16, cookie: UInt64 = 1, data: [UInt8]) -> [UInt8] {
        be32(0x668E_33EF) + be16(1) + be16(type) + be64(cookie) + be32(UInt32(data.count)) + data
    }
}

/// A session with a disk behind it and a client's buffer before it.
struct Rig {
    var session: NBDServerSession
    var disk: MemoryDisk
    var buffer: [UInt8] = []

    init(_ exports: [NBDExport] = [NBDExport(name: "vda", size: 65536)]) {
        session = NBDServerSession(exports: exports)
        disk = MemoryDisk()
    }

    /// Greeting, flags, GO: transmission begins.
    static func transmitting(_ export: NBDExport = NBDExport(name: "vda", size: 65536), structured: Bool = false)
        throws -> Rig
    {
        var rig = Rig([export])
        rig.start()
        _ = try rig.say(Client.flags + (structured ? Client.option(8) : []) + Client.go(export.name))
        return rig
    }

    @discardableResult
    mutating func start() -> [UInt8] {
        var output: [UInt8] = []
        session.start(output: &output)
        return output
    }

    /// Sends bytes as the caller's rule says, and returns all output.
    mutating func say(_ bytes: [UInt8]) throws(NBDError) -> [UInt8] {
        buffer += bytes
        var all: [UInt8] = []
        while !buffer.isEmpty, buffer.count >= session.bytesNeeded, !session.isFinished {
            var output: [UInt8] = []
            let outcome = buffer.withUnsafeBytes { raw in
                Result { () throws(NBDError) in try session.consume(raw, output: &output, handler: &disk) }
            }
            let used = try outcome.get()
            precondition(used > 0, "no progress with \(buffer.count) bytes, \(session.bytesNeeded) needed")
            buffer.removeFirst(used)
            all += output
        }
        return all
    }

    /// The error that bytes end in.
    mutating func fail(_ bytes: [UInt8]) -> NBDError? {
        do throws(NBDError) {
            _ = try say(bytes)
            return nil
        } catch {
            return error
        }
    }
}
