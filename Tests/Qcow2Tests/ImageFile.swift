import Foundation
import Qcow2

/// A file in memory that grows as overlays are told to grow; what was never written is zero.
struct MemoryFile {
    var bytes: [UInt8] = []

    mutating func grow(to length: UInt64) {
        if bytes.count < Int(length) { bytes.append(contentsOf: repeatElement(0, count: Int(length) - bytes.count)) }
    }

    mutating func write(_ write: FileWrite) {
        precondition(write.end <= UInt64(bytes.count), "a write behind the length that was announced")
        bytes.replaceSubrange(Int(write.offset)..<Int(write.end), with: write.bytes)
    }
}

/// A directory that disappears with the object.
final class Scratch {
    let path: String

    init() throws {
        let url = FileManager.default.temporaryDirectory.appendingPathComponent("qcow2-tests-\(UUID().uuidString)")
        try FileManager.default.createDirectory(at: url, withIntermediateDirectories: true)
        path = url.path
    }

    deinit { try? FileManager.default.removeItem(atPath: path) }

    func file(_ name: String, _ bytes: [UInt8]) throws -> String {
        let file = path + "/" + name
        try Data(bytes).write(to: URL(fileURLWithPath: file))
        return file
    }
}

/// QEMU's own tools, the independent judge of our images.
enum QemuTool {
    static let isInstalled =
        FileManager.default.isExecutableFile(atPath: "/usr/bin/qemu-img")
        && FileManager.default.isExecutableFile(atPath: "/usr/bin/qemu-io")

    struct Outcome {
        let status: Int32
        let output: String
    }

    static func run(_ tool: String, _ arguments: [String]) throws -> Outcome {
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
        return Outcome(status: process.terminationStatus, output: String(decoding: data, as: UTF8.self))
    }

    /// The image's contents as the guest sees them.
    static func contents(_ image: String, in scratch: Scratch) throws -> [UInt8] {
        let raw = scratch.path + "/converted.raw"
        let outcome = try run("qemu-img", ["convert", "-f", "qcow2", "-O", "raw", image, raw])
        guard outcome.status == 0 else { throw ToolFailed(output: outcome.output) }
        return [UInt8](try Data(contentsOf: URL(fileURLWithPath: raw)))
    }

    struct ToolFailed: Error { let output: String }
}

/// SplitMix64: small, seeded, the same everywhere.
struct SplitMix64: RandomNumberGenerator {
    var state: UInt64

    init(seed: UInt64) { state = seed }

    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var value = state
        value = (value ^ value >> 30) &* 0xBF58_476D_1CE4_E5B9
        value = (value ^ value >> 27) &* 0x94D0_49BB_1331_11EB
        return value ^ value >> 31
    }

    /// Bytes of which none is zero.
    mutating func bytes(_ count: Int) -> [UInt8] {
        [UInt8](unsafeUninitializedCapacity: (count + 7) / 8 * 8) { buffer, initialized in
            let words = UnsafeMutableRawBufferPointer(buffer)
            var offset = 0
            while offset < count {
                words.storeBytes(of: next() | 0x0101_0101_0101_0101, toByteOffset: offset, as: UInt64.self)
                offset += 8
            }
            initialized = count
        }
    }
}
