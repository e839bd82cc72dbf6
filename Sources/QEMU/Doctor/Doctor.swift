/// The rules, one method per subject. docs/doctor.md explains each code.
struct Doctor {
    let answers: GuestAnswers
    let overrides: DoctorReport.Overrides
    var findings: [Finding] = []

    init(answers: GuestAnswers, overrides: DoctorReport.Overrides) {
        self.answers = answers
        self.overrides = overrides
    }

    private mutating func add(
        _ severity: Finding.Severity, _ code: String, _ text: String, _ remedy: String? = nil
    ) {
        findings.append(Finding(severity, code, text, remedy: remedy))
    }

    // MARK: Monitor and state

    mutating func examineMonitor(outOfBand: Bool) {
        if outOfBand {
            add(.ok, "out-of-band", "the monitor executes commands out of band")
        } else {
            add(
                .warning, "out-of-band",
                "the monitor does not offer out-of-band commands: a hanging disk connection cannot be cut from outside",
                "use a monitor on a unix socket of QEMU 2.12 or newer, not one with mux=on")
        }
    }

    mutating func examineState() {
        let status = answers["query-status"]
        if status?["running"]?.boolValue == true {
            add(.ok, "running", "the guest runs")
        } else {
            add(
                .blocker, "running", "the guest is \(status?["status"]?.stringValue ?? "in an unknown state")",
                "continue it first; an attach would start it")
        }
        let migration = answers["query-migrate"]?["status"]?.stringValue ?? "none"
        if !["none", "completed", "failed", "cancelled", "colo"].contains(migration) {
            add(
                .blocker, "migration-running", "a migration is in progress (\(migration))",
                "wait for its end or cancel it")
        }
        for reason in answers["query-migrate"]?["blocked-reasons"]?.arrayValue ?? [] {
            add(
                .blocker, "migration-blocked", "QEMU cannot migrate this guest: \(reason.stringValue ?? "?")",
                "remove the device or the feature that it names")
        }
        let offered = answers.list("query-migrate-capabilities").contains { $0["capability"] == "x-colo" }
        if offered {
            add(.ok, "x-colo", "QEMU offers x-colo")
        } else {
            add(
                .blocker, "x-colo", "this QEMU was built without COLO (--disable-replication)",
                "run the guest with a QEMU that has it, such as Debian's or upstream's default build")
        }
    }

    // MARK: Version and accelerator

    mutating func examineVersion() {
        guard let version = answers.version else {
            add(.blocker, "version", "QEMU does not say its version")
            return
        }
        let broken = version >= QEMUVersion(10, 0, 0) && version < QEMUVersion(10, 0, 13)
        if broken || (version.major == 10 && version.minor == 1) {
            add(
                .warning, "colo-entry",
                "QEMU 10.0 and 10.1 cannot enter COLO unless they have the fix (10.0.13 as in Debian 13 has it); "
                    + "this is \(version)",
                "update QEMU; an attach notices the failure by itself and leaves the guest running")
        } else if version < QEMUVersion(7, 0, 0) {
            add(.warning, "version", "QEMU \(version) was never tested with colo-blk", "update QEMU to 7.2 or newer")
        } else {
            add(.ok, "version", "QEMU \(version)")
        }
    }

    mutating func examineAccelerator() {
        if answers.usesKVM == true {
            add(.ok, "accelerator", "the guest runs under KVM")
            return
        }
        add(
            .warning, "tcg-deadlock",
            "the guest runs under TCG: QEMU itself may dead-lock after a few checkpoints, monitor included",
            "use KVM; under TCG only guests that one can afford to lose should be protected")
        let memory = answers["query-memory-size-summary"]?["base-memory"]?.uintValue
        let isOld = answers.version.map { $0 < QEMUVersion(9, 0, 0) } ?? true
        guard isOld, memory.map({ $0 % (256 << 10) == 0 }) ?? true else {
            add(.ok, "tcg-dirty-loss", "TCG does not lose dirty pages of this guest")
            return
        }
        add(
            overrides.tcgDirtyLoss ? .warning : .blocker, "tcg-dirty-loss",
            "TCG of QEMU before 9.0 loses dirty pages when RAM is a multiple of 256 KiB: "
                + "the replica would silently differ from the guest",
            "use KVM or QEMU 9.0, or a RAM size such as -m 262152K; --force accepts it")
    }

    // MARK: Disks

    mutating func examineDisks() {
        let writable = answers.list("query-block").filter { $0["inserted"]?["ro"]?.boolValue == false }
        if writable.isEmpty {
            add(.note, "no-disks", "the guest has no disk that it may write; only RAM and devices are protected")
        } else {
            add(.ok, "disks", "\(writable.count) writable disk\(writable.count == 1 ? "" : "s")")
        }
        for disk in writable where disk["qdev"] == nil {
            add(
                .note, "disk-without-device",
                "the writable disk \(disk["device"]?.stringValue ?? "?") has no device in the guest; it is replicated")
        }
        for job in answers.list("query-block-jobs") {
            guard let name = job["device"]?.stringValue, !GuestNames.isOurs(name) else { continue }
            add(
                .blocker, "block-job",
                "the block job \(name) (\(job["type"]?.stringValue ?? "?")) is running",
                "wait for its end or cancel it")
        }
        let iothreads = answers.list("query-iothreads").count
        if iothreads > 0 {
            add(.note, "iothreads", "the guest uses \(iothreads) I/O threads, which was not tested with COLO")
        }
    }

