/// What a migration stream may ask of us at most. Anything beyond is refused before memory is taken for it.
public struct MigrationLimits: Sendable, Equatable {
    /// Sum of the lengths of all RAM blocks in bytes.
    public var maxRamBytes: UInt64
    /// Number of RAM blocks.
    public var maxBlocks: Int
    /// Device state of one checkpoint in bytes.
    public var maxDeviceStateBytes: Int
    /// The JSON description that QEMU puts behind the initial device state, in bytes.
    public var maxVmdescBytes: Int
    /// Payload of the configuration section in bytes; values above 60 KiB count as 60 KiB.
    public var maxConfigurationBytes: Int

    public init(
        maxRamBytes: UInt64 = 1 << 40,
        maxBlocks: Int = 1024,
        maxDeviceStateBytes: Int = 256 << 20,
        maxVmdescBytes: Int = 16 << 20,
        maxConfigurationBytes: Int = 60 << 10
    ) {
        precondition(maxBlocks > 0 && maxDeviceStateBytes > 0 && maxVmdescBytes > 0 && maxConfigurationBytes > 0)
        self.maxRamBytes = maxRamBytes
        self.maxBlocks = maxBlocks
        self.maxDeviceStateBytes = maxDeviceStateBytes
        self.maxVmdescBytes = maxVmdescBytes
        self.maxConfigurationBytes = min(maxConfigurationBytes, 60 << 10)
    }
}
