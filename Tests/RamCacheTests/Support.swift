import RamCache
import Units

/// Deterministic random numbers (SplitMix64).
struct SplitMix64: RandomNumberGenerator {
    private var state: UInt64

    init(seed: UInt64) { state = seed }

    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var z = state
        z = (z ^ z >> 30) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ z >> 27) &* 0x94D0_49BB_1331_11EB
        return z ^ z >> 31
    }
}

/// A guest's RAM in plain arrays, as a target for the decoder.
struct PlainMemory: PageBatchTarget {
    final class Storage {
        var blocks: [UnsafeMutableRawBufferPointer]
        init(_ layout: RamLayout) {
            blocks = layout.blocks.map { block in
                let memory = UnsafeMutableRawBufferPointer.allocate(byteCount: Int(block.length), alignment: 4096)
                memory.initializeMemory(as: UInt8.self, repeating: 0)
                return memory
            }
        }
        deinit { for block in blocks { block.deallocate() } }
    }

    let storage: Storage
    private(set) var touched: [Int: Int] = [:]

    init(_ layout: RamLayout) { storage = Storage(layout) }

    func address(_ block: Int, _ page: UInt64) -> UnsafeMutableRawPointer {
        guard let base = storage.blocks[block].baseAddress else { preconditionFailure("blocks are not empty") }
        return base + Int(page) * Sizes.page
    }

    mutating func reference(block: Int, page: UInt64) -> UnsafeRawPointer? { UnsafeRawPointer(address(block, page)) }

    mutating func destination(block: Int, page: UInt64) throws(Never) -> UnsafeMutableRawPointer {
        touched[block, default: 0] += 1
        return address(block, page)
    }

    mutating func zero(block: Int, page: UInt64) throws(Never) {
        touched[block, default: 0] += 1
        address(block, page).initializeMemory(as: UInt8.self, repeating: 0, count: Sizes.page)
    }

    /// All bytes of all blocks.
    var contents: [[UInt8]] { storage.blocks.map { Array($0) } }
}

/// Contents that are awkward for the encoder.
enum PagePattern: CaseIterable {
    case zero, ones, oneWord, lastWord, alternating, random, halfRandom, fivePercent, same, text

    func fill(_ page: UnsafeMutableRawPointer, using random: inout SplitMix64) {
        let words = page.assumingMemoryBound(to: UInt64.self)
        switch self {
        case .zero: page.initializeMemory(as: UInt8.self, repeating: 0, count: Sizes.page)
        case .ones: page.initializeMemory(as: UInt8.self, repeating: 0xFF, count: Sizes.page)
        case .oneWord: words[Int.random(in: 0..<512, using: &random)] = random.next()
        case .lastWord: words[511] ^= 1
        case .alternating: for index in stride(from: 0, to: 512, by: 2) { words[index] ^= random.next() }
        case .random: for index in 0..<512 { words[index] = random.next() }
        case .halfRandom: for _ in 0..<256 { words[Int.random(in: 0..<512, using: &random)] = random.next() }
        case .fivePercent: for _ in 0..<26 { words[Int.random(in: 0..<512, using: &random)] = random.next() }
        case .same: break
        case .text:
            let bytes = page.assumingMemoryBound(to: UInt8.self)
            for index in 0..<Sizes.page { bytes[index] = UInt8(97 + (index * 7 + index / 13) % 23) }
        }
    }
}
