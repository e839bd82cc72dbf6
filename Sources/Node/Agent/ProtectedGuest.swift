import Glibc
import Logging
import QEMU
import Units

/// What the agent knows of the guest before it changes anything: who it is, and whether it can be protected.
struct ProtectedGuest: Sendable {
    struct Disk: Sendable {
        let id: String
        /// What `blockdev-mirror` takes as its device.
        let node: String
        let size: UInt64
        /// Whether the guest's discards reach the image, and so must reach the replica.
        let discards: Bool
    }

    /// Name of the replica.
    let name: String
    /// This host and process, for the secondary's messages.
    let label: String
    let disks: [Disk]
    /// Networks whose packets are held, by the ids of their `-netdev`.
    let heldNetworks: [String]
    let identityJSON: [UInt8]
    /// What of the machine may change while it runs.
    let shape: GuestShape

    static func take(relay: AgentRelay, options: AttachOptions, log: Logger) async throws -> ProtectedGuest {
        guard relay.hello.saved.wasRunning else {
            throw AgentSession.Refused(
                description: "the guest is paused, and attaching would start it: resume it first ('cont'), then attach")
        }
        guard let process = relay.hello.process else {
            throw AgentSession.Refused(
                description:
                    "the guest's command line is not known (\(relay.hello.processProblem ?? "no process id")); it is "
                    + "needed to start the guest elsewhere: say its process id with --pid")
        }
        let answers = try await GuestAnswers.survey(relay)
        let heldNetworks = try networks(answers, options.holdNetwork)
        try examine(
            answers, process, relay: relay, force: options.force, heldNetworks: Set(heldNetworks), log: log)
        let identity = try GuestIdentity.capture(
            answers, arguments: process.arguments, executable: process.executable,
            workingDirectory: process.workingDirectory)
        for disk in identity.disks where disk.size == 0 || disk.size % UInt64(Sizes.sector) != 0 {
            throw AgentSession.Refused(
                description:
                    "disk '\(disk.id)' has \(disk.size) bytes, which is no multiple of \(Sizes.sector): resize it")
        }
        let name = options.guest ?? identity.name ?? "guest"
        guard Store.isGuestName(name) else {
            throw AgentSession.Refused(
                description: "'\(name)' cannot be a replica's name (\(Store.guestNameRule)): say another with --guest")
        }
        var host = [CChar](repeating: 0, count: 256)
        gethostname(&host, host.count - 1)
        let hostName = String(decoding: host.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
        return ProtectedGuest(
            name: name, label: "\(hostName) qemu \(process.pid)",
            disks: identity.disks.map { disk in
                Disk(id: disk.id, node: disk.node, size: disk.size, discards: disk.discard)
            },
            heldNetworks: heldNetworks, identityJSON: try identity.encoded(), shape: GuestShape(answers))
    }

    private static func networks(_ answers: GuestAnswers, _ wanted: HeldNetworks?) throws -> [String] {
        switch wanted {
        case nil: return []
        case .all:
            guard !answers.networks.isEmpty else {
                throw AgentSession.Refused(
                    description: "the guest has no network card with a -netdev whose packets could be held: leave out "
                        + "--hold-network")
            }
            return answers.networks
        case .named(let names):
            for name in names where !answers.networks.contains(name) {
                throw AgentSession.Refused(
                    description: "the guest has no network card on a -netdev '\(name)'; it has "
                        + (answers.networks.isEmpty ? "none" : answers.networks.joined(separator: ", ")))
            }
            return names
        }
    }

    /// Refuses what the doctor calls a blocker, and logs what else it found.
    private static func examine(
        _ answers: GuestAnswers, _ process: GuestProcess, relay: AgentRelay, force: Bool,
        heldNetworks: Set<String>, log: Logger
    ) throws {
        let report = DoctorReport.examine(
            answers, arguments: process.arguments, outOfBand: relay.hello.outOfBand,
            overrides: DoctorReport.Overrides(tcgDirtyLoss: force, heldNetworks: heldNetworks))
        for finding in report.findings where finding.severity == .warning { log.warning("\(finding)") }
        let blockers = report.findings.filter { $0.severity == .blocker }
        guard !blockers.isEmpty else { return }
        let text = blockers.map { $0.text + ($0.remedy.map { ": \($0)" } ?? "") }.joined(separator: "; ")
        guard force else { throw AgentSession.Refused(description: text) }
        log.warning("going on in spite of: \(text)")
    }
}
