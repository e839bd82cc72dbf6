/// Big-endian fields at checked places of bytes that somebody else owns. Traps outside of them: the caller checks.
struct ImageFields {
    let bytes: UnsafeRawBufferPointer

    func u16(_ offset: Int) -> UInt16 { load(offset) }
    func u32(_ offset: Int) -> UInt32 { load(offset) }
    func u64(_ offset: Int) -> UInt64 { load(offset) }

    @inline(__always)
    private func load<T: FixedWidthInteger>(_ offset: Int) -> T {
        precondition(offset >= 0 && offset <= bytes.count - MemoryLayout<T>.size)
        return T(bigEndian: bytes.loadUnaligned(fromByteOffset: offset, as: T.self))
    }

    /// Text without zero bytes; nil when it is none.
    func text(_ offset: Int, _ length: Int) -> String? {
        precondition(offset >= 0 && length >= 0 && offset <= bytes.count - length)
        let slice = bytes[offset..<offset + length]
        guard !slice.contains(0) else { return nil }
        return String(validating: slice, as: UTF8.self)
    }
}
