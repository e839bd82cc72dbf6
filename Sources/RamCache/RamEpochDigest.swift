import Units

/// Counts and digest of all RAM batches of one epoch, computed alike by the sender and the receiver.
///
/// The digest is the CRC-32C of the 24-byte headers of the epoch's batches in order. Each header holds the CRC-32C of
/// its batch, so the digest covers every byte at the cost of 24 per batch.
public struct RamEpochDigest: Sendable, Equatable {
    /// Number of batches.
    public private(set) var batches: UInt32 = 0
    /// Number of entries in them.
    public private(set) var pages: UInt64 = 0
    /// Bytes of them, headers included.
    public private(set) var bytes: UInt64 = 0
    /// The digest so far; 0 for an epoch without batches.
    public private(set) var value: UInt32 = 0
    private var crc = CRC32C()

    public init() {}

    /// Takes a batch that the encoder made or ``PageBatch/verify(_:)`` accepted. Traps when it has no header.
    public mutating func add(_ batch: UnsafeRawBufferPointer) {
        precondition(batch.count >= PageBatch.headerBytes)
        batches += 1
        pages += UInt64(PageBatch.load(batch, 8, UInt16.self))
        bytes += UInt64(batch.count)
        crc.update(UnsafeRawBufferPointer(rebasing: batch[0..<PageBatch.headerBytes]))
        value = crc.value
    }

    public static func == (lhs: Self, rhs: Self) -> Bool {
        lhs.batches == rhs.batches && lhs.pages == rhs.pages && lhs.bytes == rhs.bytes && lhs.value == rhs.value
    }
}
