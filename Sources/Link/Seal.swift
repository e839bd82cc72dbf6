import Units

/// Closes an epoch: how much belonged to it, and a digest of it all.
public struct Seal: Equatable, Sendable, LinkPayload {
    /// Length of the payload in bytes.
    public static let length = 44

    /// Frames of kind diskWrite, diskZeroes and diskDiscard.
    public var diskFrames: UInt64 = 0
    /// Bytes of data in diskWrite frames.
    public var diskBytes: UInt64 = 0
    /// Frames of kind ramBatch.
    public var ramBatches: UInt64 = 0
    /// Bytes of payload in ramBatch frames.
    public var ramBytes: UInt64 = 0
    /// Bytes of device state.
    public var deviceBytes: UInt64 = 0
    /// See ``EpochTally``.
    public var digest: UInt32 = 0

    public init() {}

    public var kind: FrameKind { .seal }

    public func encode(into writer: inout ByteWriter) {
        writer.write(diskFrames)
        writer.write(diskBytes)
        writer.write(ramBatches)
        writer.write(ramBytes)
        writer.write(deviceBytes)
        writer.write(digest)
    }

    public static func decode(_ payload: UnsafeRawBufferPointer) throws(LinkError) -> Seal {
        var reader = PayloadReader(.seal, payload)
        var seal = Seal()
        seal.diskFrames = try reader.read()
        seal.diskBytes = try reader.read()
        seal.ramBatches = try reader.read()
        seal.ramBytes = try reader.read()
        seal.deviceBytes = try reader.read()
        seal.digest = try reader.read()
        try reader.finish()
        return seal
    }
}

/// Counts and digests the frames of one epoch. Both sides run one per epoch over the same frames in the same order.
///
/// The digest is the CRC-32C over five bytes for each frame whose kind ``FrameKind/isEpochContent``: the kind (1 byte)
/// and the CRC-32C of the payload (4 bytes, big endian).
public struct EpochTally: Sendable {
    private var counts = Seal()
    private var digest = CRC32C()

    public init() {}

    /// Takes in a frame; frames that are no content of an epoch (commands, seal, heartbeat) change nothing.
    public mutating func add(_ header: FrameHeader) {
        guard header.kind.isEpochContent else { return }
        let length = UInt64(header.payloadLength)
        switch header.kind {
        case .diskWrite:
            counts.diskFrames += 1
            counts.diskBytes += length - UInt64(DiskWrite.prefixLength)
        case .diskZeroes, .diskDiscard:
            counts.diskFrames += 1
        case .ramBatch:
            counts.ramBatches += 1
            counts.ramBytes += length
        case .deviceState:
            counts.deviceBytes += length - UInt64(DeviceState.prefixLength)
        default:
            break
        }
        let crc = header.payloadChecksum
        withUnsafeBytes(
            of: (
                header.kind.rawValue, UInt8(crc >> 24), UInt8(crc >> 16 & 0xFF), UInt8(crc >> 8 & 0xFF),
                UInt8(crc & 0xFF)
            )
        ) { digest.update($0) }
    }

    /// What the primary sends, and the secondary expects, for the frames so far.
    public var seal: Seal {
        var seal = counts
        seal.digest = digest.value
        return seal
    }

    /// Compares a seal that arrived with the frames that arrived.
    public func verify(_ sealed: Seal) throws(LinkError) {
        let arrived = seal
        let fields: [(String, UInt64, UInt64)] = [
            ("disk frames", sealed.diskFrames, arrived.diskFrames),
            ("disk bytes", sealed.diskBytes, arrived.diskBytes),
            ("RAM batches", sealed.ramBatches, arrived.ramBatches),
            ("RAM bytes", sealed.ramBytes, arrived.ramBytes),
            ("device state bytes", sealed.deviceBytes, arrived.deviceBytes),
            ("digest", UInt64(sealed.digest), UInt64(arrived.digest)),
        ]
        for (field, expected, found) in fields where expected != found {
            throw .sealMismatch(field: field, sealed: expected, arrived: found)
        }
    }
}
