import Glibc

/// The bytes of a ``MemoryDevice``, and which of them were ever written.
struct MemoryContents {
    /// The unit in bytes in which room is taken and given back.
    private static let grain = 4096
    /// Zeroes shorter than this are sent as data: a chunk of their own costs the client more.
    private static let holeMin = 32 << 10

    let size: Int
    private let memory: AnonymousMemory
    /// One bit per grain: something was written to it.
    private var written: [UInt64]

    init(size: Int) {
        let grains = (size + Self.grain - 1) / Self.grain
        self.size = size
        memory = AnonymousMemory(byteCount: grains * Self.grain)
        written = Array(repeating: 0, count: (grains + 63) / 64)
    }

    var base: UnsafeMutableRawPointer { memory.base }

    mutating func write(_ bytes: UnsafeRawBufferPointer, at offset: Int) {
        guard let source = bytes.baseAddress, !bytes.isEmpty else { return }
        memcpy(base + offset, source, bytes.count)
        mark(offset, offset + bytes.count)
    }

    private mutating func mark(_ offset: Int, _ end: Int) {
        for grain in offset / Self.grain...(end - 1) / Self.grain { written[grain >> 6] |= 1 << UInt64(grain & 63) }
    }

    private func isWritten(_ grain: Int) -> Bool { written[grain >> 6] & 1 << UInt64(grain & 63) != 0 }

    /// What is at `place`, and where that ends, at most at `end`.
    func run(from place: Int, to end: Int) -> (isData: Bool, next: Int) {
        var grain = place / Self.grain
        let isData = isWritten(grain)
        let last = (end - 1) / Self.grain
        while grain < last, isWritten(grain + 1) == isData { grain += 1 }
        return (isData, min((grain + 1) * Self.grain, end))
    }

    func read(_ request: ExportRequest, _ replies: ExportReplies) {
        let offset = Int(request.offset)
        let end = offset + request.byteCount
        let (isData, next) = run(from: offset, to: end)
        if next == end, !isData { return replies.zeroes(request) }
        guard next < end, request.mayFragment, request.byteCount > Self.holeMin else {
            return replies.read(request) { memory in
                memory.copyMemory(from: UnsafeRawBufferPointer(start: base + offset, count: memory.count))
                return nil
            }
        }
        var place = offset
        while place < end {
            var (isData, next) = run(from: place, to: end)
            // Short holes go with the data around them.
            while isData || next - place < Self.holeMin, next < end {
                let (_, after) = run(from: next, to: end)
                if after - next >= Self.holeMin, !run(from: next, to: end).isData { break }
                isData = true
                next = after
            }
            if isData {
                let start = base + place
                _ = replies.part(request, offset: UInt64(place), byteCount: next - place) { memory in
                    memory.copyMemory(from: UnsafeRawBufferPointer(start: start, count: memory.count))
                    return nil
                }
            } else {
                replies.hole(request, offset: UInt64(place), byteCount: next - place)
            }
            place = next
        }
        replies.done(request)
    }

    mutating func clear(_ offset: Int, _ end: Int, givesBack: Bool) {
        let first = (offset + Self.grain - 1) / Self.grain
        // The last grain of a disk of odd size is whole when its end is.
        let behind = (end == size ? end + Self.grain - 1 : end) / Self.grain
        guard givesBack, first < behind else {
            memset(base + offset, 0, end - offset)
            if !givesBack { mark(offset, end) }
            return
        }
        memset(base + offset, 0, first * Self.grain - offset)
        let stop = behind * Self.grain
        madvise(base + first * Self.grain, stop - first * Self.grain, MADV_DONTNEED)
        if end > stop { memset(base + stop, 0, end - stop) }
        for grain in first..<behind { written[grain >> 6] &= ~(1 << UInt64(grain & 63)) }
    }
}
