import Foundation
import Testing

/// The table of docs/architecture.md: who may import whom.
private let importTable: [String: Set<String>] = [
    "Units": ["CKernels"],
    "AsyncIO": ["Units", "CAio", "SystemPackage", "BasicContainers", "Glibc", "Synchronization"],
    "NBD": ["Units"],
    "Qcow2": ["Units"],
    "QEMU": ["Units", "FoundationEssentials"],
    "Link": ["Units"],
    "RamCache": ["Units", "CZstd", "BasicContainers", "DequeModule", "Glibc"],
    "BlockReplica": ["Units", "Qcow2", "BasicContainers", "DequeModule"],
    "Checkpointer": ["Units", "BasicContainers", "DequeModule"],
    "Node": [
        "Units", "AsyncIO", "NBD", "QEMU", "Qcow2", "Link", "BlockReplica", "RamCache", "Checkpointer", "CLinux",
        "CQcow", "CZlib", "CZstd", "Crypto", "NIOSSL", "NIOTLS", "NIOCore", "NIOPosix", "NIOConcurrencyHelpers",
        "Logging", "Metrics", "Subprocess", "SystemPackage", "FoundationEssentials", "Synchronization", "Dispatch",
        "Glibc",
    ],
    "colo-blk": ["Node", "Units", "ArgumentParser", "ServiceLifecycle", "UnixSignals", "Logging", "Glibc"],
]

/// Doors to C: what they are and what they may not grow into.
private let doors: Set<String> = ["CAio", "CKernels", "CLinux", "CZlib", "CZstd", "CQcow"]

/// Targets below Tests that are no tests themselves.
private let testSupport: Set<String> = ["TestSupport", "Simulator", "simulate"]

private let root = URL(filePath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
    .deletingLastPathComponent()

private func swiftFiles(under folder: String) throws -> [URL] {
    let directory = root.appending(path: folder)
    let files = try #require(FileManager.default.enumerator(at: directory, includingPropertiesForKeys: nil))
    return files.compactMap { $0 as? URL }.filter { $0.pathExtension == "swift" }
}

private func imports(of file: URL) throws -> Set<String> {
    let text = try String(contentsOf: file, encoding: .utf8)
    var found: Set<String> = []
    for line in text.split(separator: "\n") {
        var words = line.split(separator: " ").map(String.init)
        while let first = words.first, first.hasPrefix("@") || first == "public" || first == "internal" {
            words.removeFirst()
        }
        guard words.first == "import", words.count >= 2 else { continue }
        let kinds: Set<String> = ["struct", "class", "enum", "protocol", "func", "var", "let", "typealias"]
        let name = kinds.contains(words[1]) && words.count >= 3 ? words[2] : words[1]
        found.insert(String(name.split(separator: ".")[0]))
    }
    return found
}

@Suite("Who may import whom")
struct ImportTableTests {
    @Test("every source file keeps to the table", arguments: importTable.keys.sorted())
    func sourcesKeepToTheTable(target: String) throws {
        let allowed = try #require(importTable[target])
        let files = try swiftFiles(under: "Sources/\(target)")
        #expect(!files.isEmpty, "Sources/\(target) holds no Swift file")
        for file in files {
            let beyond = try imports(of: file).subtracting(allowed)
            #expect(beyond.isEmpty, "\(file.lastPathComponent) of \(target) imports \(beyond.sorted())")
        }
    }

    @Test("the table names every folder of Sources")
    func everyFolderIsInTheTable() throws {
        let folders = try FileManager.default.contentsOfDirectory(atPath: root.appending(path: "Sources").path)
        #expect(Set(folders) == Set(importTable.keys).union(doors))
    }

    @Test("the manifest's dependencies keep to the table")
    func manifestKeepsToTheTable() throws {
        let package = try dumpedPackage()
        let targets = try #require(package["targets"] as? [[String: Any]])
        var seen: Set<String> = []
        for target in targets where target["type"] as? String != "test" && target["type"] as? String != "system" {
            let name = try #require(target["name"] as? String)
            guard !doors.contains(name), !testSupport.contains(name) else { continue }
            let allowed = try #require(importTable[name], "\(name) is not in the table")
            seen.insert(name)
            for dependency in try #require(target["dependencies"] as? [[String: Any]]) {
                let words = (dependency["byName"] ?? dependency["product"] ?? dependency["target"]) as? [Any?]
                let word = try #require(words?.first as? String)
                #expect(allowed.contains(word), "\(name) depends on \(word)")
            }
        }
        #expect(seen == Set(importTable.keys))
    }

    private func dumpedPackage() throws -> [String: Any] {
        let scratch = FileManager.default.temporaryDirectory.appending(path: "colo-blk-dump-\(UUID().uuidString)")
        defer { try? FileManager.default.removeItem(at: scratch) }
        let process = Process()
        process.executableURL = URL(filePath: "/usr/bin/env")
        process.arguments = [
            "swift", "package", "--package-path", root.path, "--scratch-path", scratch.path, "dump-package",
        ]
        let output = Pipe()
        process.standardOutput = output
        process.standardError = FileHandle.nullDevice
        try process.run()
        let bytes = output.fileHandleForReading.readDataToEndOfFile()
        process.waitUntilExit()
        #expect(process.terminationStatus == 0)
        return try #require(try JSONSerialization.jsonObject(with: bytes) as? [String: Any])
    }
}
