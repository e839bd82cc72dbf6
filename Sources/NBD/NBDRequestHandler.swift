import Units

/// Performs the requests of a session. Ranges were validated: inside the export, aligned, permitted.
///
/// Each method answers at once: nil for success, or the error number that the client is told. `export` is the index
/// into the exports that the session was made with.
public protocol NBDRequestHandler {
    /// Fills all of `memory` with the contents from `offset` on.
    mutating func read(export: Int, offset: UInt64, into memory: UnsafeMutableRawBufferPointer) -> NBDErrno?

    /// Takes in data; `bytes` are valid during the call only. With `fua` they must be as safe as after a flush.
    mutating func write(export: Int, offset: UInt64, bytes: UnsafeRawBufferPointer, fua: Bool) -> NBDErrno?

    /// Makes a range read as zeroes. `mayPunchHole` is false when the client wants the space to stay allocated; with
    /// `fast`, answer `.notSupported` at once rather than take as long as writing zeroes would.
    mutating func zero(export: Int, range: ByteRange, mayPunchHole: Bool, fast: Bool, fua: Bool) -> NBDErrno?

    /// The contents of a range no longer matter.
    mutating func trim(export: Int, range: ByteRange, fua: Bool) -> NBDErrno?

    /// Everything acknowledged before must be safe, as far as the export promises.
    mutating func flush(export: Int) -> NBDErrno?

    /// The client will soon read a range; only a hint.
    mutating func cache(export: Int, range: ByteRange) -> NBDErrno?
}

extension NBDRequestHandler {
    public mutating func cache(export: Int, range: ByteRange) -> NBDErrno? { nil }
}
