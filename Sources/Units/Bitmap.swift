/// A fixed number of bits, one per block or page.
public struct Bitmap: Sendable, Equatable {
    public let count: Int
    /// Number of bits that are set.
    public private(set) var population: Int
    private var words: [UInt64]

    public init(count: Int) {
        precondition(count >= 0)
        self.count = count
        self.population = 0
        self.words = Array(repeating: 0, count: (count + 63) / 64)
    }

    @inline(__always)
    public func contains(_ index: Int) -> Bool {
        precondition(index >= 0 && index < count)
        return words[index >> 6] & (1 << UInt64(index & 63)) != 0
    }

    /// Sets a bit; returns whether it was clear before.
    @discardableResult
    @inline(__always)
    public mutating func insert(_ index: Int) -> Bool {
        precondition(index >= 0 && index < count)
        let mask: UInt64 = 1 << UInt64(index & 63)
        guard words[index >> 6] & mask == 0 else { return false }
        words[index >> 6] |= mask
        population += 1
        return true
    }

    @discardableResult
    @inline(__always)
    public mutating func remove(_ index: Int) -> Bool {
        precondition(index >= 0 && index < count)
        let mask: UInt64 = 1 << UInt64(index & 63)
        guard words[index >> 6] & mask != 0 else { return false }
        words[index >> 6] &= ~mask
        population -= 1
        return true
    }

    public mutating func removeAll() {
        guard population > 0 else { return }
        for index in words.indices { words[index] = 0 }
        population = 0
    }

    public var isEmpty: Bool { population == 0 }

    /// The first set bit at or behind `index`, which may be the count; nil when there is none.
    public func first(from index: Int) -> Int? {
        precondition(index >= 0 && index <= count)
        guard index < count else { return nil }
        var wordIndex = index >> 6
        var word = words[wordIndex] & (~0 << UInt64(index & 63))
        while word == 0 {
            wordIndex += 1
            guard wordIndex < words.count else { return nil }
            word = words[wordIndex]
        }
        return wordIndex << 6 | word.trailingZeroBitCount
    }

    /// Calls `body` with every set bit in rising order.
    public func forEach<Failure: Error>(_ body: (Int) throws(Failure) -> Void) throws(Failure) {
        for wordIndex in words.indices {
            var word = words[wordIndex]
            while word != 0 {
                try body(wordIndex << 6 | word.trailingZeroBitCount)
                word &= word - 1
            }
        }
    }

    /// Calls `body` with every longest run of set bits in rising order.
    public func forEachRun<Failure: Error>(_ body: (Range<Int>) throws(Failure) -> Void) throws(Failure) {
        var start: Int? = nil
        var end = 0
        try forEach { (index) throws(Failure) in
            if let first = start {
                if index == end {
                    end = index + 1
                    return
                }
                try body(first..<end)
            }
            start = index
            end = index + 1
        }
        if let first = start { try body(first..<end) }
    }
}
