import BlockReplica
import Link
import RamCache
import Units

/// Says what a RAM cache holds, a frame at a time, from its first page to its last. The cache must not change meanwhile,
/// which it does not before the session's first commit. Confined to the storage thread; a step looks at 4096 pages at most.
struct RamSurvey {
    private static let dataPagesPerFrame = 2048
    private static let runsPerFrame = 1024
    private static let pagesPerFrame = 1 << 20

    private let ram: RamStore?
    private var page = 0
    private var isDone = false

    /// - Parameter ram: nil for a session with a new cache: then one frame says that nothing is known.
    init(_ ram: RamStore?) { self.ram = ram }

    /// The next frame; nil behind the last one. There is at least one.
    mutating func next() -> RamKnown? {
        guard !isDone else { return nil }
        guard let ram else {
            isDone = true
            return RamKnown(isLast: true, first: 0, runs: [])
        }
        let first = page
        var runs = DigestRuns()
        let end = min(ram.layout.pageCount, page + Self.pagesPerFrame)
        while page < end, runs.dataBlocks < Self.dataPagesPerFrame, runs.count < Self.runsPerFrame {
            let place = ram.layout.location(ofGlobalPage: page)
            if let contents = ram.writtenPage(block: place.block, page: place.page),
                !BlockBytes.isZero(contents, count: Sizes.page)
            {
                runs.append(.of(UnsafeRawBufferPointer(start: contents, count: Sizes.page)))
            } else {
                runs.append(zeroes: 1)
            }
            page += 1
        }
        isDone = page == ram.layout.pageCount
        return RamKnown(isLast: isDone, first: UInt64(first), runs: runs.finish())
    }
}
