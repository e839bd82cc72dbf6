import Foundation
import Testing

/// A loop device over a sparse file; nil where the machine has none for us.
final class LoopDevice {
    let path: String

    init?(size: UInt64, in directory: String) throws {
        let file = directory + "/device.img"
        #expect(FileManager.default.createFile(atPath: file, contents: nil))
        let handle = try FileHandle(forWritingTo: URL(fileURLWithPath: file))
        try handle.truncate(atOffset: size)
        try handle.close()
        guard FileManager.default.isExecutableFile(atPath: "/usr/sbin/losetup") else { return nil }
        let made = try Self.run(["-f", "--show", file])
        guard made.status == 0 else { return nil }
        path = made.output.trimmingCharacters(in: .whitespacesAndNewlines)
    }

    deinit { _ = try? Self.run(["-d", path]) }

    static func run(_ arguments: [String]) throws -> (status: Int32, output: String) {
        let process = Process()
        process.executableURL = URL(fileURLWithPath: "/usr/sbin/losetup")
        process.arguments = arguments
        let pipe = Pipe()
        process.standardOutput = pipe
        process.standardError = FileHandle.nullDevice
        try process.run()
        let output = pipe.fileHandleForReading.readDataToEndOfFile()
        process.waitUntilExit()
        return (process.terminationStatus, String(decoding: output, as: UTF8.self))
    }

    static let isPossible: Bool = {
        guard FileManager.default.isExecutableFile(atPath: "/usr/sbin/losetup") else { return false }
        return geteuid() == 0 && ((try? run(["-f"]))?.status == 0)
    }()
}
