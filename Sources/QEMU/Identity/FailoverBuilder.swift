/// Rewrites a command line, option by option. One value is used for one command.
struct FailoverBuilder {
    let identity: GuestIdentity
    let substitutions: FailoverCommand.Substitutions
    let commandLine: QEMUCommandLine
    let backends: MemoryBackends
    var out: [QEMUCommandLine.Option] = []
    var findings: [Finding] = []

    /// Options that are replaced disks, by their place in the command line.
    var replaced: [Int: FailoverCommand.Image] = [:]
    /// Options of drives whose medium was changed since the start, by their place in the command line.
    var media: [Int: GuestMedium] = [:]
    /// Nodes of `-blockdev` that nobody needs any more.
    var droppedNodes: Set<String> = []
    /// Character devices that only a monitor used.
    var droppedChardevs: Set<String> = []
    private var machine = OptionText()
    private var serials = 0
    private var parallels = 0

    init(_ identity: GuestIdentity, _ substitutions: FailoverCommand.Substitutions) {
        self.identity = identity
        self.substitutions = substitutions
        commandLine = QEMUCommandLine(identity.arguments)
        backends = MemoryBackends(identity)
    }

    var isProof: Bool { substitutions.mode == .proof }

    func has(_ name: String) -> Bool { commandLine.options.contains { $0.name == name } }

    mutating func note(_ severity: Finding.Severity, _ code: String, _ text: String, _ remedy: String? = nil) {
        let finding = Finding(severity, code, text, remedy: remedy)
        if !findings.contains(finding) { findings.append(finding) }
    }

    mutating func keep(_ name: String, _ value: String? = nil) {
        out.append(QEMUCommandLine.Option(name, value))
    }

    mutating func build() {
        findHotplugged()
        placeDisks()
        placeMedia()
        findDroppedChardevs()
        for (index, option) in commandLine.options.enumerated() { rewrite(option, at: index) }
        addMachine()
        addMemory()
        addConsole()
    }

    private mutating func findHotplugged() {
        for device in identity.hotplugged {
            note(
                .blocker, "hotplugged-device", "the device \(device) was plugged in after the start",
                "name it in the failover's extra arguments with the same bus and address, or restart the guest with it")
        }
    }

    // MARK: One option

    private mutating func rewrite(_ option: QEMUCommandLine.Option, at index: Int) {
        let value = option.value ?? ""
        switch option.name {
        case "daemonize", "pidfile", "S", "incoming", "loadvm", "qmp", "qmp-pretty", "mon", "monitor", "gdb", "s",
            "D", "d", "preconfig", "qtest", "qtest-log", "enable-sync-profile":
            break
        case "mem-path":
            // A file of the primary's must not be opened again; its pages are mapped, or travel in the stream.
            break
        case "mem-prealloc":
            if substitutions.ram.isEmpty { keep(option.name, option.value) }
        case "machine", "M": merge(machine: value)
        case "m": rewriteMemorySize(value)
        case "object": rewrite(object: value)
        case "blockdev": rewrite(blockdev: value, at: index)
        case "drive": rewrite(drive: value, at: index)
        case let name where DiskOptions.shortForms[name] != nil: rewrite(short: option, at: index)
        case "chardev": rewrite(chardev: value)
        case "serial":
            keep("serial", line(value, "serial\(serials)"))
            serials += 1
        case "parallel":
            keep("parallel", line(value, "parallel\(parallels)"))
            parallels += 1
        case "debugcon": keep("debugcon", line(value, "debugcon"))
        case "netdev": rewrite(network: option.name, value)
        case "nic", "net": rewrite(network: option.name, value)
        case "display", "vnc", "spice", "sdl", "curses", "full-screen", "gtk":
            if !isProof { keepDisplay(option) }
        case "device": rewrite(device: value)
        case "kernel", "initrd", "dtb", "L": keep(option.name, absolute(value))
        case "bios": keep("bios", value.contains("/") ? absolute(value) : value)
        default: rewriteRest(option)
        }
    }

    private mutating func keepDisplay(_ option: QEMUCommandLine.Option) {
        // A text console on somebody's terminal does not move to another host.
        if option.name == "curses" || option.value?.hasPrefix("curses") == true {
            keep("display", "none")
        } else {
            keep(option.name, option.value)
        }
    }

    private mutating func rewriteRest(_ option: QEMUCommandLine.Option) {
        let value = option.value ?? ""
        switch option.name {
        case "snapshot":
            note(
                .blocker, "snapshot-mode", "-snapshot: the guest's writes go to temporary files of the primary",
                "start the guest without -snapshot")
        case "readconfig":
            note(
                .blocker, "readconfig", "-readconfig \(value): options in a file cannot be rewritten",
                "start the guest with these options on its command line")
            keep(option.name, absolute(value))
        case "add-fd":
            note(
                .blocker, "inherited-descriptor", "-add-fd \(value): a descriptor of another process",
                "override the options that use it in the failover's extra arguments")
        case "fsdev", "virtfs", "virtfs_synth":
            note(
                .blocker, "shared-directory", "-\(option.name) \(value): a directory of the primary's host is shared",
                "remove the shared directory from the guest")
            keep(option.name, option.value)
        case "tpmdev":
            if OptionText(value, implied: "type")["type"] == "emulator" {
                note(
                    .blocker, "tpm-emulator", "-tpmdev \(value): the state of the TPM emulator is outside QEMU",
                    "remove the TPM from the guest")
            }
            keep(option.name, option.value)
        case "nodefaults", "enable-kvm", "nographic": keep(option.name)
        default: keep(option.name, option.value)
        }
    }

