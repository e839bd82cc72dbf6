import Foundation
import Glibc

/// A process that a test started: a process group of its own, its output in files.
final class ChildProcess {
    let pid: pid_t
    let name: String
    /// Standard output and standard error; one file when both are the same.
    let outputPath: String
    let errorPath: String
    private var status: Int32?

    /// - Parameters:
    ///   - output: file for standard output; appended to.
    ///   - error: file for standard error; standard output's when nil.
    init(
        _ name: String, _ executable: String, _ arguments: [String], output: String, error: String? = nil,
        environment: [String: String] = [:]
    ) throws {
        self.name = name
        outputPath = output
        errorPath = error ?? output
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0)
        posix_spawn_file_actions_addopen(&actions, 1, output, O_WRONLY | O_CREAT | O_APPEND, 0o600)
        if let error {
            posix_spawn_file_actions_addopen(&actions, 2, error, O_WRONLY | O_CREAT | O_APPEND, 0o600)
        } else {
            posix_spawn_file_actions_adddup2(&actions, 1, 2)
        }
        Self.keepFilesToOurselves()
        var attributes = posix_spawnattr_t()
        posix_spawnattr_init(&attributes)
        defer { posix_spawnattr_destroy(&attributes) }
        posix_spawnattr_setflags(&attributes, Int16(POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK))
        // The threads that tests run on block signals; a child's are its own.
        var none = sigset_t()
        sigemptyset(&none)
        posix_spawnattr_setsigmask(&attributes, &none)
        posix_spawnattr_setpgroup(&attributes, 0)
        let words = ([executable] + arguments).map { strdup($0) }
        let variables = ProcessInfo.processInfo.environment.merging(environment) { $1 }.map { strdup("\($0)=\($1)") }
        defer { (words + variables).forEach { free($0) } }
        var child: pid_t = 0
        let code = posix_spawnp(&child, executable, &actions, &attributes, words + [nil], variables + [nil])
        guard code == 0 else { throw TestFailure("\(executable) cannot be started: \(describe(errno: code))") }
        pid = child
    }

    /// The test runner may have other files open; they are none of the child's business.
    private static func keepFilesToOurselves() {
        for name in (try? FileManager.default.contentsOfDirectory(atPath: "/proc/self/fd")) ?? [] {
            guard let descriptor = Int32(name), descriptor > 2 else { continue }
            _ = fcntl(descriptor, F_SETFD, FD_CLOEXEC)
        }
    }

    /// What waitpid(2) said, nil while the process runs.
    private func poll() -> Int32? {
        if let status { return status }
        var value: Int32 = 0
        if waitpid(pid, &value, WNOHANG) == pid { status = value }
        return status
    }

    var isRunning: Bool { poll() == nil }

    /// The exit code; minus the signal for a process that a signal ended. Nil while it runs.
    var exitCode: Int32? {
        guard let value = poll() else { return nil }
        return value & 0x7F == 0 ? (value >> 8) & 0xFF : -(value & 0x7F)
    }

    func waitForExit(within seconds: Double) throws -> Int32 {
        try waitUntil("\(name) (pid \(pid)) ends", within: seconds, every: 5) { !isRunning }
        return exitCode ?? -1
    }

    /// Sends a signal to this process and no other; does nothing when it has ended.
    func signal(_ number: Int32) {
        guard poll() == nil else { return }
        _ = Glibc.kill(pid, number)
    }

    /// kill -9, and waits until it is gone.
    func kill() throws {
        signal(SIGKILL)
        _ = try waitForExit(within: 10)
    }

    var errorText: String { (try? String(contentsOfFile: errorPath, encoding: .utf8)) ?? "" }
    var outputText: String { (try? String(contentsOfFile: outputPath, encoding: .utf8)) ?? "" }
}

/// What /proc tells.
enum ProcessTable {
    static func arguments(of pid: pid_t) -> [String] {
        guard let data = FileManager.default.contents(atPath: "/proc/\(pid)/cmdline") else { return [] }
        return data.split(separator: 0).map { String(decoding: $0, as: UTF8.self) }
    }

    /// Running, and no zombie.
    static func isAlive(_ pid: pid_t) -> Bool { state(of: pid).map { $0 != "Z" && $0 != "X" } ?? false }

    /// The letter of `ps`.
    static func state(of pid: pid_t) -> Character? { fields(of: pid).first?.first }

    static func parent(of pid: pid_t) -> pid_t? {
        let fields = fields(of: pid)
        return fields.count > 1 ? pid_t(fields[1]) : nil
    }

    static func children(of pid: pid_t) -> [pid_t] {
        let names = (try? FileManager.default.contentsOfDirectory(atPath: "/proc")) ?? []
        return names.compactMap { pid_t($0) }.filter { parent(of: $0) == pid }
    }

    /// The fields of /proc/PID/stat behind the command's name.
    private static func fields(of pid: pid_t) -> [Substring] {
        guard let data = FileManager.default.contents(atPath: "/proc/\(pid)/stat") else { return [] }
        let text = String(decoding: data, as: UTF8.self)
        guard let end = text.lastIndex(of: ")") else { return [] }
        return text[text.index(after: end)...].split(separator: " ")
    }
}
