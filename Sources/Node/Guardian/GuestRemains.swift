import Logging
import QEMU

extension GuestRestoration {
    /// What an attach that died altogether left in the guest, in words; empty when nothing of ours is there.
    ///
    /// A guest in COLO counts only with the checkpoint delay that no one but us sets: somebody may run a COLO pair of
    /// QEMU's own, or migrate the guest, and that is not ours to end.
    /// - Parameter gates: whether filters that keep a network closed count.
    static func findRemains(_ qmp: some QMPExecutor, gates: Bool = true) async -> [String] {
        var remains: [String] = []
        func ask(_ command: String, _ arguments: JSONValue? = nil) async -> JSONValue {
            // A QEMU that does not know the question has no answer of ours.
            (try? await qmp.execute(command, arguments)) ?? .null
        }
        func look(_ answer: JSONValue, _ key: String, _ what: String) {
            for entry in answer.arrayValue ?? [] {
                guard let name = entry[key]?.stringValue, GuestNames.isOurs(name) else { continue }
                if gates || !GuestNames.isGate(name) { remains.append("\(what) \(name)") }
            }
        }
        look(await ask("query-block-jobs"), "device", "block job")
        look(await ask("query-named-block-nodes", ["flat": true]), "node-name", "block node")
        look(await ask("query-block-exports"), "id", "block export")
        look(await ask("query-chardev"), "label", "character device")
        look(await ask("qom-list", ["path": "/objects"]), "name", "object")
        let migration = await ask("query-migrate")["status"]?.stringValue ?? "none"
        let delay = await ask("query-migrate-parameters")["x-checkpoint-delay"]
        let isOurs = delay?.uintValue == UInt64(AgentSession.quietCheckpointDelayMilliseconds)
        let capabilities = SavedGuestState.table(await ask("query-migrate-capabilities"))
        if isOurs, capabilities["x-colo"] == true {
            remains.append(migration == "none" ? "settings for COLO" : "a migration for COLO ('\(migration)')")
        }
        return remains
    }

    /// Puts a guest back that an attach left as it was when it died together with its guardian. A guest without marks
    /// of ours is not touched. To be called by the holder of the guest's ``GuestClaim`` only: a living attach leaves the
    /// same marks.
    /// - Parameter keepsNetworkClosed: whether networks that are closed, or held by an agent that is gone, stay so.
    static func removeRemains(
        ofDeadAttachIn client: QMPClient, keepsNetworkClosed: Bool = false, log: Logger
    ) async throws(QMPError) {
        let remains = await findRemains(client, gates: !keepsNetworkClosed)
        guard !remains.isEmpty else { return }
        log.notice(
            "an attach died and left something in the guest; cleaning up",
            metadata: ["left": "\(remains.joined(separator: ", "))"])
        let status = try await client.execute("query-migrate")["status"]?.stringValue
        let report = await removeRemains(client, keepsNetworkClosed: keepsNetworkClosed, log: log)
        try await resetParameters(client, wasCopied: status == "colo")
        log.notice("the guest was restored", metadata: ["report": "\(report)"])
    }

    /// Nobody is left who knows what the guest's parameters were; QEMU's own are a better guess than ours.
    /// - Parameter wasCopied: the initial copy was over; from then on the limit of the down time is the user's again.
    private static func resetParameters(_ qmp: some QMPExecutor, wasCopied: Bool) async throws(QMPError) {
        let now = try await qmp.execute("query-migrate-parameters")
        var changes: [String: JSONValue] = [:]
        if now["x-checkpoint-delay"]?.uintValue == UInt64(AgentSession.quietCheckpointDelayMilliseconds) {
            changes["x-checkpoint-delay"] = 20_000
            if !wasCopied { changes[SavedGuestState.downtimeLimit] = .whole(SavedGuestState.downtimeLimitDefault) }
        }
        if now["max-bandwidth"]?.uintValue == 1 << 40 { changes["max-bandwidth"] = .whole(128 << 20) }
        if !changes.isEmpty { _ = try await qmp.execute("migrate-set-parameters", .object(changes)) }
    }
}
