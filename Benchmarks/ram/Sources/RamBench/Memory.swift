import Glibc
import Peers
import RamCache
import Units

/// A run of pages outside of Swift's arrays.
final class Pages {
    let base: UnsafeMutableRawPointer
    let count: Int

    init(count: Int) {
        guard let base = aligned_alloc(4096, max(1, count) * Sizes.page) else { fatalError("out of memory") }
        self.base = base
        self.count = count
        memset(base, 0, count * Sizes.page)
    }

    deinit { free(base) }

    var bytes: UnsafeMutablePointer<UInt8> { base.assumingMemoryBound(to: UInt8.self) }
    func page(_ index: Int) -> UnsafeMutableRawPointer { base + index * Sizes.page }

    func copy(from other: Pages) { memcpy(base, other.base, count * Sizes.page) }
}

/// What a capture wrote: numbers of pages, then for each the page as it was and as it became.
struct Corpus {
    let name: String
    let old: Pages
    let new: Pages
    var numbers: [UInt32] = []

    init(path: String) throws {
        struct Unreadable: Error { var path: String }
        guard let file = fopen(path, "rb") else { throw Unreadable(path: path) }
        defer { fclose(file) }
        fseek(file, 0, SEEK_END)
        let count = ftell(file) / (4 + 2 * Sizes.page)
        rewind(file)
        old = Pages(count: count)
        new = Pages(count: count)
        for index in 0..<count {
            var number: UInt32 = 0
            guard fread(&number, 4, 1, file) == 1, fread(old.page(index), Sizes.page, 1, file) == 1,
                fread(new.page(index), Sizes.page, 1, file) == 1
            else { throw Unreadable(path: path) }
            numbers.append(number)
        }
        name = String(path.split(separator: "/").last?.split(separator: ".").first ?? "?")
    }
}

/// Our encoder, whole: page deltas, batches, zstd, checksums.
func encode(_ new: Pages, shadow: Pages, numbers: [UInt32]? = nil, with encoder: PageBatchEncoder) -> Int {
    var bytes = 0
    for index in 0..<new.count {
        encoder.add(
            block: 0, page: UInt64(numbers?[index] ?? UInt32(index)), data: UnsafeRawPointer(new.page(index)),
            shadow: shadow.page(index))
        if encoder.isFull { bytes += encoder.finish()?.count ?? 0 }
    }
    return bytes + (encoder.finish()?.count ?? 0)
}

/// Seconds that `body` takes.
func seconds(_ body: () -> Void) -> Double {
    let start = peer_now()
    body()
    return Double(peer_now() - start) / 1e9
}

func median(_ values: [Double]) -> Double {
    let sorted = values.sorted()
    let middle = sorted.count / 2
    return sorted.count % 2 == 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2
}

func text(_ value: Double, _ digits: Int = 2) -> String {
    var scale = 1.0
    for _ in 0..<digits { scale *= 10 }
    let whole = Int((value * scale).rounded())
    let fraction = String(whole % Int(scale))
    return "\(whole / Int(scale))." + String(repeating: "0", count: digits - fraction.count) + fraction
}
