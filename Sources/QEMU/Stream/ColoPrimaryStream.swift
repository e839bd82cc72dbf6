/// The QEMU-facing half of COLO on the migration socket of a primary: stream parser and legal order in one, sans-IO.
///
/// ```
///  QEMU -> agent                                            agent -> QEMU
///  "QEVM" 00000003  07 configuration
///  08 enable-colo  01 RAM layout  { 02 RAM pages }*  03 RAM pages     the guest runs, then stops
///  { 04 device section }*  00  06 description
///                                                           ready()      the guest runs
///  checkpoint-request
///                                                           reply()      the guest stops
///  vmstate-send  { 08 command }*  03 RAM pages  00
///  vmstate-size  u64  { 04 device section }*  00
///                                                           received() loaded()   the guest runs
/// ```
/// The last two may also be said ahead, behind `vmstate-send` (``acknowledgeAhead()``): then the guest runs on as soon as
/// QEMU has handed over the last byte, and does not wait until it was read.
///
/// Everything read is checked: order, names, section ids, footers, offsets, sums, sizes. A stream that has failed stays
/// failed. A value of this type belongs to one connection; QEMU's "same block as before" flag reaches across sections
/// and checkpoints, so it must live as long as the connection.
public struct ColoPrimaryStream: Sendable {
    /// Where the conversation is. "Ours" means that QEMU waits for the agent and must be silent.
    public enum State: Sendable, Equatable {
        /// Magic and version. Next: configuration.
        case header
        /// Section 07. Next: setup.
        case configuration
        /// Commands and the RAM layout. Next: precopy.
        case setup
        /// RAM while the guest runs. Next: precopyEnded.
        case precopy
        /// The last RAM section is complete and the guest stopped. Next: initialDevices.
        case precopyEnded
        /// Device sections and their description. Next: awaitingReady.
        case initialDevices
        /// Ours: ``ColoPrimaryStream/ready()``. Next: running.
        case awaitingReady
        /// The guest runs. Next: awaitingReply.
        case running
        /// Ours: ``ColoPrimaryStream/reply()``. Next: stopping.
        case awaitingReply
        /// QEMU stops the guest. Next: checkpointRam.
        case stopping
        /// RAM of a checkpoint. Next: checkpointRamEnded.
        case checkpointRam
        /// RAM of a checkpoint is complete, its size message is due. Next: checkpointDevices.
        case checkpointRamEnded
        /// Device state of a checkpoint. Next: awaitingReceived; running when it was acknowledged ahead.
        case checkpointDevices
        /// Ours: ``ColoPrimaryStream/received()``. Next: awaitingLoaded.
        case awaitingReceived
        /// Ours: ``ColoPrimaryStream/loaded()``. Next: running.
        case awaitingLoaded
    }

    /// What stands next inside a state that consists of sections.
    enum Item: Sendable, Equatable {
        /// A type byte.
        case section
        /// The rest of a command, in bytes.
        case command(left: Int)
        /// The list of RAM blocks; bytes of RAM not listed yet.
        case blockList(left: UInt64)
        case ramItems(SectionKind)
        case footer(SectionKind)
    }

    enum SectionKind: Sendable, Equatable { case start, part, end }

    /// Bytes of a stream item that must lie together at most: what ``consume(_:into:)`` may leave to the caller.
    public static let maxContiguousBytes = 64 << 10

    public let limits: MigrationLimits
    public internal(set) var state: State = .header
    /// The checkpoint of this connection that is under way or was completed last; 0 is the initial copy.
    public internal(set) var checkpoint: UInt64 = 0
    /// Bytes consumed since the connection was opened.
    public private(set) var offset: UInt64 = 0
    /// What configuration the stream has told; nil before.
    public internal(set) var machine: MachineConfiguration?
    /// What layout the stream has told; empty before.
    public internal(set) var blocks: [RamBlockDescription] = []
    /// The id of the RAM section in this stream; nil before.
    public internal(set) var ramSectionID: UInt32?

    private var failure: MigrationStreamError?
    var item: Item = .section
    var isColoEnabled = false
    /// Blocks listed so far, before the layout is complete, and the index of each name.
    var listed: [RamBlockDescription] = []
    var blockIndex: [String: Int] = [:]
    /// The block of the last page, and its length; -1 and 0 before the first.
    var currentBlock = -1
    var currentLength: UInt64 = 0
    /// Whether the RAM section of this checkpoint has ended.
    var hasRamEnded = false
    /// Whether this checkpoint was acknowledged before all of it had come.
    public internal(set) var isAcknowledgedAhead = false
    var collector: DeviceStateCollector
    var deviceState: [UInt8] = []
    /// Bytes of ``deviceState`` that are to come.
    var deviceStateLeft = 0

    public init(limits: MigrationLimits = MigrationLimits()) {
        self.limits = limits
        self.collector = DeviceStateCollector(limits: limits)
    }

    /// Reads as much of `bytes` as is complete and tells it to `sink`.
    ///
    /// - Parameter bytes: everything the caller holds: what earlier calls left, then what has come since. It may be cut
    ///   anywhere. In the state `initialDevices` its end matters: give all that the socket had.
    /// - Returns: the bytes consumed from the front. What is left is part of an item and shorter than
    ///   ``maxContiguousBytes``; it must be given again in front of further bytes.
    /// - Throws: what is wrong with the stream. The stream is unusable from then on and throws the same again.
    public mutating func consume<Sink: MigrationSink>(
        _ bytes: UnsafeRawBufferPointer, into sink: inout Sink
    ) throws(MigrationStreamError) -> Int {
        if let failure { throw failure }
        guard bytes.count > 0 else { return 0 }
        var window = StreamWindow(bytes)
        do throws(MigrationStreamError.Reason) {
            while try step(&window, into: &sink) {}
        } catch {
            throw fail(error, at: offset + UInt64(window.position))
        }
        offset += UInt64(window.position)
        return window.position
    }

