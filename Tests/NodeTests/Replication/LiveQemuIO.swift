import Foundation

/// A qemu-io that stays connected while a test looks at what it did.
final class LiveQemuIO {
    struct Failed: Error { let output: String }

    private let process = Process()
    private let input = Pipe()
    private let output = Pipe()
    private var said = ""

    init(_ image: String) throws {
        process.executableURL = URL(fileURLWithPath: "/usr/bin/qemu-io")
        process.arguments = ["-f", "raw", "-d", "unmap", image]
        process.standardInput = input
        process.standardOutput = output
        process.standardError = output
        try process.run()
    }

    /// Performs one command that transfers something, and waits for its figures.
    func run(_ command: String) throws {
        said = ""
        try input.fileHandleForWriting.write(contentsOf: Data("\(command)\n".utf8))
        while !said.contains(" ops;") {
            let data = output.fileHandleForReading.availableData
            said += String(decoding: data, as: UTF8.self)
            if data.isEmpty || said.contains("rror") || said.contains("failed") { throw Failed(output: said) }
        }
    }

    func close() {
        try? input.fileHandleForWriting.close()
        process.waitUntilExit()
    }
}
