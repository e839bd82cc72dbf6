import Foundation
import Glibc
import Testing

/// All guest tests, one after the other: they share the machine with what protects the guests.
@Suite(.serialized, .enabled(if: Settings.binary != nil, "COLO_BLK_BIN names no colo-blk to test"))
enum RealGuests {}

/// One test's directory and everything that it starts; ends it all, whatever happens.
final class Scene {
    let name: String
    /// Short, since sockets live in it.
    let directory: String
    var random: SplitMix64
    /// Unlike any other test's, in this run and in others at the same time.
    private let suffix: String
    private var guests: [Guest] = []
    private var secondaries: [Secondary] = []
    private var attachments: [AttachProcess] = []
    private var names: Set<String> = []
    private var networks: [Network] = []
    private var notes: [String] = []

    private init(_ name: String) throws {
        self.name = name
        var template = Array("/tmp/cbXXXXXX".utf8CString)
        guard mkdtemp(&template) != nil else { throw TestFailure("mkdtemp: \(describe(errno: errno))") }
        directory = String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
        suffix = String(directory.suffix(6)).lowercased()
        random = SplitMix64(seed: name.utf8.reduce(Settings.seed) { $0 &* 31 &+ UInt64($1) })
    }

    /// Runs a test in a scene of its own. What it throws is reported with the last words of every process.
    static func run(_ name: String, _ body: (Scene) throws -> Void) throws {
        let scene = try Scene(name)
        scene.say("seed \(Settings.seed)")
        do {
            try body(scene)
            scene.close(failed: false)
        } catch {
            let report = scene.lastWords
            scene.close(failed: true)
            throw TestFailure("\(error)\nseed \(Settings.seed) (COLO_BLK_SEED)\n\(report)")
        }
    }

    /// Prints at once, so that a run that hangs shows where.
    func say(_ words: String) {
        notes.append(words)
        let line = "[\(name)] \(words)\n"
        _ = line.withCString { write(1, $0, strlen($0)) }
    }

    // MARK: Actors

    /// A guest's name in a store, unlike those of other tests: their caches share a directory in shared memory.
    func guestName(_ name: String) -> String {
        let unique = "\(name)-\(suffix)"
        names.insert(unique)
        return unique
    }

    func launch(_ options: Guest.Options) throws -> Guest {
        let guest = try Guest.launch(options, directory: "\(directory)/g\(guests.count)")
        guests.append(guest)
        return guest
    }

    /// A network of the test's own; gone at its end.
    func network(cards: Int = 1) throws -> Network {
        let network = try Network(name: "cb\(suffix)\(networks.count)", cards: cards, directory: directory)
        networks.append(network)
        return network
    }

    func secondary(qemu: String? = nil, network: Network? = nil) throws -> Secondary {
        let secondary = Secondary(
            directory: directory, name: "s\(secondaries.count)", qemu: qemu, network: network)
        secondaries.append(secondary)
        return secondary
    }

    func startedSecondary(qemu: String? = nil, network: Network? = nil) throws -> Secondary {
        let secondary = try secondary(qemu: qemu, network: network)
        try secondary.start()
        return secondary
    }

    func attach(
        _ guest: Guest, to target: AttachProcess.Target, name: String, options: [String] = []
    ) throws -> AttachProcess {
        let attachment = try AttachProcess(
            guest, to: target, name: name, options: options, logPath: "\(directory)/attach\(attachments.count).log")
        attachments.append(attachment)
        return attachment
    }

    func attach(
        _ guest: Guest, to secondary: Secondary, name: String, options: [String] = []
    ) throws -> AttachProcess {
        try attach(guest, to: .secondary(secondary.address), name: name, options: options)
    }

    /// Starts the guest from its last commit; the returned guest ends with the scene.
    func failover(_ secondary: Secondary, _ name: String, of original: Guest, options: [String] = []) throws -> (
        Guest, JSON
    ) {
        let watch = "\(directory)/watch\(guests.count).sock"
        let report = try secondary.failover(name, options, watchPath: watch)
        let guest = try Guest.restored(report, watchPath: watch, original: original)
        guests.append(guest)
        return (guest, report)
    }

    /// A QEMU that can itself be protected: under TCG that needs the launcher's preloaded library.
    func protectableQemu() throws -> String {
        let path = directory + "/qemu"
        if FileManager.default.fileExists(atPath: path) { return path }
        let probe = try ChildProcess(
            "launch --print", Settings.launcher, ["--dir", directory + "/probe", "--no-disk", "--print"],
            output: directory + "/probe.out", error: directory + "/probe.err")
        let code = try probe.waitForExit(within: 120)
        guard code == 0 else { throw TestFailure("Images/launch --print exits with \(code): \(probe.errorText)") }
        let preload =
            probe.outputText.split(separator: " ").first { $0.hasPrefix("LD_PRELOAD=") }.map { "\($0) " } ?? ""
        let script = "#!/bin/sh\n\(preload)exec \(Settings.qemu) \"$@\"\n"
        try script.write(toFile: path, atomically: true, encoding: .utf8)
        chmod(path, 0o755)
        return path
    }

    /// A time between two, from the seed.
    func randomMilliseconds(_ range: ClosedRange<Int>) -> Int { Int.random(in: range, using: &random) }

    // MARK: Shared memory

    private static let memory = "/dev/shm/colo-blk-\(geteuid())"

    /// The folder in shared memory where a secondary keeps a guest's RAM.
    func memoryFolder(of name: String) throws -> String {
        let entries = try FileManager.default.contentsOfDirectory(atPath: Self.memory)
        guard let entry = entries.first(where: { $0.hasSuffix("-" + name) }) else {
            throw TestFailure("nothing of \(name) in \(Self.memory): \(entries)")
        }
        return "\(Self.memory)/\(entry)"
    }

    /// What a reboot of the secondary's machine does.
    func loseMemory(of name: String) throws {
        try FileManager.default.removeItem(atPath: memoryFolder(of: name))
    }

    // MARK: The end

    private var lastWords: String {
        var parts = notes.suffix(10).map { "note: \($0)" }
        for attachment in attachments.suffix(2) {
            parts.append("--- \(attachment.guardian.outputPath)\n\(tail(of: attachment.guardian.outputPath))")
        }
        for secondary in secondaries { parts.append("--- \(secondary.logPath)\n\(tail(of: secondary.logPath))") }
        for guest in guests.suffix(2) {
            parts.append("--- \(guest.serial.path)\n\(tail(of: guest.serial.path, bytes: 600))")
            parts.append("--- \(guest.qemuLog)\n\(tail(of: guest.qemuLog, bytes: 1000))")
        }
        return parts.joined(separator: "\n")
    }

    private func close(failed: Bool) {
        for attachment in attachments where attachment.guardian.isRunning {
            attachment.guardian.signal(SIGTERM)
            if (try? attachment.guardian.waitForExit(within: 5)) == nil { try? attachment.guardian.kill() }
        }
        for guest in guests { try? guest.kill() }
        for secondary in secondaries { try? secondary.kill() }
        for network in networks { network.remove() }
        if failed, Settings.keepsDirectories { return }
        for name in names { try? loseMemory(of: name) }
        try? FileManager.default.removeItem(atPath: directory)
    }
}
