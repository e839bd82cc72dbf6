/// Why a migration stream was given up: what came, what was expected, where, and in which phase of which checkpoint.
public struct MigrationStreamError: Error, Equatable, Sendable, CustomStringConvertible {
    /// What is wrong with the stream.
    public enum Reason: Error, Equatable, Sendable {
        case wrongMagic(UInt32)
        case unsupportedVersion(UInt32)
        /// Another section than 07 follows the header.
        case configurationExpected(found: UInt8)
        case configuration(MachineConfiguration.Problem)
        /// A capability that changes the layout of the stream is in use.
        case unsupportedCapability(String)
        /// The target's pages are not 4096 bytes long.
        case unsupportedPageBits(UInt32)
        case refusedCommand(number: UInt16, name: String)
        /// An ordinary migration: the guest would be stopped for ever at its end.
        case coloNotEnabled
        /// A section or mark of this type must not come here.
        case unexpectedSection(type: UInt8, expected: String)
        /// Something other than RAM wants to be copied while the guest runs.
        case unsupportedLiveSection(name: String)
        case unsupportedRamSection(version: UInt32, instance: UInt32)
        case wrongSectionID(found: UInt32, expected: UInt32)
        case footerExpected(found: UInt8)
        case wrongFooterID(found: UInt32, expected: UInt32)
        case nameNotText
        case emptyName
        case ramTooLarge(bytes: UInt64, limit: UInt64)
        case tooManyBlocks(limit: Int)
        case duplicateBlock(String)
        /// Not a multiple of 4096, zero, or more than what is left of the total.
        case badBlockLength(name: String, length: UInt64, left: UInt64)
        case ramLayoutMissing
        case ramLayoutRepeated
        case unsupportedRamFlags(UInt64)
        case unknownBlock(String)
        /// The first page of the stream does not name its block.
        case noBlockYet
        case pageOutsideBlock(name: String, offset: UInt64, length: UInt64)
        case checkpointWithoutRam
        case deviceStateTooLarge(bytes: UInt64, limit: Int)
        /// The device state of a checkpoint is not a row of device sections with an end mark.
        case malformedDeviceState(String)
        /// QEMU went silent, but the initial device state has no description at its end.
        case deviceStateWithoutEnd(bytes: Int)
        case wrongMessage(found: UInt32, expected: ColoMessage)
        /// Bytes came while it was our turn.
        case unexpectedData(bytes: Int)
        case connectionClosed
        /// QEMU has sent nothing for longer than the caller waits.
        case timedOut
        /// The sink will not have what the stream says.
        case refusedBySink(String)
    }

    public let reason: Reason
    /// Offset in bytes from the start of the connection of the item that is wrong.
    public let offset: UInt64
    /// What was going on.
    public let state: ColoPrimaryStream.State
    /// The checkpoint of this connection: 0 is the initial copy.
    public let checkpoint: UInt64

    public init(reason: Reason, offset: UInt64, state: ColoPrimaryStream.State, checkpoint: UInt64) {
        self.reason = reason
        self.offset = offset
        self.state = state
        self.checkpoint = checkpoint
    }

    /// What a sink throws to refuse the machine; the stream adds where that was.
    public static func refusal(_ why: String) -> MigrationStreamError {
        MigrationStreamError(reason: .refusedBySink(why), offset: 0, state: .configuration, checkpoint: 0)
    }

    public var description: String {
        let place = checkpoint == 0 ? "the initial copy" : "checkpoint \(checkpoint)"
        var text = "migration stream, byte \(offset), \(place), \(state): \(reason)"
        if reason == .connectionClosed, state == .awaitingReady {
            text += "; QEMU has left COLO at once, as 10.0 and 10.1 do (a known fault of theirs, use another version)"
        }
        return text
    }
}

