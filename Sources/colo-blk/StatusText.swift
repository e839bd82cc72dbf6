import Glibc
import Node

/// `colo-blk status` for people.
enum StatusText {
    static func lines(_ status: GuestStatus) -> [String] {
        var lines = ["guest        \(status.guest)"]
        lines.append("state        \(status.state.rawValue)" + (status.message.map { " (\($0))" } ?? ""))
        if let warning = status.warning { lines.append("WARNING      \(warning)") }
        if let epoch = status.committedEpoch {
            let age = status.commitAgeSeconds.map { ", \(Fixed.text($0, 1)) s ago" } ?? ""
            lines.append("checkpoint   \(epoch)\(age)")
        } else {
            lines.append("checkpoint   none yet")
        }
        lines.append("generation   \(status.generation)")
        lines.append("durability   \(status.durability)")
        let disks = status.disks.map { disk in
            "\(disk.id) \(ByteText.text(disk.bytes))" + (disk.health == "good" ? "" : " (\(disk.health))")
        }.joined(separator: ", ")
        lines.append("disks        \(disks.isEmpty ? "none" : disks)")
        let ram = status.ramHealth.map { $0 == "good" ? "" : " (\($0))" } ?? ""
        lines.append("ram          \(ByteText.text(status.ramBytes))\(ram)")
        lines += figures(status)
        if let milliseconds = status.lastCommitMilliseconds {
            lines.append("last commit  took \(Fixed.text(milliseconds, 1)) ms; \(status.commits) since the start")
        }
        for export in status.exports ?? [] {
            let kind = export.writable ? ", writable" : ""
            lines.append(
                "export       checkpoint \(export.epoch)\(kind), \(export.clients) client(s), "
                    + "\(ByteText.text(export.heldBytes)) set aside: \(export.uris.joined(separator: " "))")
        }
        lines.append("failover     \(proof(status.proof))")
        if let pid = status.pid, let socket = status.qmpSocket {
            lines.append("running      pid \(pid), qmp \(socket)")
        }
        return lines
    }

    private static func figures(_ status: GuestStatus) -> [String] {
        var lines: [String] = []
        if let bytes = status.lagBytes, let time = status.lagMilliseconds {
            lines.append("lag          \(ByteText.text(bytes)), \(Fixed.text(time, 1)) ms")
        }
        if let pauses = status.pauses {
            lines.append(
                "pauses       p50 \(Fixed.text(pauses.p50Milliseconds, 1)) ms, "
                    + "p90 \(Fixed.text(pauses.p90Milliseconds, 1)), p99 \(Fixed.text(pauses.p99Milliseconds, 1)), "
                    + "longest \(Fixed.text(pauses.maxMilliseconds, 1)); \(pauses.count) checkpoints")
        }
        if let share = status.pausedShare {
            lines.append("paused       \(Fixed.text(share * 100, 1)) % of its time")
        }
        if let network = status.network {
            lines.append(
                "network      \(network.isHeld ? "held" : "held from the next checkpoint on"): \(network.packets) "
                    + "packets wait; p50 \(Fixed.text(network.p50Milliseconds, 1)) ms, "
                    + "p95 \(Fixed.text(network.p95Milliseconds, 1)), longest "
                    + "\(Fixed.text(network.maxMilliseconds, 1))"
                    + (network.dropped > 0 ? "; \(network.dropped) dropped" : ""))
        }
        if let rate = status.dirtyPagesPerSecond {
            lines.append("changes      \(Fixed.text(rate, 0)) pages/s")
        }
        return lines
    }

    /// One line for a replica as it is.
    static func line(_ status: GuestStatus) -> String {
        "\(status.guest): \(status.state.rawValue), checkpoint \(status.committedEpoch.map(String.init) ?? "none"), "
            + "generation \(status.generation)" + (status.warning.map { "; WARNING: \($0)" } ?? "")
            + (status.message.map { " (\($0))" } ?? "")
    }

    /// One line for something that happened.
    static func line(_ event: GuestEvent) -> String {
        let change = event.before.map { "\($0.rawValue) -> \(event.state.rawValue)" } ?? event.state.rawValue
        let what = event.kind == .state ? change : event.kind.rawValue
        return "\(TimeText.text(milliseconds: event.milliseconds))  \(event.guest): \(what), checkpoint "
            + "\(event.committedEpoch.map(String.init) ?? "none"), generation \(event.generation)"
            + (event.message.map { ": \($0)" } ?? "")
    }

    private static func proof(_ proof: GuestStatus.Proof) -> String {
        switch proof.verdict {
        case .proven:
            let time = proof.milliseconds.map { " in \(Fixed.text($0, 0)) ms" } ?? ""
            return "proven at epoch \(proof.epoch.map(String.init) ?? "-")\(time)"
        case .failed: return "NOT possible at epoch \(proof.epoch.map(String.init) ?? "-"): \(proof.message ?? "")"
        case .notYet: return "not yet proven"
        }
    }
}

/// Times for people.
enum TimeText {
    /// `2026-01-31T12:00:00.123Z`.
    static func text(milliseconds: UInt64) -> String {
        var seconds = time_t(milliseconds / 1000)
        var parts = tm()
        gmtime_r(&seconds, &parts)
        func digits(_ value: Int, _ count: Int) -> String {
            let text = String(value)
            return String(repeating: "0", count: max(0, count - text.count)) + text
        }
        let day = [Int(parts.tm_year) + 1900, Int(parts.tm_mon) + 1, Int(parts.tm_mday)].map { digits($0, 2) }
        let time = [Int(parts.tm_hour), Int(parts.tm_min), Int(parts.tm_sec)].map { digits($0, 2) }
        return day.joined(separator: "-") + "T" + time.joined(separator: ":")
            + ".\(digits(Int(milliseconds % 1000), 3))Z"
    }
}
