import QEMU

extension GuestAnswers {
    /// Asks a guest everything that the identity and the doctor want to know. Changes nothing. Questions that this
    /// QEMU does not know are left out.
    /// - Throws: `QMPError` when the guest does not answer at all.
    public static func survey(_ qmp: some QMPExecutor) async throws(QMPError) -> GuestAnswers {
        var survey = GuestAnswers()
        for command in commands { survey.answers[command] = try await ask(qmp, command, nil) }
        survey.answers["query-named-block-nodes"] = try await ask(qmp, "query-named-block-nodes", ["flat": true])
        survey.machineType = try await property(qmp, "/machine", "type")?.stringValue
        for name in ["memory-backend", "suppress-vmdesc"] {
            survey.machineProperties[name] = try await property(qmp, "/machine", name)
        }
        for branch in ["/machine/peripheral", "/machine/peripheral-anon"] {
            for entry in try await ask(qmp, "qom-list", ["path": .string(branch)])?.arrayValue ?? [] {
                guard let name = entry["name"]?.stringValue, let type = entry["type"]?.stringValue,
                    type.hasPrefix("child<"), type.hasSuffix(">")
                else { continue }
                let path = "\(branch)/\(name)"
                let hotplugged = try await property(qmp, path, "hotplugged")?.boolValue ?? false
                let netdev = try await property(qmp, path, "netdev")?.stringValue
                survey.peripherals.append(
                    Peripheral(
                        name: branch.hasSuffix("anon") ? path : name, type: String(type.dropFirst(6).dropLast()),
                        hotplugged: hotplugged, netdev: netdev == "" ? nil : netdev))
            }
        }
        return survey
    }

    private static func property(
        _ qmp: some QMPExecutor, _ path: String, _ name: String
    ) async throws(QMPError) -> JSONValue? {
        try await ask(qmp, "qom-get", ["path": .string(path), "property": .string(name)])
    }

    /// The answer, or nil when QEMU refuses the question.
    private static func ask(
        _ qmp: some QMPExecutor, _ command: String, _ arguments: JSONValue?
    ) async throws(QMPError) -> JSONValue? {
        do {
            return try await qmp.execute(command, arguments)
        } catch {
            if case .refused = error { return nil }
            throw error
        }
    }
}
