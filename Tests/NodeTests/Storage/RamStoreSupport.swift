import Glibc
import RamCache
import Units

@testable import Node

/// Deterministic random numbers (SplitMix64).
struct RamTestRandom: RandomNumberGenerator {
    private var state: UInt64

    init(seed: UInt64) { state = seed }

    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var z = state
        z = (z ^ z >> 30) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ z >> 27) &* 0x94D0_49BB_1331_11EB
        return z ^ z >> 31
    }

    mutating func chance(_ percent: Int) -> Bool { Int.random(in: 0..<100, using: &self) < percent }
}

/// A directory that is removed with everything in it.
final class RamTestDirectory {
    let path: String

    init(under parent: String) {
        var template = Array((parent + "/ram-test-XXXXXX").utf8CString)
        let made = template.withUnsafeMutableBufferPointer { buffer in
            buffer.baseAddress.map { mkdtemp($0) != nil } ?? false
        }
        precondition(made, "no temporary directory in \(parent)")
        path = template.withUnsafeBufferPointer { buffer in
            String(decoding: buffer.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
        }
    }

    deinit { Self.remove(path) }

    static func names(_ path: String) -> [String] {
        guard let stream = opendir(path) else { return [] }
        defer { closedir(stream) }
        var names: [String] = []
        while let entry = readdir(stream) {
            let name = withUnsafePointer(to: &entry.pointee.d_name) { pointer in
                pointer.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
            }
            if name != "." && name != ".." { names.append(name) }
        }
        return names.sorted()
    }

    static func remove(_ path: String) {
        if unlink(path) == 0 { return }
        for name in names(path) { remove(path + "/" + name) }
        rmdir(path)
    }

    static func mode(_ path: String) -> UInt32 {
        var status = stat()
        return lstat(path, &status) == 0 ? status.st_mode & 0o7777 : 0xFFFF
    }

    static func size(_ path: String) -> Int {
        var status = stat()
        return lstat(path, &status) == 0 ? Int(status.st_size) : -1
    }

    /// Turns one bit of a file around.
    static func flip(_ path: String, at offset: Int, bit: UInt8) {
        let descriptor = open(path, O_RDWR)
        precondition(descriptor >= 0, "cannot open \(path)")
        defer { close(descriptor) }
        var byte: UInt8 = 0
        precondition(pread(descriptor, &byte, 1, off_t(offset)) == 1)
        byte ^= 1 << bit
        precondition(pwrite(descriptor, &byte, 1, off_t(offset)) == 1)
    }

    /// Overwrites bytes of a file.
    static func write(_ path: String, at offset: Int, _ bytes: UnsafeRawBufferPointer) {
        let descriptor = open(path, O_WRONLY)
        precondition(descriptor >= 0, "cannot open \(path)")
        defer { close(descriptor) }
        precondition(pwrite(descriptor, bytes.baseAddress, bytes.count, off_t(offset)) == bytes.count)
    }
}

/// Where a store of the tests lives: a disk directory and one in shared memory.
final class RamTestPlace {
    let disk = RamTestDirectory(under: "/tmp")
    let memory = RamTestDirectory(under: access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp")

    func configuration(_ durability: Durability) -> RamStore.Configuration {
        RamStore.Configuration(
            directory: disk.path, tmpfs: memory.path, durability: durability, compactionMinimumBytes: 4096,
            retainedBytes: 64 * 4096)
    }

    /// What a restart of the host does.
    func loseSharedMemory() {
        for name in RamTestDirectory.names(memory.path) { RamTestDirectory.remove(memory.path + "/" + name) }
    }
}

/// A guest's RAM as the primary sees it, and the encoder that sends it.
final class RamTestGuest {
    static let blocks: [RamLayout.Block] = [
        .init(name: "pc.ram", length: 300 * 4096), .init(name: "vga.vram", length: 5 * 4096),
        .init(name: "/rom@etc/acpi/tables", length: 4096),
    ]

    let layout: RamLayout
    private(set) var memory: [[UInt8]]
    private var shadow: [[UInt8]]
    private let encoder: PageBatchEncoder
    /// Random bytes from which pages are cut.
    private let noise: [UInt8]

    init(_ layout: RamLayout, useDelta: Bool = true) {
        var random = RamTestRandom(seed: 1)
        noise = (0..<1 << 14).flatMap { _ in withUnsafeBytes(of: random.next()) { Array($0) } }
        self.layout = layout
        memory = layout.blocks.map { [UInt8](repeating: 0, count: Int($0.length)) }
        shadow = memory
        encoder = PageBatchEncoder(useDelta: useDelta)
    }

    /// Back to a former state, which the receiver has too.
    func roll(back contents: [[UInt8]]) {
        memory = contents
        shadow = contents
    }

