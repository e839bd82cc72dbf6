import Foundation
import Glibc
import Testing

/// What the bad-input tests need of the outside: the program under test, its processes, folders that go away.
enum FakeTool {
    /// The program under test; the suites that need it are skipped without it.
    static let binary = ProcessInfo.processInfo.environment["COLO_BLK_BIN"]
    static let missingBinary: Comment = "COLO_BLK_BIN does not name the colo-blk to test"

    static let repository = URL(filePath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
        .deletingLastPathComponent()

    static let isRoot = geteuid() == 0

    /// How a run of the program ended.
    struct Ending: CustomStringConvertible {
        /// The exit code; 1000 + signal when it was killed; nil when it was still running and was killed for that.
        var code: Int32?
        var out: String
        var error: String
        var seconds: Double

        /// What the program says to its user; log lines begin with a time.
        var sentences: [String] { error.split(separator: "\n").map(String.init).filter { $0.hasPrefix("colo-blk: ") } }

        var description: String { "code \(code.map(String.init) ?? "none"), out: \(out), error: \(error)" }
    }

    /// Runs colo-blk to its end.
    static func run(_ arguments: [String], limit: Double = 30) throws -> Ending {
        let process = try FakeProcess(arguments)
        return process.end(within: limit)
    }

    /// Runs any program; returns its exit code.
    @discardableResult
    static func shell(_ program: String, _ arguments: String...) throws -> Int32 {
        let process = Process()
        process.executableURL = URL(filePath: program)
        process.arguments = arguments
        process.standardInput = FileHandle.nullDevice
        process.standardError = FileHandle.nullDevice
        try process.run()
        process.waitUntilExit()
        return process.terminationStatus
    }

    /// Polls until `condition` holds; false when it did not in time.
    static func wait(_ seconds: Double, for condition: () throws -> Bool) rethrows -> Bool {
        let end = ContinuousClock.now + .seconds(seconds)
        while true {
            if try condition() { return true }
            if ContinuousClock.now >= end { return false }
            usleep(20_000)
        }
    }
}

struct FakeFailure: Error, CustomStringConvertible {
    let description: String
    init(_ description: String) { self.description = description }
}

/// A folder in /tmp with a short path, for sockets.
final class FakeFolder {
    let path: String

    init() throws {
        var template = Array("/tmp/cbbad-XXXXXX".utf8CString)
        guard mkdtemp(&template) != nil else { throw FakeFailure("mkdtemp: \(String(cString: strerror(errno)))") }
        path = String(decoding: template.dropLast().map(UInt8.init(bitPattern:)), as: UTF8.self)
    }

    deinit { try? FileManager.default.removeItem(atPath: path) }

    subscript(name: String) -> String { "\(path)/\(name)" }

    func write(_ name: String, _ text: String) throws -> String {
        try text.write(toFile: self[name], atomically: false, encoding: .utf8)
        return self[name]
    }
}

/// A run of colo-blk whose words can be followed. Killed when it is let go.
final class FakeProcess {
    private let process = Process()
    private let folder: FakeFolder
    private let began = ContinuousClock.now

    var pid: Int32 { process.processIdentifier }
    var isRunning: Bool { process.isRunning }
    var out: String { (try? String(contentsOfFile: folder["out"], encoding: .utf8)) ?? "" }
    var error: String { (try? String(contentsOfFile: folder["err"], encoding: .utf8)) ?? "" }

    init(_ arguments: [String]) throws {
        guard let binary = FakeTool.binary else { throw FakeFailure("COLO_BLK_BIN is not set") }
        folder = try FakeFolder()
        for name in ["out", "err"] { _ = try folder.write(name, "") }
        process.executableURL = URL(filePath: binary)
        process.arguments = arguments
        process.standardInput = FileHandle.nullDevice
        process.standardOutput = FileHandle(forWritingAtPath: folder["out"])
        process.standardError = FileHandle(forWritingAtPath: folder["err"])
        try process.run()
    }

    deinit { kill() }

