import BlockReplica
import Link
import RamCache
import Synchronization
import Units

/// What the secondary's RAM cache holds at the start of a session, 16 bytes for each page: a page that equals its digest
/// does not travel. Each page is judged once, when it first comes; from then on the shadow tells.
///
/// Pages that are zero cost no memory. `@unchecked Sendable`: filled on the event loop before any lane of the encoder has
/// it; then each page is touched by one lane, see ``RamEncoder``.
final class KnownPages: @unchecked Sendable {
    private let layout: RamLayout
    /// High and low half of the digest, exclusive or `zero`; `judged` for a page that has come.
    private let memory: AnonymousMemory
    /// Pages that have not come yet.
    private let left: Atomic<Int>
    /// Pages described so far, from the first on.
    private(set) var described = 0

    /// No page has this digest but by an accident that does not happen.
    private static let judged = BlockDigest(high: .max, low: .max)

    init(_ layout: RamLayout) {
        self.layout = layout
        memory = AnonymousMemory(byteCount: layout.pageCount * BlockDigest.length)
        left = Atomic(layout.pageCount)
    }

    var isEmpty: Bool { described == 0 }
    /// Whether every page was judged. Any thread may ask.
    var isSpent: Bool { left.load(ordering: .relaxed) == 0 }

    /// Takes in what the secondary tells. Returns what is wrong with it, or nil.
    func describe(_ known: RamKnown) -> String? {
        guard known.runs.isEmpty || known.first == UInt64(described) else {
            return "it goes on with page \(known.first) behind page \(described)"
        }
        for run in known.runs {
            guard run.count <= layout.pageCount - described else {
                return "it describes more than the \(layout.pageCount) pages that there are"
            }
            if case .data(let digests) = run {
                for (index, digest) in digests.enumerated() { self[described + index] = digest }
            }
            described += run.count
        }
        guard known.isLast, described != 0, described != layout.pageCount else { return nil }
        return "it describes \(described) of \(layout.pageCount) pages"
    }

    private subscript(page: Int) -> BlockDigest {
        get {
            BlockDigest(
                high: memory.base.load(fromByteOffset: page * 16, as: UInt64.self),
                low: memory.base.load(fromByteOffset: page * 16 + 8, as: UInt64.self))
        }
        set {
            memory.base.storeBytes(of: newValue.high, toByteOffset: page * 16, as: UInt64.self)
            memory.base.storeBytes(of: newValue.low, toByteOffset: page * 16 + 8, as: UInt64.self)
        }
    }

    enum Verdict { case same, different, judgedBefore }

    /// Judges a page; nil stands for zeroes.
    func judge(block: UInt16, page: UInt32, _ contents: UnsafeRawPointer?) -> Verdict {
        let index = layout.globalPage(block: Int(block), page: UInt64(page))
        let digest = self[index]
        guard digest != Self.judged else { return .judgedBefore }
        self[index] = Self.judged
        left.subtract(1, ordering: .relaxed)
        guard let contents, !BlockBytes.isZero(contents, count: Sizes.page) else {
            return digest == BlockDigest(high: 0, low: 0) ? .same : .different
        }
        let found = BlockDigest.of(UnsafeRawBufferPointer(start: contents, count: Sizes.page))
        return found == digest ? .same : .different
    }
}
