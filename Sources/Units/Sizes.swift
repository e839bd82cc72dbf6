/// Sizes that more than one room must agree on, in bytes.
public enum Sizes {
    /// A guest page, and the granularity of pre-images on the secondary disk.
    public static let page = 4096
    /// The smallest piece of a disk that a write may cover.
    public static let sector = 512
}