    private mutating func rewrite(device value: String) {
        keep("device", value)
        let text = OptionText(value, implied: "driver")
        let driver = text["driver"] ?? ""
        if driver.hasPrefix("vfio-") {
            note(
                .blocker, "host-device", "-device \(driver): a device of the primary's host",
                "remove the device from the guest; its state cannot be replicated")
        } else if driver.hasPrefix("vhost-user-") || driver.hasPrefix("vhost-scsi") || driver == "vhost-vsock-pci" {
            note(
                .blocker, "vhost-device", "-device \(driver): part of its state is in another process or the kernel",
                "use the device without vhost")
        } else if driver == "usb-host" || driver.hasPrefix("ivshmem") {
            note(
                .warning, "host-device", "-device \(driver): depends on the primary's host",
                "make sure that the same is there where the guest shall start")
        }
    }

    /// A path as seen from the primary's working directory; protocols and absolute paths stay.
    func absolute(_ path: String) -> String {
        guard !path.isEmpty, !path.hasPrefix("/"), let base = identity.workingDirectory else { return path }
        if let colon = path.firstIndex(of: ":"), !path[..<colon].contains("/") { return path }
        return base.hasSuffix("/") ? base + path : base + "/" + path
    }

    // MARK: Machine and memory

    private mutating func merge(machine value: String) {
        for item in OptionText(value, implied: "type").items { machine[item.key] = item.value ?? "on" }
    }

    private mutating func addMachine() {
        machine["type"] = nil
        machine.items.insert(OptionText.Item(key: "type", value: identity.machine), at: 0)
        for block in substitutions.ram {
            if case .defaultRAM(let id) = backends.place(of: block.name) { machine["memory-backend"] = id }
        }
        out.insert(QEMUCommandLine.Option("machine", machine.text(implied: "type")), at: 0)
    }

    /// Main RAM gets the exact size of its block; slots and limits stay.
    private mutating func rewriteMemorySize(_ value: String) {
        guard let main = mainBlock else {
            keep("m", value)
            return
        }
        var text = OptionText(value, implied: "size")
        text["size"] = Self.size(main.size)
        keep("m", text.text())
    }

    /// The mapped block that is all of the machine's main RAM.
    private var mainBlock: FailoverCommand.MappedBlock? {
        substitutions.ram.first { block in
            switch backends.place(of: block.name) {
            case .defaultRAM: return true
            case .object(let id, _): return id == identity.memoryBackend
            case nil: return false
            }
        }
    }

    /// A size as QEMU takes it, without rounding.
    private static func size(_ bytes: UInt64) -> String {
        bytes % 1024 == 0 ? "\(bytes / 1024)K" : "\(bytes)B"
    }

    private mutating func rewrite(object value: String) {
        let text = OptionText(value, implied: "qom-type")
        guard let id = text["id"], MemoryBackends.kinds.contains(text["qom-type"] ?? "") else {
            keepOther(object: value, text)
            return
        }
        let block = substitutions.ram.first {
            if case .object(id, _) = backends.place(of: $0.name) { return true }
            return false
        }
        guard let block, case .object(_, let canonicalPath) = backends.place(of: block.name) else {
            // Its pages travel in the stream; a file of the primary's must not be opened again.
            keep("object", text["qom-type"] == "memory-backend-file" ? Self.anonymous(text).text() : value)
            return
        }
        if text["share"] == "on", has("chardev"), identity.arguments.contains(where: { $0.contains("vhost-user") }) {
            note(
                .blocker, "vhost-device", "guest RAM is shared with a vhost-user process",
                "use the device without vhost")
        }
        keep("object", Self.memory(id: id, block, canonicalPath: canonicalPath))
    }

    private mutating func keepOther(object value: String, _ text: OptionText) {
        keep("object", value)
        for key in ["file", "filename", "dir"] {
            guard let path = text[key] else { continue }
            note(
                .note, "external-file", "-object \(text["qom-type"] ?? "") uses \(path)",
                "the same file must be where the guest shall start")
        }
    }

    private static func anonymous(_ text: OptionText) -> OptionText {
        var text = text
        text["qom-type"] = nil
        text.remove { ["mem-path", "discard-data", "pmem", "readonly", "align", "offset", "rom"].contains($0) }
        text.items.insert(OptionText.Item(key: "qom-type", value: "memory-backend-ram"), at: 0)
        return text
    }

    private static func memory(id: String, _ block: FailoverCommand.MappedBlock, canonicalPath: Bool) -> String {
        var text = OptionText()
        text["qom-type"] = "memory-backend-file"
        text["id"] = id
        text["size"] = "\(block.size)"
        text["mem-path"] = block.path
        text["share"] = "off"
        text["x-use-canonical-path-for-ramblock-id"] = canonicalPath ? "on" : "off"
        return text.text(implied: "qom-type")
    }

    private mutating func addMemory() {
        for block in substitutions.ram {
            switch backends.place(of: block.name) {
            case .defaultRAM(let id):
                keep("object", Self.memory(id: id, block, canonicalPath: false))
                if !has("m") { keep("m", "size=\(Self.size(block.size))") }
            case .object: break
            case nil:
                note(
                    .blocker, "unmappable-block", "the RAM block \(block.name) cannot be mapped from a file",
                    "send its pages in the restore stream")
            }
        }
    }

    // MARK: Console and monitor

    private mutating func addConsole() {
        // Without -serial, -nographic takes the terminal.
        if has("nographic"), !has("nodefaults"), serials == 0 { keep("serial", line("stdio", "serial0")) }
        keep("monitor", "none")
        if isProof {
            keep("display", "none")
            keep("S")
        }
        var socket = OptionText()
        socket["path"] = substitutions.qmpSocket
        let path = socket.text().dropFirst("path=".count)
        keep("qmp", "unix:\(path),server=on,wait=off")
    }
}
