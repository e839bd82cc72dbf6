import Foundation
import Node
import Units

// Usage: pipeline DIRECTORY [--durable] [--size-mib N] [--writes N] [--bits N] [--buffer-mib N] [--batch N] CASE...
// Cases: rand4k seq1m rand64k warm4k commit space

struct Options {
    var directory = ""
    var durable = false
    var size: UInt64 = 2048 << 20
    var writes = 50_000
    var limits = DiskReplica.Limits()
    var cases: [String] = []
}

func parse() -> Options {
    var options = Options()
    var words = CommandLine.arguments.dropFirst()
    func number() -> Int { Int(words.popFirst() ?? "") ?? 0 }
    while let word = words.popFirst() {
        switch word {
        case "--durable": options.durable = true
        case "--size-mib": options.size = UInt64(number()) << 20
        case "--writes": options.writes = number()
        case "--bits": options.limits.hiddenClusterBits = number()
        case "--buffer-mib": options.limits.bufferBytes = number() << 20
        case "--batch": options.limits.batchBlocks = number()
        default: if options.directory.isEmpty { options.directory = word } else { options.cases.append(word) }
        }
    }
    return options
}

func now() -> Double {
    var time = timespec()
    clock_gettime(CLOCK_MONOTONIC, &time)
    return Double(time.tv_sec) + Double(time.tv_nsec) / 1e9
}

func cpu() -> Double {
    var usage = rusage()
    getrusage(__rusage_who_t(RUSAGE_SELF.rawValue), &usage)
    func seconds(_ time: timeval) -> Double { Double(time.tv_sec) + Double(time.tv_usec) / 1e6 }
    return seconds(usage.ru_utime) + seconds(usage.ru_stime)
}

func text(_ value: Double, _ digits: Int = 1) -> String { String(format: "%.\(digits)f", value) }

struct Generator: RandomNumberGenerator {
    var state: UInt64
    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var value = state
        value = (value ^ value >> 30) &* 0xBF58_476D_1CE4_E5B9
        value = (value ^ value >> 27) &* 0x94D0_49BB_1331_11EB
        return value ^ value >> 31
    }
}

/// One disk and what is done to it.
final class Bench {
    let options: Options
    let block = 1 << 20
    let directory: String
    let replica: DiskReplica
    var epoch = Epoch(1)
    let memory = UnsafeMutableRawBufferPointer.allocate(byteCount: 4 << 20, alignment: 4096)
    var generator = Generator(state: 42)

    init(_ options: Options) throws {
        self.options = options
        directory = options.directory + "/pipeline-bench"
        try? FileManager.default.removeItem(atPath: directory)
        replica = try DiskReplica.create(
            directory: directory, size: options.size, durable: options.durable, limits: options.limits)
        fillMemory()
        try replica.beginEpoch(epoch, preserve: false)
        let began = now()
        for offset in stride(from: UInt64(0), to: options.size, by: block) {
            try replica.write(epoch: epoch, offset: offset, bytes: fresh(block))
        }
        _ = try replica.seal(epoch: epoch)
        try replica.committed(epoch)
        print("fill: \(text(Double(options.size) / 1e6 / (now() - began))) MB/s")
    }

    func fillMemory() {
        for offset in stride(from: 0, to: memory.count, by: 8) {
            memory.storeBytes(of: generator.next(), toByteOffset: offset, as: UInt64.self)
        }
    }
    /// Bytes of this length that differ from all before.
    func fresh(_ length: Int) -> UnsafeRawBufferPointer {
        let start = Int(generator.next() % UInt64(memory.count - length)) / 8 * 8
        return UnsafeRawBufferPointer(rebasing: memory[start..<start + length])
    }

    func begin() throws {
        epoch = epoch.next
        try replica.beginEpoch(epoch)
    }

    func end() throws {
        var before = now()
        _ = try replica.seal(epoch: epoch)
        let sealed = now() - before
        before = now()
        try replica.committed(epoch)
        let committed = now() - before
        before = now()
        try replica.reclaim()
        let reclaimed = now() - before
        print(
            "  seal \(text(sealed * 1e3, 2)) ms, commit \(text(committed * 1e3, 3)) ms, "
                + "reclaim \(text(reclaimed * 1e3, 2)) ms")
    }

    func measure(_ name: String, length: Int, count: Int, _ offsets: () -> UInt64) throws {
        let started = now()
        let usedBefore = cpu()
        for _ in 0..<count { try replica.write(epoch: epoch, offset: offsets(), bytes: fresh(length)) }
        let taken = now() - started
        try replica.drain()
        let whole = now() - started
        let used = cpu() - usedBefore
        print(
            "\(name): \(text(Double(count) / whole, 0)) IOPS, \(text(Double(count * length) / 1e6 / whole)) MB/s "
                + "(taken in \(text(taken)) of \(text(whole)) s), cpu \(text(used / whole * 100, 0)) %")
    }

    func run() throws {
        for name in options.cases {
            try begin()
            switch name {
            case "rand4k":
                var blocks = Array(0..<Int(options.size / 4096)).shuffled(using: &generator)
                try measure("4K random first overwrites", length: 4096, count: options.writes) {
                    UInt64(blocks.removeLast()) * 4096
                }
            case "rand64k":
                var blocks = Array(0..<Int(options.size / 65536)).shuffled(using: &generator)
                let count = min(options.writes, blocks.count / 2)
                try measure("64K random first overwrites", length: 65536, count: count) {
                    UInt64(blocks.removeLast()) * 65536
                }
            case "seq1m":
                var offset: UInt64 = 0
                try measure("1M sequential first overwrites", length: block, count: Int(options.size / 2) / block) {
                    defer { offset += UInt64(block) }
                    return offset
                }
            case "warm4k":
                for offset in stride(from: UInt64(0), to: 256 << 20, by: block) {
                    try replica.write(epoch: epoch, offset: offset, bytes: fresh(block))
                }
                try replica.drain()
                try measure("4K random, warm", length: 4096, count: options.writes) {
                    generator.next() % (256 << 8) * 4096
                }
            case "space":
                let before = try replica.allocatedBytes()
                var blocks = Array(0..<Int(options.size / 4096)).shuffled(using: &generator)
                for _ in 0..<options.writes {
                    try replica.write(epoch: epoch, offset: UInt64(blocks.removeLast()) * 4096, bytes: fresh(4096))
                }
                try replica.drain()
                let open = try replica.allocatedBytes() - before
                _ = try replica.seal(epoch: epoch)
                let sealed = try replica.allocatedBytes() - before
                let ideal = Double(options.writes * 4096)
                print(
                    "space: \(options.writes) writes hold \(sealed) bytes, \(text(Double(sealed) / ideal, 3))x "
                        + "(\(text(Double(open) / ideal, 3))x before the seal)")
                try replica.committed(epoch)
                try replica.reclaim()
                continue
            default: print("unknown case \(name)")
            }
            try end()
        }
    }
}

let bench = try Bench(parse())
try bench.run()
try FileManager.default.removeItem(atPath: bench.directory)
