import Foundation
import Glibc
import TestSupport
import Testing

/// `colo-blk disk serve` as a process, and its verbs.
final class DiskServer {
    static let name = "disk"

    let folder: Folder
    let store: String
    let socket: String
    private let log: String
    private let options: [String]
    private var process: Process?

    /// - Parameter options: `--size` for a new disk, and others.
    init(_ folder: Folder, prefix: String = "", _ options: [String]) throws {
        self.folder = folder
        self.options = options
        store = folder["\(prefix)store"]
        socket = folder["\(prefix)nbd.sock"]
        log = folder["\(prefix)serve.log"]
        try start()
    }

    deinit { process.map { _ = Glibc.kill($0.processIdentifier, SIGKILL) } }

    var disk: String { "\(store)/\(Self.name)" }
    var uri: String { "nbd+unix:///\(Self.name)?socket=\(socket)" }
    /// What it logged.
    var logText: String { (try? String(contentsOfFile: log, encoding: .utf8)) ?? "" }

    // MARK: The process

    /// Starts to serve and waits until it listens.
    func start() throws {
        let binary = try #require(Tools.binary)
        let before = listeningLines
        if !FileManager.default.fileExists(atPath: log) {
            _ = FileManager.default.createFile(atPath: log, contents: nil)
        }
        let output = try #require(FileHandle(forWritingAtPath: log))
        try output.seekToEnd()
        let started = Process()
        started.executableURL = URL(filePath: binary)
        let place = options.contains("--listen") ? [] : ["--socket", socket]
        started.arguments = ["disk", "serve", disk] + options + place
        started.standardInput = FileHandle.nullDevice
        started.standardOutput = output
        started.standardError = output
        try Program.start(started)
        try output.close()
        process = started
        let deadline = Date(timeIntervalSinceNow: 30)
        while listeningLines == before {
            guard started.isRunning else { throw InteropFailure("disk serve ended: \(logText.suffix(2000))") }
            guard Date() < deadline else { throw InteropFailure("disk serve does not listen: \(logText.suffix(2000))") }
            usleep(5000)
        }
    }

    private var listeningLines: Int { logText.components(separatedBy: "listening").count - 1 }

    /// What stands behind `uri=` in the last line that tells of a listening server.
    var loggedURI: String? {
        logText.components(separatedBy: "uri=").last?.split(whereSeparator: \.isWhitespace).first.map(String.init)
    }

    func kill() {
        guard let process else { return }
        _ = Glibc.kill(process.processIdentifier, SIGKILL)
        process.waitUntilExit()
        self.process = nil
    }

    /// Ends the server in order.
    func stop() throws {
        guard let process else { return }
        process.terminate()
        process.waitUntilExit()
        self.process = nil
        guard process.terminationReason == .exit, process.terminationStatus == 0 else {
            throw InteropFailure("disk serve ended with \(process.terminationStatus): \(logText.suffix(2000))")
        }
    }

    // MARK: Verbs

    @discardableResult
    func verb(_ name: String) throws -> [String: Any] {
        try json(tool(try #require(Tools.binary), "disk", name, disk, "--json"))
    }

    @discardableResult
    func checkpoint() throws -> Int { try #require(verb("checkpoint")["epoch"] as? Int) }

    func rollBack() throws { try verb("rollback") }

    // MARK: Files

    var diskFolder: String { "\(disk)/disks/disk0" }
    var secondary: String { "\(diskFolder)/secondary.raw" }

    /// Hidden disks, oldest first: the first one's chain shows the last checkpoint.
    func hiddenDisks() throws -> [String] {
        try FileManager.default.contentsOfDirectory(atPath: diskFolder)
            .filter { $0.hasPrefix("hidden-") && $0.hasSuffix(".qcow2") }
            .sorted { $0.count == $1.count ? $0 < $1 : $0.count < $1.count }
            .map { "\(diskFolder)/\($0)" }
    }

    /// What must hold of a stopped server's files, whatever came before: every hidden disk is a clean qcow2. A crash may
    /// leave clusters that are counted and not used, 3 in qemu-img's words.
    func checkFiles(afterCrash: Bool = false) throws {
        for hidden in try hiddenDisks() {
            let outcome = try Program.run("qemu-img", ["check", "-f", "qcow2", hidden])
            let isSound = outcome.succeeded || afterCrash && outcome.status == 3
            #expect(isSound, "qemu-img check: \(outcome.output.suffix(500)) \(outcome.errors.suffix(500))")
        }
    }

    /// The server is stopped: the files show the checkpoint to QEMU. It is started: clients see the same.
    func expectCheckpoint(_ file: String, afterCrash: Bool = false) throws {
        try checkFiles(afterCrash: afterCrash)
        if let top = try hiddenDisks().first {
            #expect(
                try sameContents(top, file, formats: ("qcow2", "raw")),
                "the chain of hidden disks is not the checkpoint")
        } else {
            #expect(try sameContents(secondary, file), "the secondary disk is not the checkpoint")
        }
        try start()
        #expect(try sameContents(uri, file), "the export after the restart is not the checkpoint")
    }

    /// What the export holds now, in a file.
    func copy(_ name: String) throws -> String {
        try tool("qemu-img", "convert", "-f", "raw", "-O", "raw", uri, folder[name])
        return folder[name]
    }
}

/// A server of a new disk for one test. In the end it must stop in order and leave clean files.
func withServer(_ options: String..., body: (DiskServer) throws -> Void) throws {
    let server = try DiskServer(Folder(), options)
    try body(server)
    try server.stop()
    try server.checkFiles()
}
