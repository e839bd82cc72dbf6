import QEMU

/// A network filter that swallows every packet of a guest whose secondary is lost. It needs nobody to listen: its
/// packets go to a character device that forgets them.
struct NetworkGate: Sendable, Equatable {
    /// The object's name.
    let name: String
    let netdev: String

    /// All filters of ours, gates or not, with their networks.
    static func filters(
        in qmp: some QMPExecutor, timeout: Duration = .seconds(5)
    ) async throws(QMPError) -> [NetworkGate] {
        var found: [NetworkGate] = []
        for entry in try await qmp.execute("qom-list", ["path": "/objects"], timeout: timeout).arrayValue ?? [] {
            guard let name = entry["name"]?.stringValue, GuestNames.isOurs(name) else { continue }
            let netdev = try await qmp.execute(
                "qom-get", ["path": .string("/objects/\(name)"), "property": "netdev"], timeout: timeout)
            found.append(NetworkGate(name: name, netdev: netdev.stringValue ?? ""))
        }
        return found
    }

    static func all(in qmp: some QMPExecutor) async throws(QMPError) -> [NetworkGate] {
        try await filters(in: qmp).filter { GuestNames.isGate($0.name) }
    }

    /// Closes a network.
    static func add(
        _ index: Int, _ netdev: String, _ qmp: some QMPExecutor, timeout: Duration
    ) async throws(QMPError) {
        let sink = GuestNames.netGateOut(index)
        let sinks = try await qmp.execute("query-chardev", timeout: timeout).arrayValue ?? []
        if !sinks.contains(where: { $0["label"]?.stringValue == sink }) {
            try await qmp.execute(
                "chardev-add", ["id": .string(sink), "backend": ["type": "null", "data": [:]]],
                timeout: timeout)
        }
        try await qmp.execute(
            "object-add",
            [
                "qom-type": "filter-redirector", "id": .string(GuestNames.netGate(index)), "netdev": .string(netdev),
                "queue": "rx", "outdev": .string(sink),
            ], timeout: timeout)
    }

    /// Opens it again.
    func remove(_ qmp: some QMPExecutor) async throws(QMPError) {
        try await qmp.execute("object-del", ["id": .string(name)])
        let sink = name.split(separator: "-").last.flatMap { Int($0) }.map(GuestNames.netGateOut)
        if let sink { try await qmp.execute("chardev-remove", ["id": .string(sink)]) }
    }
}
