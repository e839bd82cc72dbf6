import Foundation

/// Everything of a guest that an attach may change; taken before and after, both must be equal.
struct Footprint: Equatable, CustomStringConvertible {
    let parts: [String: String]

    init(_ monitor: Monitor) throws {
        var parts: [String: String] = [:]
        for node in try monitor.execute("query-named-block-nodes", ["flat": true]).array {
            guard let name = node["node-name"].string else { continue }
            parts["node \(name)"] = node["drv"].string ?? ""
        }
        for device in try monitor.execute("query-block").array {
            let name = device["qdev"].string ?? device["device"].string ?? ""
            parts["block \(name)"] = device["inserted"]["node-name"].string ?? ""
        }
        for job in try monitor.execute("query-block-jobs").array { parts["job \(job["device"])"] = "" }
        for job in try monitor.execute("query-jobs").array { parts["job \(job["id"])"] = "" }
        for export in try monitor.execute("query-block-exports").array { parts["export \(export["id"])"] = "" }
        for device in try monitor.execute("query-chardev").array { parts["chardev \(device["label"])"] = "" }
        for object in try monitor.execute("qom-list", ["path": "/objects"]).array {
            parts["object \(object["name"])"] = object["type"].string ?? ""
        }
        for capability in try monitor.execute("query-migrate-capabilities").array {
            parts["capability \(capability["capability"])"] = "\(capability["state"])"
        }
        for (name, value) in try monitor.execute("query-migrate-parameters").object {
            parts["parameter \(name)"] = "\(value)"
        }
        for instance in try monitor.execute("query-yank").array where instance["type"].string != "chardev" {
            parts["yank \(instance)"] = ""
        }
        self.parts = parts
    }

    /// What differs, in words.
    func differences(from other: Footprint) -> [String] {
        Set(parts.keys).union(other.parts.keys).sorted().compactMap { key in
            let (now, before) = (parts[key], other.parts[key])
            return now == before ? nil : "\(key): was \(before ?? "absent"), is \(now ?? "absent")"
        }
    }

    var description: String { parts.sorted { $0.key < $1.key }.map { "\($0.key)=\($0.value)" }.joined(separator: "\n") }
}

extension Guest {
    func footprint() throws -> Footprint { try Footprint(watch()) }

    /// Waits until nothing of ours is left, the guest runs and no migration is under way.
    func waitUntilUntouched(_ before: Footprint, within seconds: Double = 5) throws {
        var differences: [String] = []
        try waitUntil("nothing of ours is left in the guest", within: seconds, seen: { "\(differences)" }) {
            differences = try footprint().differences(from: before)
            return differences.isEmpty
        }
        guard try runsUnprotected() else {
            throw TestFailure(
                "clean, but: \(try watch().execute("query-status")), \(try watch().execute("query-migrate"))")
        }
    }

    /// The directory of the sockets that the agent gave to QEMU, as the guest's NBD node names it.
    func socketDirectory() throws -> String? {
        for node in try watch().execute("query-named-block-nodes", ["flat": true]).array
        where node["drv"].string == "nbd" {
            guard let file = node["file"].string, let range = file.range(of: "socket=") else { continue }
            return URL(fileURLWithPath: String(file[range.upperBound...])).deletingLastPathComponent().path
        }
        return nil
    }
}
