import Foundation
import Glibc
import Link
import Synchronization
import Units

/// Bytes of the link, right and wrong.
enum FakeFrames {
    static func frame(
        _ payload: some LinkPayload, generation: UInt64 = 0, epoch: UInt64 = 0, version: UInt8 = FrameHeader.version
    ) -> [UInt8] {
        var writer = ByteWriter()
        Frame.append(payload, generation: Generation(generation), epoch: Epoch(epoch), to: &writer)
        return sealed(writer.bytes, version: version)
    }

    static func command(_ kind: FrameKind, generation: UInt64 = 0, epoch: UInt64 = 0) -> [UInt8] {
        var writer = ByteWriter()
        Frame.append(kind: kind, generation: Generation(generation), epoch: Epoch(epoch), to: &writer)
        return writer.bytes
    }

    /// A raw header with a right checksum, whatever its fields say.
    static func header(
        version: UInt8 = 1, kind: UInt8, flags: UInt16 = 0, generation: UInt64 = 0, epoch: UInt64 = 0, length: UInt32,
        payloadChecksum: UInt32 = 0, reserved: UInt32 = 0
    ) -> [UInt8] {
        var writer = ByteWriter()
        writer.write(FrameHeader.magic)
        writer.write(version)
        writer.write(kind)
        writer.write(flags)
        writer.write(generation)
        writer.write(epoch)
        writer.write(length)
        writer.write(payloadChecksum)
        writer.write(reserved)
        writer.write(CRC32C.checksum(writer.bytes))
        return writer.bytes
    }

    /// The frame with another version in its header, its checksum right again.
    private static func sealed(_ frame: [UInt8], version: UInt8) -> [UInt8] {
        var frame = frame
        frame[4] = version
        let checksum = CRC32C.checksum(Array(frame[..<36]))
        for (index, shift) in [24, 16, 8, 0].enumerated() {
            frame[36 + index] = UInt8(truncatingIfNeeded: checksum >> shift)
        }
        return frame
    }

    static func hello(
        guest: String, version: UInt16 = UInt16(FrameHeader.version), disks: [Hello.Disk] = [], generation: UInt64 = 0
    ) -> Hello {
        var random = SystemRandomNumberGenerator()
        return Hello(
            protocolVersion: version, guest: guest, session: Identifier(using: &random), durability: .memory,
            label: "a test", disks: disks, generation: Generation(generation), agentVersion: "0.0-test")
    }

    /// The next frame of a stream, whole; nil at its end or when none comes in time.
    static func read(_ stream: FakeStream, _ pending: inout [UInt8]) -> (header: FrameHeader, payload: [UInt8])? {
        while true {
            if pending.count >= FrameHeader.length {
                let header = pending.withUnsafeBytes { bytes in try? FrameHeader.decode(bytes) }
                guard let header else { return nil }
                if pending.count >= header.frameLength {
                    let payload = Array(pending[FrameHeader.length..<header.frameLength])
                    pending.removeSubrange(..<header.frameLength)
                    return (header, payload)
                }
            }
            let more = stream.read()
            if more.isEmpty { return nil }
            pending += more
        }
    }
}

/// A primary that says what a test wants.
final class FakePrimary {
    let stream: FakeStream
    private var pending: [UInt8] = []

    init(_ address: String) throws {
        stream = try FakeStream.connect(to: address)
        stream.setReadLimit(10)
    }

    @discardableResult
    func send(_ bytes: [UInt8]) -> Bool { stream.write(bytes) }

    func frame() -> (header: FrameHeader, payload: [UInt8])? { FakeFrames.read(stream, &pending) }

    /// The refusal that comes, heartbeats passed over.
    func refusal() -> Refuse? {
        while let (header, payload) = frame() {
            if header.kind == .refuse {
                return try? payload.withUnsafeBytes { bytes throws(LinkError) in try Refuse.decode(bytes) }
            }
            if header.kind != .heartbeat, header.kind != .diskDigests, header.kind != .ramKnown { return nil }
        }
        return nil
    }

    func welcome() -> Welcome? {
        guard let (header, payload) = frame(), header.kind == .welcome else { return nil }
        return try? payload.withUnsafeBytes { bytes throws(LinkError) in try Welcome.decode(bytes) }
    }
}

extension FakeListener {
    /// Connects everybody who comes with `target`. `carry` passes on what a primary says and returns at its end; everything
    /// the other way is passed on as it is.
    static func relay(
        _ address: String, to target: String, carry: @escaping @Sendable (FakeStream, FakeStream) -> Void
    ) throws -> FakeListener {
        try FakeListener(address) { primary in
            guard let secondary = try? FakeStream.connect(to: target) else { return primary.shut() }
            primary.setReadLimit(3600)
            secondary.setReadLimit(3600)
            Thread.detachNewThread {
                while true {
                    let bytes = secondary.read()
                    guard !bytes.isEmpty, primary.write(bytes) else { break }
                }
                primary.shut()
                secondary.shut()
            }
            carry(primary, secondary)
            primary.shut()
            secondary.shut()
        }
    }
}

/// A link between a real primary and a real secondary that can be cut, in the middle of a frame too.
final class FakeCable {
    private enum Cut { case none, insideNextCheckpoint, done }

    let address: String
    private let folder: FakeFolder
    private let listener: FakeListener
    private let state: State

    private final class State: Sendable {
        let cut = Mutex(Cut.none)
    }

    init(to target: String) throws {
        folder = try FakeFolder()
        address = "unix:\(folder["cable.sock"])"
        let state = State()
        self.state = state
        listener = try FakeListener.relay(address, to: target) { primary, secondary in
            Self.carry(from: primary, to: secondary, state)
        }
    }

    /// Frame by frame, so that a cut can be put where a test wants it.
    private static func carry(from primary: FakeStream, to secondary: FakeStream, _ state: State) {
        var pending: [UInt8] = []
        var insideCheckpoint = false
        while let (header, payload) = FakeFrames.read(primary, &pending) {
            var writer = ByteWriter()
            header.encode(into: &writer)
            let frame = writer.bytes + payload
            if header.kind == .send { insideCheckpoint = true }
            if header.kind == .seal { insideCheckpoint = false }
            let isTime = insideCheckpoint && (header.kind == .ramBatch || header.kind == .deviceState)
            if isTime, state.cut.withLock({ $0 == .insideNextCheckpoint }) {
                secondary.write(frame[..<(frame.count / 2)])
                state.cut.withLock { $0 = .done }
                return
            }
            guard secondary.write(frame) else { return }
        }
    }

    /// Cuts the link between the boundary of the next checkpoint and its seal, with half of a frame delivered.
    func cutInsideNextCheckpoint() -> Bool {
        state.cut.withLock { $0 = .insideNextCheckpoint }
        return FakeTool.wait(20) { state.cut.withLock { $0 == .done } }
    }
}
