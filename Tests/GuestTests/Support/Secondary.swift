import Foundation
import Glibc

/// The verbs of colo-blk that end by themselves.
struct Verbs {
    struct Result {
        let code: Int32
        let output: String
        let error: String
    }

    let directory: String

    /// Runs a verb to its end.
    func run(_ arguments: [String], within seconds: Double = 60) throws -> Result {
        guard let binary = Settings.binary else { throw TestFailure("COLO_BLK_BIN is not set") }
        let base = "\(directory)/verb-\(UInt32.random(in: 0...UInt32.max))"
        defer {
            unlink(base + ".out")
            unlink(base + ".err")
        }
        let name = "colo-blk \(arguments.prefix(2).joined(separator: " "))"
        let process = try ChildProcess(name, binary, arguments, output: base + ".out", error: base + ".err")
        do {
            let code = try process.waitForExit(within: seconds)
            return Result(code: code, output: process.outputText, error: process.errorText)
        } catch {
            try process.kill()
            throw TestFailure("\(error); it said: \(process.outputText) \(process.errorText)")
        }
    }

    /// Runs a verb that must succeed, and parses what it prints.
    func json(_ arguments: [String], within seconds: Double = 60) throws -> JSON {
        let result = try run(arguments, within: seconds)
        guard result.code == 0 else {
            throw TestFailure("colo-blk \(arguments.joined(separator: " ")) exits with \(result.code): \(result.error)")
        }
        return try JSON(parsing: result.output)
    }
}

/// A store, and the daemon that serves it when it is started.
final class Secondary {
    let store: String
    /// What `attach --to` takes.
    let address: String
    let logPath: String
    private let verbs: Verbs
    private let arguments: [String]
    /// More words for `serve`, from its next start on.
    var options: [String] = []
    /// Words before the daemon's own command.
    private let prefix: [String]
    private(set) var daemon: ChildProcess?

    /// - Parameters:
    ///   - qemu: the program for guests that are started here; the primary's own when nil.
    ///   - network: where the cards of guests that are started here are plugged in.
    init(directory: String, name: String, qemu: String?, network: Network? = nil) {
        prefix = network?.prefix ?? []
        store = "\(directory)/\(name)"
        address = "unix:\(directory)/\(name).link"
        logPath = "\(directory)/\(name).log"
        verbs = Verbs(directory: directory)
        var arguments = ["serve", "--store", store, "--listen", address, "--log-level", "debug"]
        if let qemu { arguments += ["--qemu", qemu] }
        self.arguments = arguments
    }

    /// Starts the daemon and waits until it listens.
    func start() throws {
        guard let binary = Settings.binary else { throw TestFailure("COLO_BLK_BIN is not set") }
        let before = listeningLines
        let command = prefix + [binary] + arguments + options
        let process = try ChildProcess("serve", command[0], Array(command.dropFirst()), output: logPath)
        daemon = process
        try waitUntil("the secondary listens", within: 30, seen: { tail(of: self.logPath) }) {
            guard process.isRunning else { throw TestFailure("serve ended: \(tail(of: logPath))") }
            return listeningLines > before
        }
    }

    private var listeningLines: Int {
        let text = (try? String(contentsOfFile: logPath, encoding: .utf8)) ?? ""
        return text.components(separatedBy: "listening").count - 1
    }

    /// Ends the daemon in order.
    func stop() throws {
        guard let daemon else { return }
        daemon.signal(SIGTERM)
        let code = try daemon.waitForExit(within: 20)
        self.daemon = nil
        guard code == 0 else { throw TestFailure("serve exits with \(code) after SIGTERM: \(tail(of: logPath))") }
    }

    func kill() throws {
        try daemon?.kill()
        daemon = nil
    }

    var log: String { (try? String(contentsOfFile: logPath, encoding: .utf8)) ?? "" }

    // MARK: Verbs

    func status(_ guest: String) throws -> JSON {
        try verbs.json(["status", guest, "--store", store, "--json"])[0]
    }

    func committedEpoch(_ guest: String) throws -> Int { try status(guest)["committedEpoch"].int ?? -1 }

    /// Starts the guest from the last commit; reports what was done.
    func failover(_ guest: String, _ options: [String] = [], watchPath: String) throws -> JSON {
        try verbs.json(
            ["failover", guest, "--store", store, "--json"] + options
                + ["--", "-qmp", "unix:\(watchPath),server=on,wait=off"])
    }

    func run(_ verb: String, _ guest: String, _ options: [String] = []) throws -> Verbs.Result {
        try verbs.run([verb, guest, "--store", store] + options)
    }

    /// `colo-blk ram VERB GUEST`.
    func ram(_ verb: String, _ guest: String, _ options: [String] = []) throws -> Verbs.Result {
        try verbs.run(["ram", verb, guest, "--store", store] + options, within: 300)
    }

    /// A verb that needs no store.
    func verb(_ arguments: [String]) throws -> Verbs.Result { try verbs.run(arguments) }

    func verify(_ guest: String, _ options: [String] = []) throws -> Verbs.Result {
        try verbs.run(["verify", guest, "--store", store] + options, within: 300)
    }

    func remove(_ guest: String) throws {
        let result = try run("remove", guest)
        guard result.code == 0 else { throw TestFailure("remove \(guest) exits with \(result.code): \(result.error)") }
    }

    /// Waits until some more checkpoints are committed. Returns the last one's epoch.
    @discardableResult
    func waitForCheckpoints(_ count: Int, of guest: String, within seconds: Double = 60) throws -> Int {
        let first = try committedEpoch(guest)
        var last = first
        try waitUntil(
            "\(count) checkpoints after epoch \(first)", within: seconds, every: 100, seen: { "epoch \(last)" }
        ) {
            last = try committedEpoch(guest)
            return last >= first + count
        }
        return last
    }

    /// Waits for the proof that the guest can be started.
    func waitForProof(_ guest: String, within seconds: Double = 40) throws {
        var proof = JSON(nil)
        try waitUntil("the failover of \(guest) is proven", within: seconds, every: 200, seen: { "\(proof)" }) {
            proof = try status(guest)["proof"]
            if proof["verdict"].string == "failed" { throw TestFailure("the guest cannot be started: \(proof)") }
            return proof["verdict"].string == "proven"
        }
    }
}