extension MigrationStreamError.Reason: CustomStringConvertible {
    public var description: String {
        switch self {
        case .wrongMagic(let found): "not a migration stream: it begins with 0x\(hex(found)), not 0x5145564d"
        case .unsupportedVersion(let found): "version \(found) of the stream; only 3 is known"
        case .configurationExpected(let found):
            "section type 0x\(hex(found)) where the configuration section (0x07) must be; "
                + "the machine must not turn it off"
        case .configuration(let problem): "configuration section: \(problem)"
        case .unsupportedCapability(let name):
            "migration capability '\(name)' is in use; turn off all but x-colo and attach again"
        case .unsupportedPageBits(let bits):
            "the target's pages have \(bits) address bits; only 12 (4096 bytes) are supported"
        case .refusedCommand(let number, let name):
            "command \(number) (\(name)): turn off all migration capabilities but x-colo and attach again"
        case .coloNotEnabled: "this is an ordinary migration, not COLO; set the capability x-colo first"
        case .unexpectedSection(let type, let expected): "section type 0x\(hex(type)) where \(expected) must be"
        case .unsupportedLiveSection(let name): "'\(name)' wants to be copied while the guest runs; only RAM can be"
        case .unsupportedRamSection(let version, let instance):
            "RAM section of version \(version), instance \(instance); only version 4, instance 0 is known"
        case .wrongSectionID(let found, let expected): "section \(found) where the RAM section \(expected) must be"
        case .footerExpected(let found): "byte 0x\(hex(found)) where the section's footer (0x7e) must be"
        case .wrongFooterID(let found, let expected): "footer of section \(found) behind section \(expected)"
        case .nameNotText: "a name is not UTF-8"
        case .emptyName: "a name is empty"
        case .ramTooLarge(let bytes, let limit): "\(bytes) bytes of RAM; the limit is \(limit)"
        case .tooManyBlocks(let limit): "more than \(limit) RAM blocks"
        case .duplicateBlock(let name): "RAM block '\(name)' is listed twice"
        case .badBlockLength(let name, let length, let left):
            "RAM block '\(name)' of \(length) bytes: not a multiple of 4096 between 4096 and the \(left) bytes left"
        case .ramLayoutMissing: "a RAM section without the list of blocks before it"
        case .ramLayoutRepeated: "the list of RAM blocks comes a second time"
        case .unsupportedRamFlags(let flags):
            "RAM flags 0x\(String(flags, radix: 16)) (\(MigrationWire.names(ofFlags: flags))) are not understood; "
                + "turn off all migration capabilities but x-colo"
        case .unknownBlock(let name): "a page of RAM block '\(name)', which is not in the list"
        case .noBlockYet: "the first page does not name its RAM block"
        case .pageOutsideBlock(let name, let offset, let length):
            "page at \(offset) of RAM block '\(name)', which is \(length) bytes long"
        case .checkpointWithoutRam: "a checkpoint without the end of its RAM section"
        case .deviceStateTooLarge(let bytes, let limit): "device state of \(bytes) bytes; the limit is \(limit)"
        case .malformedDeviceState(let why): "device state is not a row of device sections: \(why)"
        case .deviceStateWithoutEnd(let bytes):
            "QEMU went silent after \(bytes) bytes of device state without the description that marks its end; "
                + "the machine must not set suppress-vmdesc"
        case .wrongMessage(let found, let expected):
            "message \(found)\(ColoMessage(rawValue: found).map { " (\($0))" } ?? "") where \(expected) must be"
        case .unexpectedData(let bytes): "\(bytes) bytes came while QEMU must wait for us"
        case .connectionClosed: "QEMU has closed the connection"
        case .timedOut: "QEMU has sent nothing for too long"
        case .refusedBySink(let why): why
        }
    }
}

private func hex<T: FixedWidthInteger & UnsignedInteger>(_ value: T) -> String {
    let digits = String(value, radix: 16)
    return String(repeating: "0", count: T.bitWidth / 4 - digits.count) + digits
}
