import Glibc
import QEMU
import SystemPackage

/// What the kernel knows of the process that runs the guest (proc(5)).
public struct GuestProcess: Sendable, Equatable, Codable {
    public var pid: Int32
    /// The command line, the program's name first.
    public var arguments: [String]
    /// The program's file, or nil when the link may not be read.
    public var executable: String?
    /// Relative paths of the command line start here; nil when the link may not be read.
    public var workingDirectory: String?

    public init(pid: Int32, arguments: [String], executable: String? = nil, workingDirectory: String? = nil) {
        self.pid = pid
        self.arguments = arguments
        self.executable = executable
        self.workingDirectory = workingDirectory
    }

    /// A process whose command line we cannot have.
    public struct Unreadable: Error, Equatable, CustomStringConvertible {
        public let pid: Int32
        public let detail: String
        public var description: String {
            "the command line of process \(pid) cannot be read (\(detail)); run as the user that runs the guest"
        }
    }

    /// The longest command line that is read, in bytes.
    public static let commandLineLimit = 4 << 20

    /// Reads /proc/PID. Blocks for microseconds.
    public static func read(pid: Int32) throws(Unreadable) -> GuestProcess {
        let bytes: [UInt8]
        do {
            bytes = try readFile("/proc/\(pid)/cmdline")
        } catch {
            throw Unreadable(pid: pid, detail: "\(error)")
        }
        guard !bytes.isEmpty else { throw Unreadable(pid: pid, detail: "it is empty") }
        var parts = bytes.split(separator: 0, omittingEmptySubsequences: false)
        // Every argument ends with a zero byte, so that the last piece is empty.
        if parts.last?.isEmpty == true { parts.removeLast() }
        return GuestProcess(
            pid: pid, arguments: parts.map { String(decoding: $0, as: UTF8.self) },
            executable: link("/proc/\(pid)/exe"), workingDirectory: link("/proc/\(pid)/cwd"))
    }

    private static func readFile(_ path: String) throws -> [UInt8] {
        let file = try FileDescriptor.open(FilePath(path), .readOnly, options: .closeOnExec)
        return try file.closeAfter {
            var out: [UInt8] = []
            var chunk = [UInt8](repeating: 0, count: 65_536)
            while out.count <= commandLineLimit {
                let count = try chunk.withUnsafeMutableBytes { try file.read(into: $0) }
                guard count > 0 else { return out }
                out.append(contentsOf: chunk[0..<count])
            }
            throw Errno.fileTooLarge
        }
    }

    private static func link(_ path: String) -> String? {
        var buffer = [CChar](repeating: 0, count: Int(PATH_MAX))
        let count = readlink(path, &buffer, buffer.count)
        guard count > 0 else { return nil }
        return String(decoding: buffer[0..<count].map(UInt8.init(bitPattern:)), as: UTF8.self)
    }
}
