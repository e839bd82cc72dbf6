/// A number for each cluster of a file, most of them zero. Takes memory only for what is counted, and a bounded amount.
struct ClusterCounts: Sendable {
    private static let chunkBits: UInt64 = 12
    /// Chunks at most: 1 GiB.
    private static let chunksMax = 65536

    private var chunks: [UInt64: [UInt32]] = [:]
    /// Clusters whose number is not zero.
    private(set) var nonzero: UInt64 = 0
    /// More was counted than there is room for.
    private(set) var isFull = false

    subscript(cluster: UInt64) -> UInt32 {
        chunks[cluster >> Self.chunkBits]?[Int(cluster & ((1 << Self.chunkBits) - 1))] ?? 0
    }

    /// Adds to a cluster's number, which stays at its largest value.
    mutating func add(_ cluster: UInt64, _ count: UInt32 = 1) {
        let key = cluster >> Self.chunkBits
        if chunks[key] == nil {
            guard chunks.count < Self.chunksMax else {
                isFull = true
                return
            }
            chunks[key] = Array(repeating: 0, count: 1 << Int(Self.chunkBits))
        }
        let index = Int(cluster & ((1 << Self.chunkBits) - 1))
        let (sum, overflow) = chunks[key, default: []][index].addingReportingOverflow(count)
        if chunks[key, default: []][index] == 0 && sum > 0 { nonzero += 1 }
        chunks[key, default: []][index] = overflow ? .max : sum
    }

    /// First clusters of the chunks that hold something in either, rising.
    static func chunkStarts(_ left: ClusterCounts, _ right: ClusterCounts) -> [UInt64] {
        Set(left.chunks.keys).union(right.chunks.keys).sorted().map { $0 << chunkBits }
    }

    static var chunkClusters: UInt64 { 1 << chunkBits }
}
