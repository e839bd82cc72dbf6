/// Disks: each writable one gets its new image, read-only media stay, nothing of the primary's is opened for writing.
extension FailoverBuilder {
    /// Keys of `-drive` that speak of the disk as the guest sees it, and not of the old file.
    private static let keptKeys: Set<String> = [
        "if", "index", "bus", "unit", "id", "media", "cache", "cache.writeback", "cache.direct", "cache.no-flush",
        "discard", "detect-zeroes", "werror", "rerror", "serial", "node-name", "group", "addr", "cyls", "heads",
        "secs", "trans", "stats-account-invalid", "stats-account-failed",
    ]

    static func isKept(_ key: String) -> Bool {
        keptKeys.contains(key) || key.hasPrefix("throttling.") || key.hasPrefix("iops") || key.hasPrefix("bps")
    }

    /// Finds the option of each disk, and the nodes that go with the replaced ones.
    mutating func placeDisks() {
        let places = DiskOptions(commandLine)
        for disk in identity.disks {
            guard let image = substitutions.disks[disk.id] else {
                note(.blocker, "disk-missing", "the replica has no image of the disk \(disk.id)")
                continue
            }
            guard let index = places.option(of: disk), replaced[index] == nil else {
                note(
                    .blocker, "disk-not-on-command-line",
                    "the disk \(disk.id) (\(disk.filename)) is not on the guest's command line",
                    "name it in the failover's extra arguments, or restart the guest with it")
                continue
            }
            replaced[index] = image
        }
        dropNodesOfReplacedDisks()
    }

    private struct Node {
        let name: String
        let children: Set<String>
        let isReplaced: Bool
        let isWritable: Bool
    }

    /// Nodes under a replaced one that nothing else uses are left out.
    private mutating func dropNodesOfReplacedDisks() {
        var nodes: [String: Node] = [:]
        var texts: [(OptionText, Int)] = []
        for (index, option) in commandLine.options.enumerated() where option.name == "blockdev" {
            texts.append((OptionText(option.value ?? "", implied: "driver"), index))
        }
        let names = Set(texts.compactMap { $0.0["node-name"] })
        for (text, index) in texts {
            guard let name = text["node-name"] else { continue }
            let children = text.items.compactMap(\.value).filter { names.contains($0) && $0 != name }
            nodes[name] = Node(
                name: name, children: Set(children), isReplaced: replaced[index] != nil,
                isWritable: text["read-only"] != "on")
        }
        let fromDevices = commandLine.values("device", "drive").flatMap { value in
            OptionText(value, implied: "driver").items.compactMap(\.value)
        }
        func reach(_ start: [Node]) -> Set<String> {
            var seen: Set<String> = []
            var work = start
            while let node = work.popLast() {
                for child in node.children where seen.insert(child).inserted {
                    if let next = nodes[child] { work.append(next) }
                }
            }
            return seen
        }
        let below = reach(nodes.values.filter(\.isReplaced))
        let roots = nodes.values.filter { node in
            !node.isReplaced && (fromDevices.contains(node.name) || !below.contains(node.name))
        }
        let needed = reach(roots)
        droppedNodes = below.subtracting(needed).subtracting(fromDevices)
        for root in roots.sorted(by: { $0.name < $1.name }) where root.isWritable && fromDevices.contains(root.name) {
            note(
                .blocker, "disk-unknown", "-blockdev \(root.name) may be written and is not a replicated disk",
                "make it read-only or attach it before the protection begins")
        }
    }

    mutating func rewrite(blockdev value: String, at index: Int) {
        let text = OptionText(value, implied: "driver")
        let name = text["node-name"] ?? ""
        if let image = replaced[index] {
            var new = OptionText()
            new["driver"] = image.format
            new["node-name"] = name
            for key in ["discard", "detect-zeroes", "cache.direct", "cache.no-flush"] { new[key] = text[key] }
            new["file.driver"] = "file"
            new["file.filename"] = image.path
            keep("blockdev", new.text())
            return
        }
        guard !droppedNodes.contains(name) else { return }
        if let medium = media[index] { return rewrite(blockdev: text, medium) }
        keepMedium("blockdev", value, text, key: text["filename"] == nil ? "file.filename" : "filename")
    }

    mutating func rewrite(drive value: String, at index: Int) {
        let text = OptionText(value)
        if let image = replaced[index] {
            var new = text
            new.remove { !Self.isKept($0) }
            new.items.insert(
                contentsOf: [
                    OptionText.Item(key: "file", value: image.path),
                    OptionText.Item(key: "format", value: image.format),
                ], at: 0)
            keep("drive", new.text())
            return
        }
        if let medium = media[index] { return rewrite(drive: text, medium) }
        let readOnly =
            text["media"] == "cdrom" || text["readonly"] == "on" || text["read-only"] == "on"
        let key = text["file"] == nil ? "file.filename" : "file"
        guard readOnly || text[key] == nil else {
            note(
                .blocker, "disk-unknown", "-drive \(value) may be written and is not a replicated disk",
                "make it read-only or attach it before the protection begins")
            return
        }
        keepMedium("drive", value, text, key: key)
    }

    mutating func rewrite(short option: QEMUCommandLine.Option, at index: Int) {
        guard let form = DiskOptions.shortForms[option.name] else { return }
        let file = option.value ?? ""
        var new = OptionText()
        if let image = replaced[index] {
            new["file"] = image.path
            new["format"] = image.format
        } else if form.cdrom {
            let medium = media[index]
            if let path = medium == nil ? file : medium?.filename {
                new["file"] = absolute(path)
                note(.note, "external-file", "the medium \(path)", "the same file must be where the guest shall start")
            }
            if let format = medium?.format, medium?.filename != nil { new["format"] = format }
        } else {
            note(
                .blocker, "disk-unknown", "-\(option.name) \(file) may be written and is not a replicated disk",
                "attach it before the protection begins")
            return
        }
        if let interface = form.interface { new["if"] = interface }
        if form.index >= 0 { new["index"] = "\(form.index)" }
        if form.interface == nil { new["media"] = form.cdrom ? "cdrom" : "disk" }
        keep("drive", new.text())
    }

    /// A read-only medium, whose path is made absolute.
    private mutating func keepMedium(_ name: String, _ value: String, _ text: OptionText, key: String) {
        guard let path = text[key] else {
            keep(name, value)
            return
        }
        note(.note, "external-file", "the medium \(path)", "the same file must be where the guest shall start")
        guard absolute(path) != path else {
            keep(name, value)
            return
        }
        var new = text
        new[key] = absolute(path)
        keep(name, new.text())
    }
}
