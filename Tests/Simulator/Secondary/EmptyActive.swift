import Qcow2

/// The overlay that a guest gets for its own writes at a failover.
struct EmptyActive {
    let length: Int
    let writes: [FileWrite]

    init(size: UInt64, backing: String) throws {
        let empty = try EmptyOverlay(
            virtualSize: size, backingFile: backing, backingFormat: backing.hasSuffix(".raw") ? .raw : .qcow2)
        length = Int(empty.fileLength)
        writes = empty.writes
    }
}