    // MARK: Memory and devices

    mutating func examineMemory() {
        let devices = answers.list("query-memory-devices")
        if !devices.isEmpty {
            add(
                .blocker, "memory-device",
                "\(devices.count) memory device\(devices.count == 1 ? "" : "s") "
                    + "(\(devices[0]["type"]?.stringValue ?? "?")) "
                    + "besides the main RAM",
                "give the guest all its memory with -m")
        }
        for device in answers.peripherals where device.hotplugged {
            add(
                .blocker, "hotplugged-device",
                "the device \(device.name) (\(device.type)) was plugged in after the start: "
                    + "a new guest made from the command line would lack it",
                "unplug it, or restart the guest with it on the command line")
        }
        if answers.machineProperties["suppress-vmdesc"]?.boolValue == true {
            add(
                .warning, "suppress-vmdesc",
                "the machine has suppress-vmdesc=on: the end of the device state is found by silence only",
                "start the guest without suppress-vmdesc")
        }
    }

    mutating func examineRemains() {
        var remains = answers.list("query-block-jobs").compactMap { $0["device"]?.stringValue }
        remains += answers.list("query-named-block-nodes").compactMap { $0["node-name"]?.stringValue }
        remains += answers.list("query-chardev").compactMap { $0["label"]?.stringValue }
        let ours = remains.filter(GuestNames.isOurs)
        let inColo = answers["query-migrate"]?["status"] == "colo"
        guard !ours.isEmpty || inColo else { return }
        let names = ours.isEmpty ? "the guest is still in COLO" : ours.joined(separator: ", ")
        add(.note, "remains", "an earlier colo-blk left something behind (\(names)); the attach removes it")
    }

    // MARK: Startability

    mutating func examineStartability(_ arguments: [String]?, problem: String?) {
        guard let arguments, !arguments.isEmpty else {
            add(
                .blocker, "command-line",
                "the guest's command line is not known: \(problem ?? "no process was found")",
                "run as the user that runs the guest, or give the pid of its QEMU")
            return
        }
        let words = QEMUCommandLine(arguments).program
        if !(words.last?.contains("qemu") == true || words.last?.hasSuffix("kvm") == true) {
            add(
                .warning, "not-qemu",
                "the process at the monitor's socket is \(words.last ?? "?"), which does not look like QEMU",
                "give the pid of the guest's QEMU")
        }
        examineUnplugged(arguments)
        examineNetworks(arguments)
        guard let identity = try? GuestIdentity.capture(answers, arguments: arguments) else {
            add(.blocker, "identity", "QEMU does not say enough to describe the guest")
            return
        }
        let disks = identity.disks.map { ($0.id, FailoverCommand.Image(path: "/replica")) }
        let command = FailoverCommand.build(
            identity,
            FailoverCommand.Substitutions(
                disks: Dictionary(disks, uniquingKeysWith: { first, _ in first }), ram: [], runtimeDirectory: "/run",
                qmpSocket: "/run/qmp", mode: .failover))
        // Hot-plugged devices were told above.
        findings += command.findings.filter { $0.code != "hotplugged-device" }
        if !command.hasBlockers, identity.hotplugged.isEmpty {
            add(.ok, "startable", "the command line can be carried over to a new guest")
        }
    }

    /// Devices of the command line that are no longer there: a new guest would have them again.
    private mutating func examineUnplugged(_ arguments: [String]) {
        let present = Set(answers.peripherals.map(\.name))
        guard !present.isEmpty else { return }
        for value in QEMUCommandLine(arguments).values("device") {
            let text = OptionText(value, implied: "driver")
            guard let id = text["id"], !id.isEmpty, !present.contains(id) else { continue }
            add(
                .blocker, "unplugged-device",
                "the device \(id) (\(text["driver"] ?? "?")) of the command line was unplugged: a new guest made from "
                    + "it would have it again",
                "restart the guest without it, or plug it in again and restart the guest")
        }
    }

    /// Whether packets can be held until their checkpoint; in the way only of who asks for it.
    private mutating func examineNetworks(_ arguments: [String]) {
        for argument in arguments {
            let text = OptionText(argument, implied: "type")
            guard text["type"] == "tap" || text["type"] == "bridge" else { continue }
            let isHeld = text["id"].map(overrides.heldNetworks.contains) ?? false
            let severity: Finding.Severity = isHeld ? .blocker : .note
            let name = text["id"].map { "the network '\($0)'" } ?? "a network"
            let isOn = text["vhost"] == "on" || text["vhostforce"] == "on"
            if isOn || text["vhostfd"] != nil || text["vhostfds"] != nil {
                add(
                    severity, "vhost",
                    "\(name) uses the kernel's vhost: its packets pass QEMU by and cannot be held until a checkpoint",
                    "start the guest with vhost=off (libvirt: <driver name='qemu'/>) if output must wait for its "
                        + "checkpoint")
            }
            let queues = text["queues"].flatMap { Int($0) } ?? text["fds"].map { $0.split(separator: ":").count } ?? 1
            if queues > 1 {
                add(
                    severity, "network-queues",
                    "\(name) has \(queues) queues: QEMU filters networks of one queue only, so its packets cannot be "
                        + "held until a checkpoint",
                    "start the guest with queues=1 if output must wait for its checkpoint")
            }
        }
    }
}
