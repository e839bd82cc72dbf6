import Glibc
import Peers
import RamCache
import Units

// RamBench CORPUS...: speed of page encoding on the corpora's pages with random words changed (P8, P9), and bytes on the
// wire of the corpora themselves (P10). Our way and the peer's alternate; ratios are medians of pairwise ratios.

let rounds = 7
let pagesOfSpeed = 32768

struct Random {
    var state: UInt64
    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var z = state
        z = (z ^ z >> 30) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ z >> 27) &* 0x94D0_49BB_1331_11EB
        return z ^ z >> 31
    }
}

let corpora = try CommandLine.arguments.dropFirst().map { try Corpus(path: $0) }
guard !corpora.isEmpty else {
    print("RamBench CORPUS...: corpora are made by Benchmarks/ram-corpus")
    exit(64)
}

/// Pages of all corpora, over and over, and the same with `words` random words of each changed.
@MainActor
func versions(words: Int) -> (Pages, Pages) {
    let one = Pages(count: pagesOfSpeed)
    let other = Pages(count: pagesOfSpeed)
    var random = Random(state: 42)
    var place = 0
    let all = corpora.filter { $0.old.count > 0 }
    for index in 0..<pagesOfSpeed {
        let corpus = all[index % all.count]
        memcpy(one.page(index), corpus.new.page(place % corpus.new.count), Sizes.page)
        if index % all.count == all.count - 1 { place += 1 }
        memcpy(other.page(index), one.page(index), Sizes.page)
        for _ in 0..<words {
            let at = Int(random.next() % 512) * 8
            other.page(index).storeBytes(of: random.next() | 1, toByteOffset: at, as: UInt64.self)
        }
    }
    return (one, other)
}

@MainActor
func gigabytes(_ seconds: Double) -> Double { Double(pagesOfSpeed * Sizes.page) / seconds / 1e9 }

/// Ours and the peer's, alternating; each pass goes to the other version, so nothing has to be set back.
@MainActor
func race(_ name: String, words: Int, _ budget: String, peer: (_ cache: Pages, _ next: Pages, _ same: Pages) -> Void) {
    let (one, other) = versions(words: words)
    let (sameAsOne, sameAsOther) = (Pages(count: pagesOfSpeed), Pages(count: pagesOfSpeed))
    sameAsOne.copy(from: one)
    sameAsOther.copy(from: other)
    let shadow = Pages(count: pagesOfSpeed)
    let cache = Pages(count: pagesOfSpeed)
    shadow.copy(from: one)
    cache.copy(from: one)
    let encoder = PageBatchEncoder(useDelta: true)
    var ours: [Double] = []
    var theirs: [Double] = []
    for round in 0...rounds {
        let next = round % 2 == 0 ? other : one
        let a = seconds { _ = encode(next, shadow: shadow, with: encoder) }
        let same = round % 2 == 0 ? sameAsOther : sameAsOne
        let b = seconds { peer(cache, next, same) }
        // The first round warms up.
        if round > 0 {
            ours.append(a)
            theirs.append(b)
        }
    }
    let ratio = median(zip(ours, theirs).map { $1 / $0 })
    print(
        "\(name): ours \(text(gigabytes(median(ours)))) GB/s, peer \(text(gigabytes(median(theirs)))) GB/s, "
            + "ratio \(text(ratio)) (\(budget))")
}

print("speed, \(pagesOfSpeed) pages, median of \(rounds) alternating rounds")
var sink = 0
race("P8 0.5 % of words, glibc memcmp", words: 3, "reach 0.5, then 0.75") { _, next, same in
    // Both versions are equal, so that memcmp reads every page to its end, as we do.
    sink += peer_memcmp(same.bytes, next.bytes, next.count)
}
race("P9 5 % of words, xbzrle in C", words: 26, "reach 1, then 1.3") { cache, next, _ in
    sink += peer_xbzrle_pages(cache.bytes, next.bytes, next.count)
}
race("P9 50 % of words, xbzrle in C", words: 256, "reach 2, then 3.5") { cache, next, _ in
    sink += peer_xbzrle_pages(cache.bytes, next.bytes, next.count)
}

print("bytes on the wire, page pairs of real guests")
var logOurs = 0.0
var logPeer = 0.0
for corpus in corpora {
    let shadow = Pages(count: corpus.old.count)
    shadow.copy(from: corpus.old)
    let cache = Pages(count: corpus.old.count)
    cache.copy(from: corpus.old)
    let encoder = PageBatchEncoder(useDelta: true)
    let ours = encode(corpus.new, shadow: shadow, numbers: corpus.numbers, with: encoder)
    let peer = peer_xor_zstd(cache.bytes, corpus.new.bytes, corpus.new.count)
    let runs = peer_xbzrle_pages(
        {
            cache.copy(from: corpus.old); return cache.bytes
        }(), corpus.new.bytes, corpus.new.count)
    let dirty = Double(corpus.new.count * Sizes.page)
    let seen = encoder.statistics
    logOurs += log(dirty / Double(ours))
    logPeer += log(Double(ours) / Double(peer))
    print(
        "P10 \(corpus.name): \(corpus.new.count) pages, ours \(text(Double(ours) / Double(corpus.new.count), 1)) bytes a page, "
            + "xor + zstd 1 \(text(Double(peer) / Double(corpus.new.count), 1)), xbzrle "
            + "\(text(Double(runs) / Double(corpus.new.count), 1)), ours / (xor + zstd) "
            + "\(text(Double(ours) / Double(peer))); 1/\(text(dirty / Double(ours), 1)) of dirty x 4 KiB; "
            + "delta \(seen.delta), zero \(seen.zero), whole \(seen.raw)")
}
print(
    "geometric mean: 1/\(text(exp(logOurs / Double(corpora.count)), 1)) of dirty x 4 KiB (reach 1/12), ours / (xor + zstd) "
        + "\(text(exp(logPeer / Double(corpora.count)))) (reach 1.0, then 0.9)")

// Pages that moved: contents that some other page of the same capture had before.
for corpus in corpora {
    var before: Set<UInt32> = []
    for index in 0..<corpus.old.count { before.insert(PageDigest.of(UnsafeRawPointer(corpus.old.page(index)))) }
    var moved = 0
    for index in 0..<corpus.new.count {
        let digest = PageDigest.of(UnsafeRawPointer(corpus.new.page(index)))
        if digest != PageDigest.zero, before.contains(digest) { moved += 1 }
    }
    print("moved \(corpus.name): \(moved) of \(corpus.new.count) pages have what another changed page had before")
}
if sink == 42 { print("") }
