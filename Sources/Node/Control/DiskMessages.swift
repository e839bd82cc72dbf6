/// What `colo-blk disk status` tells of a disk that is served by itself.
public struct DiskStatus: Codable, Sendable {
    /// Since the disk has been served.
    public struct Counters: Codable, Sendable {
        /// Bytes that clients wrote: data, and zeroes or discards.
        public var bytesReceived: UInt64 = 0
        /// Bytes written to the secondary disk, zeroes left out.
        public var bytesWritten: UInt64 = 0
        /// Bytes of the secondary disk that were made zero.
        public var bytesZeroed: UInt64 = 0
        /// Blocks of 4 KiB whose old contents went into a hidden disk.
        public var blocksPreserved: UInt64 = 0
        /// Blocks left out because the disk held their contents already.
        public var blocksUnchanged: UInt64 = 0
        public var checkpoints: UInt64 = 0
        public var rollbacks: UInt64 = 0
    }

    public var disk: String
    /// Bytes.
    public var size: UInt64
    public var durability: String
    /// Absent: no checkpoint yet.
    public var committedEpoch: UInt64?
    /// Wall-clock milliseconds since 1970 of the last checkpoint.
    public var committedAtMilliseconds: UInt64?
    /// The epoch that takes writes now.
    public var openEpoch: UInt64
    /// Bytes that hidden disks occupy.
    public var hiddenBytes: UInt64
    /// Bytes that the secondary disk occupies.
    public var secondaryBytes: UInt64
    /// Bytes of writes that wait in memory.
    public var bufferedBytes: UInt64
    /// Most bytes that may wait there.
    public var bufferLimitBytes: UInt64
    /// NBD clients that are connected.
    public var clients: Int
    public var counters: Counters
    /// Why the disk takes no more writes; absent when it does.
    public var failure: String?
}

/// What `colo-blk disk checkpoint` and `rollback` did.
public struct DiskChange: Codable, Sendable {
    public var disk: String
    /// The last checkpoint now.
    public var epoch: UInt64
    /// From the moment when the request was read.
    public var milliseconds: Double
    /// Of a rollback: bytes that were written back.
    public var bytesRestored: UInt64?
}
