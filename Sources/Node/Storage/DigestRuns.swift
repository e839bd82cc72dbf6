import Link
import Units

/// Runs being put together: blocks of a kind join.
struct DigestRuns {
    private var done: [DiskDigests.Run] = []
    private var zeroes = 0
    private var digests: [BlockDigest] = []
    private(set) var dataBlocks = 0

    var count: Int { done.count }

    mutating func append(zeroes more: Int) {
        endData()
        if zeroes > Int(Int32.max) - more { endZeroes() }
        zeroes += more
    }

    mutating func append(_ digest: BlockDigest) {
        endZeroes()
        digests.append(digest)
        dataBlocks += 1
    }

    mutating func finish() -> [DiskDigests.Run] {
        endData()
        endZeroes()
        return done
    }

    private mutating func endData() {
        if !digests.isEmpty { done.append(.data(digests)) }
        digests = []
    }

    private mutating func endZeroes() {
        if zeroes > 0 { done.append(.zeroes(zeroes)) }
        zeroes = 0
    }
}
