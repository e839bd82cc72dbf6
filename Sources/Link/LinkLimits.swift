/// The bounds of the link, in bytes or counts. A peer that goes beyond one is refused before anything is allocated.
public enum LinkLimits {
    /// The longest payload of any frame.
    public static let payloadMax = 4 << 20
    /// The most disk data in one write frame.
    public static let diskDataMax = 1 << 20
    /// The most device state in one frame.
    public static let deviceChunkMax = 1 << 20
    /// The longest identity (opaque JSON).
    public static let identityMax = 1 << 20
    /// The longest configuration section of the migration stream.
    public static let configurationMax = 64 << 10
    /// The most page digests in one frame.
    public static let digestsMax = 65536
    /// The most bytes of digests and runs in one frame.
    public static let diskDigestsMax = 128 << 10
    /// The most blocks of 64 KiB that one question about a disk, or one answer, is about.
    public static let verifyBlocksMax = 1024
    /// The most pages that are asked for at once to be sent again.
    public static let repairPagesMax = 4096
    /// The most RAM blocks of a guest.
    public static let ramBlocksMax = 1024
    /// The most disks of a guest.
    public static let disksMax = 16
    /// The longest text for a person in a refusal or farewell.
    public static let messageMax = 4096
}