    /// A new session: the receiver starts with zeroes.
    func forgetShadow() { shadow = layout.blocks.map { [UInt8](repeating: 0, count: Int($0.length)) } }

    /// One to six blocks of one page to 1.5 MiB, some of which a new QEMU would map.
    static func randomLayout(_ random: inout RamTestRandom) throws -> RamLayout {
        let count = Int.random(in: 1...6, using: &random)
        let largest = Int.random(in: 0..<count, using: &random)
        return try RamLayout(
            blocks: (0..<count).map { index in
                let pages = UInt64.random(in: index == largest ? 200...380 : 1...40, using: &random)
                return RamLayout.Block(name: "/block\(index).ram", length: pages * 4096)
            })
    }

    /// Changes up to `changes` random pages, in ways that are awkward for an encoder of differences.
    func run(changes: Int, _ random: inout RamTestRandom) -> Set<Int> {
        var dirty = Set<Int>()
        for _ in 0..<changes {
            let page = Int.random(in: 0..<layout.pageCount, using: &random)
            let place = layout.location(ofGlobalPage: page)
            dirty.insert(page)
            let start = Int(place.page) * 4096
            switch Int.random(in: 0..<12, using: &random) {
            case 0:
                memory[place.block].replaceSubrange(start..<start + 4096, with: repeatElement(0, count: 4096))
            case 1:
                let value = UInt8.random(in: 1...255, using: &random)
                memory[place.block].replaceSubrange(start..<start + 4096, with: repeatElement(value, count: 4096))
            case 2: memory[place.block][start + Int.random(in: 0..<4096, using: &random)] ^= 0x5A
            case 3: break
            case 4: memory[place.block][start] ^= 0x80
            case 5: memory[place.block][start + 4095] &+= 1
            case 6:
                // Every second word: the longest masks.
                for word in stride(from: 0, to: 512, by: 2) { memory[place.block][start + word * 8] &+= 1 }
            case 7:
                // Nearly all of it, around the length at which a page is sent whole.
                let words = Int.random(in: 300...512, using: &random)
                for word in 0..<words { memory[place.block][start + word * 8 + word % 8] ^= 0xFF }
            default:
                let from = Int.random(in: 0..<noise.count - 4096, using: &random)
                memory[place.block].replaceSubrange(start..<start + 4096, with: noise[from..<from + 4096])
            }
        }
        return dirty
    }

    /// Batches of these pages, at random sizes.
    func encode(_ pages: some Sequence<Int>, _ random: inout RamTestRandom) -> [[UInt8]] {
        var batches: [[UInt8]] = []
        func flush() {
            var batch: [UInt8] = []
            if encoder.finish(into: &batch) { batches.append(batch) }
        }
        for page in pages {
            let place = layout.location(ofGlobalPage: page)
            let start = Int(place.page) * 4096
            shadow[place.block].withUnsafeMutableBytes { shadow in
                memory[place.block].withUnsafeBytes { memory in
                    let data = UnsafeRawBufferPointer(rebasing: memory[start..<start + 4096])
                    _ = encoder.add(
                        block: UInt16(place.block), page: place.page, data: data,
                        shadow: shadow.baseAddress.map { $0 + start })
                }
            }
            if encoder.isFull || random.chance(5) { flush() }
        }
        flush()
        return batches
    }
}

extension RamStore {
    func stage(_ epoch: Epoch, _ batches: [[UInt8]]) throws {
        for batch in batches {
            // The closure's own error type would be erased: carry the outcome out by hand.
            let outcome: Result<Void, RamStoreError> = batch.withUnsafeBytes { bytes in
                do throws(RamStoreError) {
                    try stage(epoch: epoch, batch: bytes)
                    return .success(())
                } catch { return .failure(error) }
            }
            try outcome.get()
        }
    }

    /// The whole way of an epoch.
    @discardableResult
    func take(_ epoch: Epoch, _ batches: [[UInt8]]) throws -> RamSeal {
        try beginEpoch(epoch)
        try stage(epoch, batches)
        let sealed = try seal(epoch: epoch)
        try apply(epoch: epoch)
        try committed(epoch)
        return sealed
    }

    /// Whether the cache holds exactly these bytes.
    func holds(_ memory: [[UInt8]]) -> Bool {
        for (block, bytes) in memory.enumerated() {
            let equal = bytes.withUnsafeBytes { expected in
                (0..<expected.count / 4096).allSatisfy { index in
                    guard let base = expected.baseAddress else { return false }
                    return memcmp(page(block: block, page: UInt64(index)), base + index * 4096, 4096) == 0
                }
            }
            if !equal { return false }
        }
        return true
    }
}
