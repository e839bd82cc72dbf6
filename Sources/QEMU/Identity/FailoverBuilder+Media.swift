/// Removable media that were changed since the guest was started: the new guest begins with what was in the drive at the
/// checkpoint.
extension FailoverBuilder {
    /// Finds the options of drives whose medium is another than they say.
    mutating func placeMedia() {
        let places = DiskOptions(commandLine)
        for medium in identity.media ?? [] {
            let drive = GuestDisk(
                id: medium.name, device: medium.device, qdev: medium.qdev, node: medium.node ?? "", filename: "",
                format: "", size: 0, discard: false)
            guard let index = places.option(of: drive) else {
                guard let filename = medium.filename else { continue }
                note(
                    .blocker, "medium-not-on-command-line",
                    "the drive \(medium.name) holds \(filename), which the guest's command line does not name",
                    "eject it, or restart the guest with it")
                continue
            }
            guard replaced[index] == nil, isChanged(medium, commandLine.options[index], places) else { continue }
            media[index] = medium
        }
    }

    private func isChanged(
        _ medium: GuestMedium, _ option: QEMUCommandLine.Option, _ places: DiskOptions
    ) -> Bool {
        let text = OptionText(option.value ?? "", implied: "driver")
        // The node of the command line is still what is in the drive.
        if option.name == "blockdev" { return text["node-name"] != medium.node }
        let before = places.file(of: option).map(absolute)
        let now = medium.filename.map(absolute)
        guard before != now else { return false }
        // A medium that is named in another way than by a file looks the same only while nobody has changed it.
        let isOther = before == nil && text.items.contains { $0.key.hasPrefix("file.") || $0.key == "driver" }
        return !isOther || now == nil
    }

    mutating func rewrite(drive text: OptionText, _ medium: GuestMedium) {
        var new = text
        new.remove { !Self.isKept($0) && $0 != "readonly" && $0 != "read-only" }
        if let filename = medium.filename {
            let path = absolute(filename)
            note(.note, "external-file", "the medium \(path)", "the same file must be where the guest shall start")
            new.items.insert(OptionText.Item(key: "file", value: path), at: 0)
            if let format = medium.format { new.items.insert(OptionText.Item(key: "format", value: format), at: 1) }
        }
        keep("drive", new.text())
    }

    mutating func rewrite(blockdev text: OptionText, _ medium: GuestMedium) {
        guard let filename = medium.filename else {
            note(
                .blocker, "medium-ejected",
                "the drive \(medium.name), made with -blockdev \(text["node-name"] ?? "?"), is empty now",
                "put a medium in, or restart the guest without one")
            return
        }
        let path = absolute(filename)
        note(.note, "external-file", "the medium \(path)", "the same file must be where the guest shall start")
        var new = OptionText()
        new["driver"] = medium.format ?? "raw"
        new["node-name"] = text["node-name"]
        new["read-only"] = "on"
        new["file.driver"] = "file"
        new["file.filename"] = path
        keep("blockdev", new.text())
    }
}
