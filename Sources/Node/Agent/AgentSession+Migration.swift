import Checkpointer
import NIOCore
import NIOPosix
import QEMU
import Units

/// RAM and device state: COLO entry, and the progress line for as long as it runs.
extension AgentSession {
    func startMigration(
        _ guest: ProtectedGuest, _ core: NIOLoopBound<AgentCore>, _ directory: SocketDirectory
    ) async throws {
        let server = try await ServerBootstrap(group: loop)
            .childChannelOption(.recvAllocator, value: FixedSizeRecvByteBufferAllocator(capacity: 512 << 10))
            .childChannelOption(.maxMessagesPerRead, value: 16)
            .childChannelInitializer { channel in
                channel.eventLoop.makeCompletedFuture {
                    try channel.pipeline.syncOperations.addHandler(MigrationHandler(core: core.value))
                }
            }
            .bind(unixDomainSocketPath: directory.path("ram.sock")).get()
        directory.protect("ram.sock")
        _ = server
        var capabilities: [JSONValue] = []
        for entry in try await relay.execute("query-migrate-capabilities").arrayValue ?? [] {
            guard let name = entry["capability"]?.stringValue, let state = entry["state"]?.boolValue else { continue }
            let wanted = name == "x-colo"
            if state != wanted { capabilities.append(["capability": .string(name), "state": .bool(wanted)]) }
        }
        if !capabilities.isEmpty {
            try await relay.execute("migrate-set-capabilities", ["capabilities": .array(capabilities)])
        }
        var finalRound = FinalRound(budget: UInt64(options.budgetBytes))
        try await relay.execute(
            "migrate-set-parameters",
            [
                "x-checkpoint-delay": .integer(Self.quietCheckpointDelayMilliseconds),
                "max-bandwidth": .integer(1 << 40),
                SavedGuestState.downtimeLimit: .whole(finalRound.limit),
            ])
        try await loop.submit { core.value.life.entering(at: MonotonicClock.wallNanoseconds()) }.get()
        try await relay.execute("migrate", ["uri": .string("unix:\(directory.path("ram.sock"))")])
        try await expectSameMachine(guest)
        while try await !loop.submit({ core.value.running }).get() {
            try await Task.sleep(for: .milliseconds(50))
            try Task.checkCancellation()
            let answer = try await relay.execute("query-migrate")
            let status = answer["status"]?.stringValue ?? "none"
            let ram = answer["ram"]
            switch status {
            case "failed", "cancelled":
                let detail = answer["error-desc"]?.stringValue ?? "no reason given"
                throw Refused(description: "QEMU could not copy the guest's RAM: \(detail)")
            case "completed":
                throw Refused(
                    description:
                        "this QEMU ended the migration instead of entering COLO, as 10.0.0 to 10.1.x are known to "
                        + "do; the guest runs on; see docs/qemu-versions.md for versions that work")
            default:
                let total = ram?["total"]?.uintValue ?? 0
                let left = ram?["remaining"]?.uintValue ?? total
                progress.show("copying RAM    \(Percent.text(total - min(total, left), of: total))")
                let speed = UInt64(max(0, min(ram?["mbps"]?.doubleValue ?? 0, 1e9)) * 125_000)
                // While the secondary tells what it holds nothing is read.
                let isFlowing = try await loop.submit { core.value.isRamKnown }.get()
                if status == "active", isFlowing, let limit = finalRound.noted(bytesPerSecond: speed) {
                    try await relay.execute("migrate-set-parameters", [SavedGuestState.downtimeLimit: .whole(limit)])
                }
            }
        }
        // Of no use from now on, and nobody would know it if we and the guardian died.
        let before = relay.hello.saved.parameters[SavedGuestState.downtimeLimit] ?? SavedGuestState.downtimeLimitDefault
        try await relay.execute("migrate-set-parameters", [SavedGuestState.downtimeLimit: .whole(before)])
        progress.say("RAM copied; the first checkpoint is on its way to the secondary")
    }

    func showProgress(_ core: NIOLoopBound<AgentCore>, _ guest: ProtectedGuest) async {
        var saidFirst = false
        while !Task.isCancelled {
            guard let figures = try? await loop.submit({ core.value.currentFigures }).get() else { return }
            if figures.committed != .none, !saidFirst {
                saidFirst = true
                let sent = try? await loop.submit { core.value.sentTotal }.get()
                progress.protected(figures, sent: sent ?? 0)
            }
            let halted = try? await loop.submit { core.value.haltWords }.get()
            progress.show((halted ?? nil) ?? ProgressLine.running(figures))
            try? await Task.sleep(for: .milliseconds(200))
        }
    }
}

enum ProgressLine {
    static func running(_ figures: AgentFigures) -> String {
        let epoch = figures.committed == .none ? "-" : "\(figures.committed)"
        return "epoch \(epoch)"
            + "  pause \(Fixed.text(Double(figures.lastPauseNanoseconds) / 1e6, 1)) ms"
            + "  dirty \(figures.lastDirtyPages) pages"
            + "  sent \(ByteText.text(figures.lastEpochBytes))"
            + "  lag \(Fixed.text(Double(figures.lastCommitLagNanoseconds) / 1e6, 1)) ms"
            + (figures.uncommitted > 1 ? "  \(figures.uncommitted) uncommitted" : "")
            + (figures.pauseShare.map { "  paused \(Fixed.text($0 * 100, 1)) %" } ?? "")
            + (figures.network.map(held) ?? "")
    }

    private static func held(_ network: NetworkFigures) -> String {
        func ms(_ nanoseconds: UInt64) -> String { Fixed.text(Double(nanoseconds) / 1e6, 1) }
        let times = network.times.map { " for \(ms($0.median)) ms, p95 \(ms($0.p95)), max \(ms($0.longest))" }
        return "  held \(network.packets) packets (\(ByteText.text(network.bytes)))\(times ?? "")"
            + (network.dropped > 0 ? ", \(network.dropped) dropped" : "")
    }
}
