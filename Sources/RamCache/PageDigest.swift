import Units

/// The digest by which two hosts compare a page: CRC-32C of its 4096 bytes.
public enum PageDigest {
    /// Of a page of zeroes.
    public static let zero = BaseImageSums.zeroPage

    /// Of the 4096 bytes at the address. Pages of zeroes cost no more than looking at them.
    public static func of(_ page: UnsafeRawPointer) -> UInt32 {
        PageDelta.isZero(page) ? zero : CRC32C.checksum(UnsafeRawBufferPointer(start: page, count: Sizes.page))
    }
}
