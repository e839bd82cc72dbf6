import Foundation
import Glibc

/// A running test guest: one that the launcher started, or one that a failover started.
final class Guest {
    enum Workload: String, CaseIterable { case idle, mem, disk, all }

    struct Options {
        var shape = "i440fx"
        var workload = Workload.idle
        var hasDisk = true
        /// More words for the kernel command line.
        var append = ""
        /// KiB of RAM; the launcher's own when nil.
        var memoryKiB: Int?
        /// More arguments for QEMU.
        var arguments: [String] = []
        /// Where its cards are plugged in; nil for none.
        var network: Network?
        /// With a network: the time between two datagrams.
        var datagramMilliseconds = 5
    }

    let pid: pid_t
    let qmpPath: String
    let serial: SerialLog
    /// How many disks write records.
    let writingDisks: Int
    /// A second monitor, for looking at the guest while the first one is in use.
    let watchPath: String
    let qemuLog: String
    private let process: ChildProcess?
    private var cachedWatch: Monitor?

    private init(
        pid: pid_t, qmpPath: String, watchPath: String, serial: SerialLog, qemuLog: String, writingDisks: Int,
        process: ChildProcess?
    ) {
        self.pid = pid
        self.qmpPath = qmpPath
        self.watchPath = watchPath
        self.serial = serial
        self.qemuLog = qemuLog
        self.writingDisks = writingDisks
        self.process = process
    }

    /// Starts a guest with Images/launch in a directory of its own.
    static func launch(_ options: Options, directory: String) throws -> Guest {
        var arguments = ["--dir", directory, "--shape", options.shape, "--mode", options.workload.rawValue]
        if !options.hasDisk {
            arguments.append("--no-disk")
        } else if options.shape == "i440fx" {
            let disk = directory + "/disk0.raw"
            try FileManager.default.createDirectory(atPath: directory, withIntermediateDirectories: true)
            guard FileManager.default.createFile(atPath: disk, contents: nil), truncate(disk, 64 << 20) == 0 else {
                throw TestFailure("\(disk) cannot be made: \(describe(errno: errno))")
            }
            arguments += ["--disk", disk]
        }
        if let memory = options.memoryKiB { arguments += ["--mem-kib", "\(memory)"] }
        let words = options.network?.kernelWords(datagramMilliseconds: options.datagramMilliseconds)
        let append = [options.append, words ?? ""].filter { !$0.isEmpty }.joined(separator: " ")
        if !append.isEmpty { arguments += ["--append", append] }
        let watch = directory + "/watch.sock"
        arguments += ["--", "-qmp", "unix:\(watch),server=on,wait=off"] + options.arguments
        arguments += options.network?.qemuArguments ?? []
        let command = (options.network?.prefix ?? []) + [Settings.launcher] + arguments
        let process = try ChildProcess(
            "guest", command[0], Array(command.dropFirst()), output: directory + ".launch.log")
        let writes = options.hasDisk && (options.workload == .disk || options.workload == .all)
        return Guest(
            pid: process.pid, qmpPath: directory + "/qmp.sock", watchPath: watch,
            serial: SerialLog(path: directory + "/serial.log"),
            qemuLog: directory + "/qemu.log",
            writingDisks: writes ? (options.shape == "q35" ? 2 : 1) : 0, process: process)
    }

    /// The guest that a failover of `original` reported. Its second monitor must have been asked for.
    static func restored(_ report: JSON, watchPath: String, original: Guest) throws -> Guest {
        guard let pid = report["pid"].int, let qmp = report["qmpSocket"].string else {
            throw TestFailure("the failover reports no process: \(report)")
        }
        let words = report["arguments"].array.compactMap(\.string).flatMap { word in
            word.split { $0 == "," || $0 == "=" || $0 == ":" }.map(String.init)
        }
        guard let serial = words.first(where: { $0.hasSuffix("/serial0.log") }) else {
            throw TestFailure("the failover's command has no serial0.log: \(report)")
        }
        return Guest(
            pid: pid_t(pid), qmpPath: qmp, watchPath: watchPath, serial: SerialLog(path: serial),
            qemuLog: URL(fileURLWithPath: serial).deletingLastPathComponent().path + "/guest.log",
            writingDisks: original.writingDisks, process: nil)
    }

    /// Waits until every self-check has passed at least once.
    func waitUntilBusy(within seconds: Double = 90) throws {
        try waitUntil("the guest boots and its checks pass", within: seconds, seen: { self.serial.summary }) {
            guard isAlive else { throw TestFailure("QEMU ended: \(tail(of: qemuLog))") }
            serial.read()
            if !serial.faults.isEmpty { throw TestFailure("the guest reports \(serial.faults)") }
            return (serial.lastTick?.number ?? 0) >= 5 && serial.ramLines >= 1 && serial.diskLines.count == writingDisks
        }
    }

    var isAlive: Bool { process?.isRunning ?? ProcessTable.isAlive(pid) }

    /// The second monitor, opened at the first use.
    func watch() throws -> Monitor {
        if let cachedWatch { return cachedWatch }
        let monitor = try Monitor(path: watchPath)
        cachedWatch = monitor
        return monitor
    }

    func forgetWatch() { cachedWatch = nil }

    /// kill -9 of QEMU, by its process id, if that is still the QEMU with this monitor.
    func kill() throws {
        cachedWatch = nil
        if let process {
            try process.kill()
        } else if ProcessTable.arguments(of: pid).contains(where: { $0.contains(qmpPath) }) {
            _ = Glibc.kill(pid, SIGKILL)
            try waitUntil("QEMU \(pid) is gone", within: 10, every: 2) { !ProcessTable.isAlive(pid) }
        }
    }

    // MARK: State

    /// Running, and neither copied nor in COLO.
    func runsUnprotected() throws -> Bool {
        let monitor = try watch()
        guard try monitor.execute("query-status")["running"].bool == true else { return false }
        let migration = try monitor.execute("query-migrate")["status"].string ?? "none"
        return !["setup", "active", "device", "colo", "cancelling", "pre-switchover"].contains(migration)
    }

    /// The guest makes progress: ticks, RAM rounds and, where it writes, records; nothing is wrong.
    func checkAlive(within seconds: Double = 20) throws {
        serial.read()
        let tick = serial.lastTick?.number ?? 0
        let rounds = serial.ramLines
        let records = serial.diskLines
        try waitUntil("the guest makes progress after tick \(tick)", within: seconds, seen: { self.serial.summary }) {
            serial.read()
            if !serial.faults.isEmpty { throw TestFailure("the guest reports \(serial.faults)") }
            return (serial.lastTick?.number ?? 0) >= tick + 5 && serial.ramLines > rounds
                && serial.diskLines.allSatisfy { $0.value > records[$0.key] ?? 0 }
        }
    }
}
