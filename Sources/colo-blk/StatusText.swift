import Node

/// `colo-blk status` for people.
enum StatusText {
    static func lines(_ status: GuestStatus) -> [String] {
        var lines = ["guest        \(status.guest)"]
        lines.append("state        \(status.state.rawValue)" + (status.message.map { " (\($0))" } ?? ""))
        if let epoch = status.committedEpoch {
            let age = status.commitAgeSeconds.map { ", \(Fixed.text($0, 1)) s ago" } ?? ""
            lines.append("checkpoint   \(epoch)\(age)")
        } else {
            lines.append("checkpoint   none yet")
        }
        lines.append("generation   \(status.generation)")
        lines.append("durability   \(status.durability)")
        let disks = status.disks.map { "\($0.id) \(ByteText.text($0.bytes))" }.joined(separator: ", ")
        lines.append("disks        \(disks.isEmpty ? "none" : disks)")
        lines.append("ram          \(ByteText.text(status.ramBytes))")
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
