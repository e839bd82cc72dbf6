/// Collects the initial device state and finds its end.
///
/// Device sections carry no length, so the end can only be told by what stands there: the end mark `00`, then the
/// description `06`, u32 length, JSON. QEMU says nothing more until it is answered, so the description ends exactly
/// where the bytes end. Three things together make a false end practically impossible, even for a guest that plants
/// such bytes in a device's buffer: the length lands on the last byte that came, the text is a JSON object with QEMU's
/// keys, and the devices that it lists are the sections that were collected, in order, with their footers.
///
/// Each byte is looked at once for a beginning (`00 06 length {"`). A JSON text holds no zero byte, so a later one
/// always rules out the earlier: one candidate is enough, and all checks together take linear time.
struct DeviceStateCollector: Sendable {
    /// A place where the end may have begun.
    private struct Candidate: Sendable {
        /// Offset of the end mark `00`.
        var mark: Int
        /// Offset behind the description.
        var end: Int
    }

    /// Bytes of `00 06` and the length.
    private static let prefix = 6

    private let limits: MigrationLimits
    private var bytes: [UInt8] = []
    private var candidate: Candidate?

    init(limits: MigrationLimits) {
        self.limits = limits
    }

    var count: Int { bytes.count }

    mutating func append(_ piece: UnsafeRawBufferPointer) throws(MigrationStreamError.Reason) {
        let limit = limits.maxDeviceStateBytes + limits.maxVmdescBytes + Self.prefix
        guard piece.count <= limit - bytes.count else {
            throw .deviceStateTooLarge(
                bytes: UInt64(bytes.count) + UInt64(piece.count), limit: limits.maxDeviceStateBytes)
        }
        let scanned = bytes.count
        bytes.append(contentsOf: piece)
        bytes.withUnsafeBytes { all in
            if let found = Self.lastCandidate(in: all, from: scanned, limits: limits) { candidate = found }
        }
        if let candidate, candidate.end < bytes.count { self.candidate = nil }
    }

    /// The last beginning of a description whose quotation mark lies at `start` or behind.
    private static func lastCandidate(
        in bytes: UnsafeRawBufferPointer, from start: Int, limits: MigrationLimits
    ) -> Candidate? {
        let first = max(start, prefix + 1)
        var found: Candidate?
        for quote in first..<max(first, bytes.count) where bytes[quote] == UInt8(ascii: "\"") {
            let mark = quote - prefix - 1
            guard bytes[quote - 1] == UInt8(ascii: "{"), bytes[mark] == MigrationWire.endOfFile,
                bytes[mark + 1] == MigrationWire.vmdesc
            else { continue }
            let length = Int(UInt32(bigEndian: bytes.loadUnaligned(fromByteOffset: mark + 2, as: UInt32.self)))
            guard length <= limits.maxVmdescBytes, mark < limits.maxDeviceStateBytes else { continue }
            found = Candidate(mark: mark, end: mark + prefix + length)
        }
        return found
    }

    /// The device state through its end mark, when the bytes end here; nil when more must come.
    ///
    /// - Parameter afterSilence: QEMU has said nothing for a while: then a description is believed that is well formed
    ///   and in its place but lists other sections than this parser finds.
    mutating func finished(afterSilence: Bool) -> [UInt8]? {
        guard let candidate, candidate.end == bytes.count, bytes.last == UInt8(ascii: "}") else { return nil }
        let isEnd = bytes.withUnsafeBytes { all -> Bool in
            let text = UnsafeRawBufferPointer(rebasing: all[(candidate.mark + Self.prefix)...])
            guard let description = VmstateDescription(text) else { return false }
            return afterSilence || description.describes(UnsafeRawBufferPointer(rebasing: all[..<candidate.mark]))
        }
        guard isEnd else { return nil }
        let state = Array(bytes[...candidate.mark])
        bytes = []
        return state
    }
}
