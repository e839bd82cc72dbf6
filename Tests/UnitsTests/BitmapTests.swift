import Testing
import Units

/// SplitMix64, seeded.
private struct SplitMix64: RandomNumberGenerator {
    var state: UInt64

    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var value = state
        value = (value ^ value >> 30) &* 0xBF58_476D_1CE4_E5B9
        value = (value ^ value >> 27) &* 0x94D0_49BB_1331_11EB
        return value ^ value >> 31
    }
}

@Suite("Bitmap")
struct BitmapTests {
    /// The runs of a set, the slow way.
    private static func runs(_ set: Set<Int>) -> [Range<Int>] {
        var runs: [Range<Int>] = []
        for index in set.sorted() {
            if let last = runs.last, last.upperBound == index {
                runs[runs.count - 1] = last.lowerBound..<index + 1
            } else {
                runs.append(index..<index + 1)
            }
        }
        return runs
    }

    @Test("the first set bit is found from anywhere")
    func first() {
        for seed in UInt64(1)...60 {
            var random = SplitMix64(state: seed)
            let count = Int(random.next() % 300) + 1
            var bitmap = Bitmap(count: count)
            for _ in 0..<random.next() % 5 { bitmap.insert(Int(random.next() % UInt64(count))) }
            for index in 0...count {
                #expect(bitmap.first(from: index) == (index..<count).first { bitmap.contains($0) }, "seed \(seed)")
            }
        }
    }

    @Test("behaves as a set of integers does")
    func model() {
        for seed in UInt64(1)...60 {
            var random = SplitMix64(state: seed)
            let count = Int(random.next() % 300) + 1
            var bitmap = Bitmap(count: count)
            var model: Set<Int> = []
            for _ in 0..<200 {
                let index = Int(random.next() % UInt64(count))
                switch random.next() % 32 {
                case 0:
                    bitmap.removeAll()
                    model = []
                case 1...9:
                    #expect(bitmap.remove(index) == (model.remove(index) != nil), "seed \(seed)")
                default:
                    #expect(bitmap.insert(index) == model.insert(index).inserted, "seed \(seed)")
                }
                #expect(bitmap.population == model.count, "seed \(seed)")
            }
            #expect(bitmap.isEmpty == model.isEmpty)
            #expect((0..<count).filter { bitmap.contains($0) } == model.sorted(), "seed \(seed)")
            var listed: [Int] = []
            bitmap.forEach { listed.append($0) }
            #expect(listed == model.sorted(), "seed \(seed)")
            var runs: [Range<Int>] = []
            bitmap.forEachRun { runs.append($0) }
            #expect(runs == Self.runs(model), "seed \(seed)")
        }
    }

    @Test("finds runs that begin, end and lie across its words")
    func edges() {
        var bitmap = Bitmap(count: 192)
        for index in [0, 63, 64, 65, 127, 128, 191] { bitmap.insert(index) }
        var runs: [Range<Int>] = []
        bitmap.forEachRun { runs.append($0) }
        #expect(runs == [0..<1, 63..<66, 127..<129, 191..<192])
        var none = 0
        Bitmap(count: 0).forEachRun { _ in none += 1 }
        #expect(none == 0)
    }
}
