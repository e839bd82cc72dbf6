import Node

/// `colo-blk ram` for people.
enum RamText {
    static func lines(_ info: RamInfo) -> [String] {
        var lines = ["guest        \(info.guest)"]
        lines.append("checkpoint   \(info.committedEpoch.map(String.init) ?? "none yet")")
        lines.append("durability   \(info.durability)")
        for block in info.blocks {
            lines.append("block        \(block.name) \(ByteText.text(block.bytes))\(block.mapped ? ", mapped" : "")")
        }
        if let cache = info.cacheBytes, let staging = info.stagingBytes {
            lines.append("memory       cache \(ByteText.text(cache)), staging \(ByteText.text(staging))")
        }
        if let log = info.logBytes, let limit = info.logLimitBytes, let disk = info.diskBytes {
            let base = info.baseEpoch.map { "base of checkpoint \($0)" } ?? "no base yet"
            lines.append(
                "disk         \(ByteText.text(disk)): \(base), log \(ByteText.text(log)) of \(ByteText.text(limit)), "
                    + "\(info.compactions ?? 0) compactions")
        }
        if let failure = info.compactionFailure { lines.append("compaction   FAILED: \(failure)") }
        lines.append("in all       \(text(info.total))")
        guard let last = info.epochs.last else { return lines }
        lines.append("rate         \(rate(info.epochs)) over the last \(info.epochs.count) checkpoints")
        lines += history(info.epochs)
        lines.append("last         \(last.epoch): \(text(last.yield))")
        return lines
    }

    private static func text(_ yield: RamInfo.Yield) -> String {
        guard let each = yield.bytesPerPage else { return "no page" }
        func share(_ pages: UInt64, _ word: String) -> String {
            "\(Fixed.text(Double(pages) / Double(yield.pages) * 100, 1)) % \(word)"
        }
        return "\(yield.pages) pages, \(ByteText.text(yield.sentBytes)) sent, \(Fixed.text(each, 1)) bytes a page ("
            + [
                share(yield.identical, "identical"), share(yield.zero, "zero"), share(yield.delta, "delta"),
                share(yield.whole, "whole"),
            ].joined(separator: ", ") + ")"
    }

    /// The remembered checkpoints in at most eight runs, the newest last.
    private static func history(_ epochs: [RamInfo.EpochFigures]) -> [String] {
        let runs = min(8, epochs.count)
        guard runs > 1 else { return [] }
        return (0..<runs).map { run in
            let part = Array(epochs[epochs.count * run / runs..<epochs.count * (run + 1) / runs])
            let pages = part.reduce(0) { $0 &+ $1.yield.pages }
            let sent = part.reduce(0) { $0 &+ $1.yield.sentBytes }
            let each = pages > 0 ? Fixed.text(Double(sent) / Double(pages), 1) : "-"
            let name = "\(part[0].epoch)-\(part[part.count - 1].epoch)"
            return "checkpoints  \(name): \(rate(part)), \(each) bytes a page"
        }
    }

    /// Pages that changed in a second: mean, and the most of one checkpoint.
    private static func rate(_ epochs: [RamInfo.EpochFigures]) -> String {
        let timed = epochs.compactMap { epoch in
            epoch.millisecondsSinceLast.map { (pages: Double(epoch.yield.pages), seconds: max($0, 0.001) / 1000) }
        }
        let seconds = timed.reduce(0) { $0 + $1.seconds }
        guard seconds > 0 else { return "-" }
        let mean = timed.reduce(0) { $0 + $1.pages } / seconds
        let most = timed.map { $0.pages / $0.seconds }.max() ?? 0
        return "\(Fixed.text(mean, 0)) pages/s changed, at most \(Fixed.text(most, 0))"
    }

    static func lines(_ report: RamVerifyReport) -> [String] {
        var lines = ["guest        \(report.guest)"]
        if let first = report.firstEpoch, let last = report.lastEpoch {
            lines.append("checkpoints  \(first) to \(last)")
        }
        lines.append(
            "compared     \(report.pagesOfGuest) pages with the guest's memory, \(report.pagesOfCopy) with the agent's "
                + "copy")
        lines.append("different    \(report.differentPages)")
        for difference in report.differences {
            lines.append("differs      \(difference.block) offset \(difference.offset), checkpoint \(difference.epoch)")
        }
        return lines
    }
}
