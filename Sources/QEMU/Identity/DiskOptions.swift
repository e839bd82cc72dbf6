/// Finds the option of a command line that made a disk.
struct DiskOptions {
    private let commandLine: QEMUCommandLine

    init(_ commandLine: QEMUCommandLine) {
        self.commandLine = commandLine
    }

    /// Options that are disks by themselves, as `-drive` would say them.
    static let shortForms: [String: (interface: String?, index: Int, cdrom: Bool)] = [
        "hda": (nil, 0, false), "hdb": (nil, 1, false), "hdc": (nil, 2, false), "hdd": (nil, 3, false),
        "": (nil, 0, false), "cdrom": (nil, 2, true), "fda": ("floppy", 0, false), "fdb": ("floppy", 1, false),
        "pflash": ("pflash", -1, false), "sd": ("sd", -1, false), "mtdblock": ("mtd", -1, false),
    ]

    /// Index of the option, or nil when no option is surely the one.
    func option(of disk: GuestDisk) -> Int? {
        let options = commandLine.options
        func first(_ names: [String], key: String, value: String) -> Int? {
            guard !value.isEmpty else { return nil }
            return options.firstIndex {
                names.contains($0.name) && OptionText($0.value ?? "", implied: "driver")[key] == value
            }
        }
        if let index = first(["drive"], key: "id", value: disk.device) { return index }
        if let index = first(["blockdev"], key: "node-name", value: disk.node) { return index }
        if let index = first(["drive"], key: "node-name", value: disk.node) { return index }
        if let index = automaticNames()[disk.device] { return index }
        if let drive = driveOfDevice(disk) {
            if let index = first(["drive"], key: "id", value: drive) { return index }
            if let index = first(["blockdev"], key: "node-name", value: drive) { return index }
        }
        let byFile = options.indices.filter { !disk.filename.isEmpty && file(of: options[$0]) == disk.filename }
        return byFile.count == 1 ? byFile.first : nil
    }

    /// The `drive=` of the `-device` that the guest sees as this disk.
    private func driveOfDevice(_ disk: GuestDisk) -> String? {
        guard let qdev = disk.qdev else { return nil }
        // Either the bare id or "/machine/peripheral/ID/virtio-backend".
        let parts = qdev.split(separator: "/").map(String.init)
        let id = parts.count > 2 && parts[1] == "peripheral" ? parts[2] : qdev
        for value in commandLine.values("device") {
            let text = OptionText(value, implied: "driver")
            if text["id"] == id { return text["drive"] }
        }
        return nil
    }

    /// The file that an option names; nil for none, or for one that is named in another way.
    func file(of option: QEMUCommandLine.Option) -> String? {
        switch option.name {
        case "drive", "blockdev":
            let text = OptionText(option.value ?? "", implied: "driver")
            return text["file"] ?? text["file.filename"] ?? text["filename"]
        default: return Self.shortForms[option.name] == nil ? nil : option.value
        }
    }

    /// The names that QEMU gives to drives without an id: "ide0-hd0", "virtio1", "none0", …
    private func automaticNames() -> [String: Int] {
        let machines = commandLine.values("machine", "M").compactMap { OptionText($0, implied: "type")["type"] }
        let isQ35 = machines.last?.contains("q35") ?? false
        var used: [String: Set<Int>] = [:]
        var out: [String: Int] = [:]
        for (place, option) in commandLine.options.enumerated() {
            var interface = "ide"
            var index = -1
            var cdrom = false
            var id: String?
            var units = isQ35 ? 1 : 2
            if option.name == "drive" {
                let text = OptionText(option.value ?? "")
                interface = text["if"] ?? "ide"
                cdrom = text["media"] == "cdrom"
                id = text["id"]
                units = interface == "ide" ? units : interface == "scsi" ? 7 : 0
                index = text["index"].flatMap { Int($0) } ?? -1
                if let unit = text["unit"].flatMap({ Int($0) }), (0..<1_000).contains(unit) {
                    let bus = text["bus"].flatMap { Int($0) } ?? 0
                    index = units > 0 && (0..<1_000).contains(bus) ? bus * units + unit : unit
                }
            } else if let short = Self.shortForms[option.name] {
                interface = short.interface ?? "ide"
                index = short.index
                cdrom = short.cdrom
                units = interface == "ide" ? units : 0
            } else {
                continue
            }
            if index < 0 { index = (0...).first { !(used[interface]?.contains($0) ?? false) } ?? 0 }
            used[interface, default: []].insert(index)
            guard id == nil else { continue }
            let media = interface == "ide" || interface == "scsi" ? (cdrom ? "-cd" : "-hd") : ""
            let name =
                units > 0 ? "\(interface)\(index / units)\(media)\(index % units)" : "\(interface)\(media)\(index)"
            out[name] = place
        }
        return out
    }
}
