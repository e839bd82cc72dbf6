import Foundation
import Glibc

/// A program that a test runs to its end.
public struct Program: Sendable {
    /// What a program left behind.
    public struct Outcome: Sendable {
        public let status: Int32
        public let output: String
        public let errors: String

        public var succeeded: Bool { status == 0 }
    }

    /// Full path of a program of this name on PATH; nil when there is none.
    public static func path(of name: String) -> String? {
        let folders = (ProcessInfo.processInfo.environment["PATH"] ?? "/usr/bin:/bin").split(separator: ":")
        return folders.map { "\($0)/\(name)" }.first { FileManager.default.isExecutableFile(atPath: $0) }
    }

    /// Runs a program of PATH and waits for it. Throws when it cannot be started; its own failure is in the outcome.
    public static func run(_ name: String, _ arguments: [String]) throws -> Outcome {
        let process = Process()
        process.executableURL = URL(filePath: "/usr/bin/env")
        process.arguments = [name] + arguments
        process.standardInput = FileHandle.nullDevice
        // Files rather than pipes: nothing can fill up while nobody reads.
        let folder = FileManager.default.temporaryDirectory.appending(path: "program-\(UUID().uuidString)")
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(at: folder) }
        let files = try ["output", "errors"].map { name in
            let path = folder.appending(path: name)
            _ = FileManager.default.createFile(atPath: path.path, contents: nil)
            return (path, try FileHandle(forWritingTo: path))
        }
        process.standardOutput = files[0].1
        process.standardError = files[1].1
        try start(process)
        process.waitUntilExit()
        let texts = try files.map { path, handle in
            try handle.close()
            return String(decoding: try Data(contentsOf: path), as: UTF8.self)
        }
        return Outcome(status: process.terminationStatus, output: texts[0], errors: texts[1])
    }

    /// Starts a process that gets every signal: test threads block most of them, and a child would inherit that (nbdkit
    /// could then not end its own server).
    public static func start(_ process: Process) throws {
        var none = sigset_t()
        var before = sigset_t()
        sigemptyset(&none)
        pthread_sigmask(SIG_SETMASK, &none, &before)
        defer { pthread_sigmask(SIG_SETMASK, &before, nil) }
        try process.run()
    }
}
