import TestSupport
import Units

/// Who takes in what a guest does to its disks.
protocol GuestSink: AnyObject {
    func diskWrite(disk: Int, offset: Int, bytes: ArraySlice<UInt8>)
    func diskZeroes(disk: Int, offset: Int, count: Int, isDiscard: Bool)
}

/// A machine that does nothing but leave its mark: every sector and every page that it writes holds a number that it
/// never used before, so that a mixture of two moments is always seen.
final class ModelGuest {
    let name: String
    let shape: GuestShape
    private(set) var disks: [[UInt8]]
    private(set) var ram: [UInt8]
    private(set) var device: [UInt8]
    /// Pages that changed since they were last taken.
    private(set) var dirty: Set<Int> = []
    private var stamp: UInt64
    private var random: SplitMix64
    weak var sink: (any GuestSink)?
    var isRunning = true

    init(name: String, shape: GuestShape, random: SplitMix64) {
        self.name = name
        self.shape = shape
        self.random = random
        disks = shape.diskSizes.map { [UInt8](repeating: 0, count: $0) }
        ram = [UInt8](repeating: 0, count: shape.ramBytes)
        device = [1]
        stamp = self.random.next() >> 24
    }

    /// A guest that goes on from a checkpoint.
    init(name: String, from machine: Machine, shape: GuestShape, random: SplitMix64) {
        self.name = name
        self.shape = shape
        self.random = random
        disks = machine.disks
        ram = machine.ram
        device = machine.device
        stamp = self.random.next() >> 24
    }

    var machine: Machine { Machine(disks: disks, ram: ram, device: device) }

    // MARK: Life

    /// A few writes to disks and memory.
    func live(writes: Int, pages: Int) {
        for _ in 0..<writes { touchDisk() }
        for _ in 0..<pages { touchPage() }
        device = [UInt8](repeating: UInt8(truncatingIfNeeded: stamp), count: Int.random(in: 1...1500, using: &random))
        put(&device, at: 0)
    }

    private func put(_ bytes: inout [UInt8], at offset: Int) {
        stamp += 1
        for shift in 0..<8 where offset + shift < bytes.count {
            bytes[offset + shift] = UInt8(truncatingIfNeeded: stamp >> UInt64(8 * shift))
        }
    }

    private func touchDisk() {
        let disk = Int.random(in: disks.indices, using: &random)
        let sectors = disks[disk].count / 512
        // Some blocks are warm, some writes are small, some cover much.
        var first = Int.random(in: 0..<sectors, using: &random)
        if random.next() % 3 == 0 { first = first % min(sectors, 32) }
        let largest = random.next() % 8 == 0 ? 48 : 9
        let count = Int.random(in: 1...min(largest, sectors - first), using: &random)
        let range = first * 512..<(first + count) * 512
        if random.next() % 6 == 0 {
            for index in range { disks[disk][index] = 0 }
            sink?.diskZeroes(
                disk: disk, offset: range.lowerBound, count: range.count, isDiscard: random.next() % 2 == 0)
        } else {
            for sector in first..<first + count { put(&disks[disk], at: sector * 512) }
            sink?.diskWrite(disk: disk, offset: range.lowerBound, bytes: disks[disk][range])
        }
    }

    private func touchPage() {
        let page = Int.random(in: 0..<ram.count / Sizes.page, using: &random)
        switch random.next() % 10 {
        case 0:
            for index in page * Sizes.page..<(page + 1) * Sizes.page { ram[index] = 0 }
        case 1:
            for index in page * Sizes.page..<(page + 1) * Sizes.page {
                ram[index] = UInt8(truncatingIfNeeded: random.next())
            }
        default:
            put(&ram, at: page * Sizes.page + Int.random(in: 0..<Sizes.page / 8, using: &random) * 8)
        }
        dirty.insert(page)
    }

    // MARK: Being copied

    func takeDirty() -> [Int] {
        defer { dirty = [] }
        return dirty.sorted()
    }

    func clean(_ page: Int) { dirty.remove(page) }

    func page(_ page: Int) -> [UInt8] { Array(ram[page * Sizes.page..<(page + 1) * Sizes.page]) }
}
