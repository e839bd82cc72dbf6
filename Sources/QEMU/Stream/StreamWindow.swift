/// The bytes that one call of the parser may read, and how far it has come. Items are taken whole or not at all.
struct StreamWindow {
    let base: UnsafeRawPointer?
    let count: Int
    private(set) var position = 0

    init(_ bytes: UnsafeRawBufferPointer) {
        base = bytes.baseAddress
        count = bytes.count
    }

    var remaining: Int { count - position }

    /// A value `distance` bytes ahead; nil when it is not all there.
    @inline(__always)
    func peek<T: FixedWidthInteger>(_ type: T.Type, at distance: Int = 0) -> T? {
        guard let base, distance + MemoryLayout<T>.size <= remaining else { return nil }
        return T(bigEndian: base.loadUnaligned(fromByteOffset: position + distance, as: T.self))
    }

    /// Bytes ahead; nil when they are not all there.
    @inline(__always)
    func peek(bytes length: Int, at distance: Int = 0) -> UnsafeRawBufferPointer? {
        guard let base, distance + length <= remaining else { return nil }
        return UnsafeRawBufferPointer(start: base + position + distance, count: length)
    }

    /// Everything that is left.
    var rest: UnsafeRawBufferPointer {
        UnsafeRawBufferPointer(start: base.map { $0 + position }, count: remaining)
    }

    @inline(__always)
    mutating func advance(_ length: Int) {
        precondition(length >= 0 && length <= remaining)
        position += length
    }

    /// A name of 1 to 255 bytes with its length before it, `distance` bytes ahead; nil when it is not all there.
    func peekName(at distance: Int) throws(MigrationStreamError.Reason) -> (name: String, end: Int)? {
        guard let length = peek(UInt8.self, at: distance) else { return nil }
        guard length > 0 else { throw .emptyName }
        guard let bytes = peek(bytes: Int(length), at: distance + 1) else { return nil }
        guard let name = String(validating: bytes, as: UTF8.self) else { throw .nameNotText }
        return (name, distance + 1 + Int(length))
    }
}
