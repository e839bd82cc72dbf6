import QEMU

/// What of the guest's migration settings we change, as it was before, so that it can be put back.
public struct SavedGuestState: Sendable, Equatable, Codable {
    /// Whether the guest ran; a guest that was paused is not started again by the restoration.
    public var wasRunning: Bool
    /// All migration capabilities by name.
    public var capabilities: [String: Bool]
    /// Those of ``parameterNames`` that this QEMU has; numbers as QEMU gives them.
    public var parameters: [String: UInt64]

    /// Migration parameters that an attach changes.
    public static let parameterNames = ["x-checkpoint-delay", "max-bandwidth", downtimeLimit]
    /// Milliseconds, by which QEMU decides when to stop the guest for the last round of a copy.
    static let downtimeLimit = "downtime-limit"
    /// QEMU's own.
    static let downtimeLimitDefault: UInt64 = 300

    public init(wasRunning: Bool, capabilities: [String: Bool], parameters: [String: UInt64]) {
        self.wasRunning = wasRunning
        self.capabilities = capabilities
        self.parameters = parameters
    }

    /// Asks a guest that we have not touched yet. `x-colo` is saved as off even when it is on: only an attach that
    /// died before its restoration leaves it on.
    public static func capture(_ qmp: some QMPExecutor) async throws(QMPError) -> SavedGuestState {
        let status = try await qmp.execute("query-status")
        let capabilities = try await qmp.execute("query-migrate-capabilities")
        let parameters = try await qmp.execute("query-migrate-parameters")
        var saved = SavedGuestState(
            wasRunning: status["running"]?.boolValue ?? false, capabilities: Self.table(capabilities), parameters: [:])
        saved.capabilities["x-colo"]? = false
        for name in parameterNames { saved.parameters[name] = parameters[name]?.uintValue }
        return saved
    }

    /// The answer of `query-migrate-capabilities` by name.
    static func table(_ answer: JSONValue) -> [String: Bool] {
        var out: [String: Bool] = [:]
        for entry in answer.arrayValue ?? [] {
            guard let name = entry["capability"]?.stringValue, let state = entry["state"]?.boolValue else { continue }
            out[name] = state
        }
        return out
    }
}