    func signal(_ number: Int32) { if isRunning { _ = Glibc.kill(pid, number) } }

    func kill() {
        signal(SIGKILL)
        process.waitUntilExit()
    }

    /// Waits for words on standard error.
    func says(_ words: String, within seconds: Double = 30) -> Bool {
        FakeTool.wait(seconds) { error.contains(words) || !isRunning } && error.contains(words)
    }

    /// Waits for the end; a process that takes longer is killed.
    func end(within seconds: Double = 30) -> FakeTool.Ending {
        let ended = FakeTool.wait(seconds) { !isRunning }
        let time = ContinuousClock.now - began
        if !ended { kill() }
        process.waitUntilExit()
        let code = process.terminationReason == .exit ? process.terminationStatus : 1000 + process.terminationStatus
        return FakeTool.Ending(
            code: ended ? code : nil, out: out, error: error,
            seconds: Double(time.components.seconds) + Double(time.components.attoseconds) / 1e18)
    }
}

/// A store folder; its RAM cache in /dev/shm goes with it.
final class FakeStore {
    let path: String
    private let folder: FakeFolder?

    init() throws {
        let folder = try FakeFolder()
        self.folder = folder
        path = folder["store"]
    }

    init(at path: String) {
        folder = nil
        self.path = path
    }

    deinit { forgetRam() }

    /// Removes what the store keeps in /dev/shm. Must be called while store.info is there.
    func forgetRam() {
        guard let info = try? String(contentsOfFile: "\(path)/store.info", encoding: .utf8),
            let line = info.split(separator: "\n").first(where: { $0.hasPrefix("id: ") })
        else { return }
        let base = "/dev/shm/colo-blk-\(geteuid())"
        let prefix = line.dropFirst(4).prefix(8)
        for name in (try? FileManager.default.contentsOfDirectory(atPath: base)) ?? [] where name.hasPrefix(prefix) {
            try? FileManager.default.removeItem(atPath: "\(base)/\(name)")
        }
    }
}

/// `colo-blk serve` on a unix socket.
final class FakeServe {
    let store: FakeStore
    let socket: String
    let process: FakeProcess
    private let folder: FakeFolder

    init(store: FakeStore? = nil, _ more: [String] = []) throws {
        let store = try store ?? FakeStore()
        self.store = store
        folder = try FakeFolder()
        socket = folder["link.sock"]
        process = try FakeProcess(["serve", "--store", store.path, "--listen", "unix:\(socket)"] + more)
        guard process.says("listening", within: 20) else { throw FakeFailure("serve did not start: \(process.error)") }
    }

    deinit { process.kill() }

    var address: String { "unix:\(socket)" }

    /// `status --json` of one guest, or nil when the verb was refused.
    func status(_ guest: String) throws -> [String: Any]? {
        let ending = try FakeTool.run(["status", guest, "--store", store.path, "--json"])
        guard ending.code == 0 else { return nil }
        let json = try JSONSerialization.jsonObject(with: Data(ending.out.utf8))
        return (json as? [[String: Any]])?.first
    }

    /// The daemon is alive and answers.
    func expectAlive(_ location: SourceLocation = #_sourceLocation) throws {
        #expect(process.isRunning, "serve ended: \(process.error.suffix(2000))", sourceLocation: location)
        let ending = try FakeTool.run(["status", "--store", store.path, "--json"])
        #expect(ending.code == 0, "\(ending)", sourceLocation: location)
    }
}

/// A refusal: this exit code, one sentence, and these words in it.
func expectRefusal(
    _ ending: FakeTool.Ending, code: Int32 = 1, _ words: String..., location: SourceLocation = #_sourceLocation
) {
    #expect(ending.code == code, "\(ending)", sourceLocation: location)
    #expect(ending.sentences.count == 1, "\(ending)", sourceLocation: location)
    for word in words {
        let said = ending.sentences.contains { $0.localizedCaseInsensitiveContains(word) }
        #expect(said, "'\(word)' is not said: \(ending.sentences)", sourceLocation: location)
    }
}
