/// Character devices and networks: what reaches out of the guest.
extension FailoverBuilder {
    /// Back ends that touch nothing outside QEMU.
    private static let innerKinds: Set<String> = [
        "null", "vc", "ringbuf", "memory", "testdev", "msmouse", "wctablet", "mux", "hub",
    ]
    /// Back ends that belong to a display.
    private static let displayKinds: Set<String> = ["spicevmc", "spiceport", "qemu-vdagent", "dbus", "braille"]
    private static let socketKinds: Set<String> = ["socket", "udp"]

    // MARK: Character devices

    /// A monitor's character device goes with it, unless something else uses it too.
    mutating func findDroppedChardevs() {
        for value in commandLine.values("mon") {
            guard let id = OptionText(value, implied: "chardev")["chardev"] else { continue }
            let used = commandLine.options.contains { option in
                guard option.name != "mon", option.name != "chardev", let value = option.value else { return false }
                return value == "chardev:\(id)" || OptionText(value, implied: "type")["chardev"] == id
            }
            if !used { droppedChardevs.insert(id) }
        }
    }

    mutating func rewrite(chardev value: String) {
        let text = OptionText(value, implied: "backend")
        guard let id = text["id"], !droppedChardevs.contains(id) else { return }
        // In JSON the kind is "backend.type".
        let kind = text["backend"] ?? text["backend.type"] ?? "null"
        if Self.innerKinds.contains(kind) || (Self.displayKinds.contains(kind) && !isProof) {
            keep("chardev", value)
            return
        }
        var new = OptionText()
        if isProof {
            new["backend"] = "null"
            new["id"] = id
        } else if Self.socketKinds.contains(kind) {
            new["backend"] = "socket"
            new["id"] = id
            new["path"] = runtimePath(id, "sock")
            new["server"] = "on"
            new["wait"] = "off"
        } else {
            new["backend"] = "file"
            new["id"] = id
            new["path"] = runtimePath(id, "log")
        }
        if text["mux"] == "on" { new["mux"] = "on" }
        keep("chardev", new.text(implied: "backend"))
    }

    /// The back end of a serial or parallel line called `name`.
    func line(_ value: String, _ name: String) -> String {
        let bare = value.hasPrefix("mon:") ? String(value.dropFirst(4)) : value
        if ["none", "null"].contains(bare) || bare.hasPrefix("chardev:") { return bare }
        if isProof { return "null" }
        if bare == "vc" || bare.hasPrefix("vc:") || bare == "msmouse" { return bare }
        var path = OptionText()
        for kind in ["unix:", "tcp:", "telnet:", "websocket:", "tn3270:", "udp:"] where bare.hasPrefix(kind) {
            path["p"] = runtimePath(name, "sock")
            return "unix:\(path.text().dropFirst(2)),server=on,wait=off"
        }
        // A path given as file: is not split at commas.
        return "file:\(runtimePath(name, "log"))"
    }

    private func runtimePath(_ name: String, _ suffix: String) -> String {
        "\(substitutions.runtimeDirectory)/\(GuestDisk.sanitised(name)).\(suffix)"
    }

    // MARK: Networks

    /// `-netdev`, `-nic` or `-net`.
    mutating func rewrite(network option: String, _ value: String) {
        let text = OptionText(value, implied: "type")
        let kind = text["type"] ?? ""
        if kind == "nic" || kind == "none" || kind == "hubport" {
            keep(option, value)
            return
        }
        if ["vhost-user", "vhost-vdpa", "af-xdp", "netmap"].contains(kind) {
            note(
                .blocker, "vhost-device", "-\(option) \(kind): part of the network's state is outside QEMU",
                "use a tap network")
            return
        }
        guard isProof else {
            if text["fd"] != nil || text["fds"] != nil || text["vhostfd"] != nil || text["vhostfds"] != nil {
                note(
                    .blocker, "inherited-descriptor", "-\(option) \(value): a descriptor of another process",
                    "give the network in the failover's extra arguments, with an ifname or a bridge")
                return
            }
            keep(option, value)
            return
        }
        keep(option, proof(network: text, kind).text(implied: "type"))
    }

    /// The same kind of network without any traffic. A tap stays a tap: its header format is part of the state.
    private func proof(network text: OptionText, _ kind: String) -> OptionText {
        var new = OptionText()
        let isTap = kind == "tap" || kind == "bridge"
        new["type"] = isTap ? "tap" : "user"
        for key in ["id", "model", "mac", "macaddr", "addr", "bus", "name"] { new[key] = text[key] }
        if isTap {
            new["script"] = "no"
            new["downscript"] = "no"
            if let queues = text["queues"] { new["queues"] = queues }
        } else {
            new["restrict"] = "on"
        }
        return new
    }
}
