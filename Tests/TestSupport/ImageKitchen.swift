import Foundation

/// A folder in which QEMU's programs make images.
public struct ImageKitchen: Sendable {
    public let folder: String

    public init(folder: String) { self.folder = folder }

    public func path(_ name: String) -> String { "\(folder)/\(name)" }

    /// Runs qemu-img; throws what it says when it fails.
    @discardableResult
    public func img(_ arguments: [String]) throws -> String {
        let outcome = try Program.run("qemu-img", arguments)
        guard outcome.succeeded else {
            throw RecipeFailed(description: "qemu-img \(arguments): \(outcome.errors)")
        }
        return outcome.output
    }

    /// Runs qemu-io's commands on an image; throws when it or one of them fails.
    public func io(_ image: String, _ commands: [String], format: String = "qcow2") throws {
        let outcome = try Program.run(
            "qemu-io", ["-f", format, image] + commands.flatMap { ["-c", $0] })
        guard outcome.succeeded, !outcome.output.contains("failed"), outcome.errors.isEmpty else {
            throw RecipeFailed(description: "qemu-io \(image) \(commands): \(outcome.output)\(outcome.errors)")
        }
    }

    /// The same, and the program dies before it closes the image.
    public func crash(_ image: String, _ commands: [String]) throws {
        let list = (commands + ["abort"]).flatMap { ["-c", $0] }
        let outcome = try Program.run("qemu-io", ["-f", "qcow2", image] + list)
        guard !outcome.succeeded else { throw RecipeFailed(description: "qemu-io did not die") }
    }

    public func create(_ name: String, _ options: String, size: Int) throws -> String {
        try img(["create", "-q", "-f", "qcow2", "-o", options, path(name), "\(size)"])
        return path(name)
    }

    /// A sparse raw file with patterns, text that compresses and noise.
    public func raw(_ name: String, size: Int, seed: UInt64) throws -> String {
        var random = SplitMix64(seed: seed)
        var bytes = [UInt8](repeating: 0, count: size)
        for _ in 0..<12 {
            let start = Int.random(in: 0..<size / 512, using: &random) * 512
            let length = min(Int.random(in: 1...120, using: &random) * 512, size - start)
            let isNoise = Int.random(in: 0..<3, using: &random) == 0
            let value = UInt8.random(in: 1...255, using: &random)
            for index in start..<start + length {
                bytes[index] = isNoise ? UInt8(truncatingIfNeeded: random.next()) : value &+ UInt8(index / 4096 % 7)
            }
        }
        guard FileManager.default.createFile(atPath: path(name), contents: nil) else {
            throw RecipeFailed(description: "cannot make \(path(name))")
        }
        let handle = try FileHandle(forWritingTo: URL(filePath: path(name)))
        try handle.truncate(atOffset: UInt64(size))
        for start in stride(from: 0, to: size, by: 4096) {
            let block = bytes[start..<min(start + 4096, size)]
            guard block.contains(where: { $0 != 0 }) else { continue }
            try handle.seek(toOffset: UInt64(start))
            try handle.write(contentsOf: Data(block))
        }
        try handle.close()
        return path(name)
    }

    /// An overlay with random writes of its own.
    public func overlay(
        _ name: String, over base: String, _ format: String, _ options: String, seed: UInt64, writes: Int = 24
    ) throws -> String {
        let size = 1_310_720 + 512
        try img(["create", "-q", "-f", "qcow2", "-b", base, "-F", format, "-o", options, path(name), "\(size)"])
        try scribble(path(name), size: size, seed: seed, zeroes: true, writes: writes)
        return path(name)
    }

    /// Random writes, zeroes and discards.
    public func scribble(_ image: String, size: Int, seed: UInt64, zeroes: Bool, writes: Int = 24) throws {
        var random = SplitMix64(seed: seed)
        var commands: [String] = []
        for _ in 0..<writes {
            let start = Int.random(in: 0..<size / 512, using: &random) * 512
            let length = min(Int.random(in: 1...160, using: &random) * 512, size - start)
            switch zeroes ? Int.random(in: 0..<8, using: &random) : 0 {
            case 5: commands.append("write -z \(start) \(length)")
            case 6: commands.append("write -z -u \(start) \(length)")
            case 7: commands.append("discard \(start) \(length)")
            default:
                commands.append("write -P \(UInt8.random(in: 1...255, using: &random)) \(start) \(length)")
            }
        }
        try io(image, commands)
    }

    /// The disk's bytes, as QEMU reads them.
    public func contents(_ image: String, format: String? = nil) throws -> [UInt8] {
        let raw = path("contents-\(UUID().uuidString)")
        defer { try? FileManager.default.removeItem(atPath: raw) }
        try img(["convert"] + (format.map { ["-f", $0] } ?? []) + ["-O", "raw", image, raw])
        return [UInt8](try Data(contentsOf: URL(filePath: raw)))
    }
}

/// A folder that disappears with the object.
public final class ScratchFolder: Sendable {
    public let path: String

    public init(_ label: String = "images") throws {
        let url = FileManager.default.temporaryDirectory.appending(path: "colo-blk-\(label)-\(UUID().uuidString)")
        try FileManager.default.createDirectory(at: url, withIntermediateDirectories: true)
        path = url.path
    }

    deinit { try? FileManager.default.removeItem(atPath: path) }
}