    /// Tells that QEMU has sent nothing for a while (some 200 ms) although it is its turn. Only the end of the initial
    /// device state can depend on it, when its description is well formed and in its place but lists other devices than
    /// the stream shows.
    ///
    /// - Returns: whether that completed the initial state; if not, nothing has changed.
    public mutating func silence<Sink: MigrationSink>(into sink: inout Sink) -> Bool {
        guard failure == nil, state == .initialDevices, let complete = collector.finished(afterSilence: true) else {
            return false
        }
        state = .awaitingReady
        sink.initialStateComplete(deviceState: complete)
        return true
    }

    /// The error for a caller that will not wait for QEMU any longer.
    public func timedOut() -> MigrationStreamError {
        if let failure { return failure }
        guard state == .initialDevices else { return error(.timedOut, at: offset) }
        return error(.deviceStateWithoutEnd(bytes: collector.count), at: offset)
    }

    /// The error that describes the end of the connection at this point.
    public func connectionClosed() -> MigrationStreamError {
        failure ?? error(.connectionClosed, at: offset)
    }

    /// The initial state is held. Traps unless the state is `awaitingReady`, as the others do in their way.
    ///
    /// - Returns: the bytes to send to QEMU.
    public mutating func ready() -> [UInt8] {
        turn(from: .awaitingReady, to: .running, saying: .checkpointReady)
    }

    /// Begin the checkpoint. Traps unless the state is `awaitingReply`.
    public mutating func reply() -> [UInt8] {
        turn(from: .awaitingReply, to: .stopping, saying: .checkpointReply)
    }

    /// The checkpoint is held. Traps unless the state is `awaitingReceived`.
    public mutating func received() -> [UInt8] {
        turn(from: .awaitingReceived, to: .awaitingLoaded, saying: .vmstateReceived)
    }

    /// Let the guest go on. Traps unless the state is `awaitingLoaded`.
    public mutating func loaded() -> [UInt8] {
        turn(from: .awaitingLoaded, to: .running, saying: .vmstateLoaded)
    }

    /// Whether a checkpoint is coming in and has not been acknowledged: ``acknowledgeAhead()`` is allowed.
    public var mayAcknowledgeAhead: Bool {
        switch state {
        case .checkpointRam, .checkpointRamEnded, .checkpointDevices: failure == nil && !isAcknowledgedAhead
        default: false
        }
    }

    /// All of the checkpoint will be taken: the guest may go on when QEMU has sent its last byte. Neither `received()` nor
    /// `loaded()` is due for this checkpoint any more. Traps unless ``mayAcknowledgeAhead``.
    ///
    /// - Returns: the bytes to send to QEMU.
    public mutating func acknowledgeAhead() -> [UInt8] {
        precondition(mayAcknowledgeAhead, "an acknowledgement ahead is not due in \(state)")
        isAcknowledgedAhead = true
        return ColoMessage.vmstateReceived.bytes + ColoMessage.vmstateLoaded.bytes
    }

    private mutating func turn(from expected: State, to next: State, saying message: ColoMessage) -> [UInt8] {
        precondition(failure == nil, "\(message) to a stream that has failed")
        precondition(state == expected, "\(message) is not due in \(state)")
        state = next
        return message.bytes
    }

    private func error(_ reason: MigrationStreamError.Reason, at offset: UInt64) -> MigrationStreamError {
        MigrationStreamError(reason: reason, offset: offset, state: state, checkpoint: checkpoint)
    }

    private mutating func fail(_ reason: MigrationStreamError.Reason, at offset: UInt64) -> MigrationStreamError {
        let error = error(reason, at: offset)
        failure = error
        return error
    }

    /// Reads one item. Returns false when more bytes are needed; then nothing was taken.
    private mutating func step<Sink: MigrationSink>(
        _ window: inout StreamWindow, into sink: inout Sink
    ) throws(MigrationStreamError.Reason) -> Bool {
        guard window.remaining > 0 else { return false }
        switch state {
        case .header: return try stepHeader(&window)
        case .configuration: return try stepConfiguration(&window, into: &sink)
        case .setup, .precopy, .precopyEnded, .checkpointRam: return try stepSections(&window, into: &sink)
        case .initialDevices: return try stepInitialDevices(&window, into: &sink)
        case .running: return try stepRequest(&window, into: &sink)
        case .stopping: return try stepSend(&window, into: &sink)
        case .checkpointRamEnded: return try stepSize(&window)
        case .checkpointDevices: return try stepCheckpointDevices(&window, into: &sink)
        case .awaitingReady, .awaitingReply, .awaitingReceived, .awaitingLoaded:
            throw .unexpectedData(bytes: window.remaining)
        }
    }
}

extension ColoPrimaryStream.State: CustomStringConvertible {
    public var description: String {
        switch self {
        case .header: "stream header"
        case .configuration: "configuration section"
        case .setup: "setup sections"
        case .precopy: "RAM while the guest runs"
        case .precopyEnded: "before the device sections"
        case .initialDevices: "device sections"
        case .awaitingReady: "waiting for our checkpoint-ready"
        case .running: "guest running"
        case .awaitingReply: "waiting for our checkpoint-reply"
        case .stopping: "guest stopping"
        case .checkpointRam: "RAM of the stopped guest"
        case .checkpointRamEnded: "before the device state"
        case .checkpointDevices: "device state"
        case .awaitingReceived: "waiting for our vmstate-received"
        case .awaitingLoaded: "waiting for our vmstate-loaded"
        }
    }
}
