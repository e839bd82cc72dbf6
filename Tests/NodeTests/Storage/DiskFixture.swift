import Foundation
import Units

@testable import Node

/// A directory for a disk that disappears with the object.
final class DiskScratch {
    let path: String

    init(below parent: String = FileManager.default.temporaryDirectory.path) throws {
        path = parent + "/disk-tests-\(UUID().uuidString)"
        try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
    }

    deinit { try? FileManager.default.removeItem(atPath: path) }

    /// Removes what is in the directory.
    func clear() throws {
        for name in try FileManager.default.contentsOfDirectory(atPath: path) {
            try FileManager.default.removeItem(atPath: path + "/" + name)
        }
    }
}

/// SplitMix64: small, seeded, the same everywhere.
struct DiskRandom: RandomNumberGenerator {
    var state: UInt64

    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var value = state
        value = (value ^ value >> 30) &* 0xBF58_476D_1CE4_E5B9
        value = (value ^ value >> 27) &* 0x94D0_49BB_1331_11EB
        return value ^ value >> 31
    }

    mutating func below(_ limit: Int) -> Int { Int(next() % UInt64(limit)) }
}

/// What a disk should hold: the latest contents, each epoch's pending changes, each sealed epoch's contents.
struct DiskModel {
    var disk: [UInt8]
    var pending: [Epoch: [(range: Range<Int>, value: UInt8)]] = [:]
    var checkpoints: [Epoch: [UInt8]] = [:]

    init(size: Int) { disk = [UInt8](repeating: 0, count: size) }

    mutating func seal(_ epoch: Epoch) {
        for change in pending.removeValue(forKey: epoch) ?? [] {
            disk.replaceSubrange(change.range, with: repeatElement(change.value, count: change.range.count))
        }
        checkpoints[epoch] = disk
    }

    /// Everything newer than this epoch never happened.
    mutating func rollBack(to epoch: Epoch) {
        pending = [:]
        checkpoints = checkpoints.filter { $0.key <= epoch }
        disk = checkpoints[epoch] ?? [UInt8](repeating: 0, count: disk.count)
    }

    /// Makes one random change in both worlds.
    mutating func change(
        _ replica: DiskReplica, _ epoch: Epoch, _ random: inout DiskRandom, sectors limit: Int = 48
    ) throws {
        let sectors = disk.count / 512
        let first = random.below(sectors)
        let count = 1 + random.below(min(sectors - first, limit))
        let range = first * 512..<(first + count) * 512
        let bytes = ByteRange(offset: UInt64(range.lowerBound), length: UInt64(range.count))
        switch random.below(6) {
        case 0:
            try replica.writeZeroes(epoch: epoch, range: bytes)
            pending[epoch, default: []].append((range, 0))
        case 1:
            try replica.discard(epoch: epoch, range: bytes)
            pending[epoch, default: []].append((range, 0))
        default:
            let value = UInt8(random.below(5))
            let data = [UInt8](repeating: value, count: range.count)
            try data.withUnsafeBytes { try replica.write(epoch: epoch, offset: bytes.offset, bytes: $0) }
            pending[epoch, default: []].append((range, value))
        }
    }
}

extension DiskReplica {
    /// The whole of a checkpoint.
    func contents(after epoch: Epoch) throws -> [UInt8] {
        var bytes = [UInt8](repeating: 0xAA, count: Int(size))
        try bytes.withUnsafeMutableBytes { try readView(after: epoch, offset: 0, into: $0) }
        return bytes
    }
}

/// QEMU's own tools, the independent judge of our files.
enum DiskTool {
    static let isInstalled =
        FileManager.default.isExecutableFile(atPath: "/usr/bin/qemu-img")
        && FileManager.default.isExecutableFile(atPath: "/usr/bin/qemu-io")

    static func run(_ tool: String, _ arguments: [String]) throws -> (status: Int32, output: String) {
        let process = Process()
        process.executableURL = URL(fileURLWithPath: "/usr/bin/\(tool)")
        process.arguments = arguments
        let pipe = Pipe()
        process.standardOutput = pipe
        process.standardError = pipe
        process.standardInput = FileHandle.nullDevice
        try process.run()
        let data = pipe.fileHandleForReading.readDataToEndOfFile()
        process.waitUntilExit()
        return (process.terminationStatus, String(decoding: data, as: UTF8.self))
    }

    /// An image's contents as a guest sees them.
    static func contents(_ image: String) throws -> [UInt8] {
        guard image.hasSuffix(".qcow2") else { return [UInt8](try Data(contentsOf: URL(fileURLWithPath: image))) }
        let raw = image + ".converted"
        defer { try? FileManager.default.removeItem(atPath: raw) }
        let outcome = try run("qemu-img", ["convert", "-f", "qcow2", "-O", "raw", image, raw])
        guard outcome.status == 0 else { throw Failed(output: outcome.output) }
        return [UInt8](try Data(contentsOf: URL(fileURLWithPath: raw)))
    }

    struct Failed: Error { let output: String }
}
