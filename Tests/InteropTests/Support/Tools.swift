import Foundation
import TestSupport
import Testing

/// Why a test cannot go on, with what was seen.
struct InteropFailure: Error, CustomStringConvertible {
    let description: String

    init(_ description: String) { self.description = description }
}

/// The programs of this suite.
enum Tools {
    /// The colo-blk under test; without it nothing of this suite runs but the list of peers.
    static let binary = ProcessInfo.processInfo.environment["COLO_BLK_BIN"]

    /// A Python that has libnbd's module: the system's own before another one of PATH.
    static let pythonWithNbd: String? = ["/usr/bin/python3", Program.path(of: "python3") ?? ""].first { path in
        guard FileManager.default.isExecutableFile(atPath: path) else { return false }
        return (try? Program.run(path, ["-c", "import nbd"]))?.succeeded == true
    }

    /// Every random choice follows from this and the test's name.
    static let seed: UInt64 =
        ProcessInfo.processInfo.environment["COLO_BLK_SEED"].flatMap { UInt64($0) }
        ?? UInt64.random(in: 0...UInt64(UInt32.max))

    static func resource(_ name: String) -> String {
        URL(filePath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
            .appending(path: "Resources").appending(path: name).path
    }

    static func have(_ names: String...) -> Bool {
        binary != nil && names.allSatisfy { Program.path(of: $0) != nil }
    }

    static func missing(_ names: String...) -> Comment {
        "COLO_BLK_BIN is not set, or one of \(names.joined(separator: ", ")) is missing: Scripts/test installs them"
    }
}

/// Runs a program that must succeed; returns its standard output.
@discardableResult
func tool(_ name: String, _ arguments: String...) throws -> String {
    try tool(name, arguments)
}

@discardableResult
func tool(_ name: String, _ arguments: [String]) throws -> String {
    let outcome = try Program.run(name, arguments)
    guard outcome.succeeded else {
        throw InteropFailure(
            "\(name) \(arguments.joined(separator: " ")) ended with \(outcome.status): "
                + "\(outcome.errors.suffix(1500)) \(outcome.output.suffix(1500))")
    }
    return outcome.output
}

/// qemu-io on an NBD URI; reads with a pattern fail when another one is there.
@discardableResult
func qemuIO(_ uri: String, _ commands: String..., options: [String] = []) throws -> String {
    let output = try tool("qemu-io", ["-f", "raw"] + options + commands.flatMap { ["-c", $0] } + [uri])
    guard !output.contains("Pattern verification failed") else { throw InteropFailure("\(commands): \(output)") }
    return output
}

/// Whether qemu-img finds the same bytes in both.
func sameContents(_ first: String, _ second: String, formats: (String, String) = ("raw", "raw")) throws -> Bool {
    let outcome = try Program.run(
        "qemu-img", ["compare", "-f", formats.0, "-F", formats.1, first, second])
    guard outcome.status <= 1 else {
        throw InteropFailure("qemu-img compare \(first) \(second): \(outcome.errors)")
    }
    return outcome.succeeded
}

/// A new client is served, and told this size.
func expectSize(_ uri: String, _ bytes: Int) throws {
    let size = try tool("nbdinfo", "--size", uri)
    #expect(size == "\(bytes)\n", "\(uri)")
}

func json(_ text: String) throws -> [String: Any] {
    guard let object = try JSONSerialization.jsonObject(with: Data(text.utf8)) as? [String: Any] else {
        throw InteropFailure("no JSON object: \(text.prefix(300))")
    }
    return object
}

func jsonList(_ text: String) throws -> [[String: Any]] {
    guard let list = try JSONSerialization.jsonObject(with: Data(text.utf8)) as? [[String: Any]] else {
        throw InteropFailure("no JSON list: \(text.prefix(300))")
    }
    return list
}
