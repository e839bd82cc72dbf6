import BlockReplica
import Logging
import NBD
import NIOCore
import NIOPosix
import QEMU
import Units

/// Disks: one NBD export per disk, a mirror job into each, the initial copy within the budget.
extension AgentSession {
    /// Bytes that a mirror copies at least: whole blocks of ``KnownBlocks``, so that each is compared as a whole.
    private static let mirrorGranularity: UInt64 = 64 << 10

    /// Waits until the secondary has told what its disks hold. It reads them for that, but for holes.
    func compareDisks(_ guest: ProtectedGuest, _ core: NIOLoopBound<AgentCore>) async throws {
        while true {
            let (isDone, comparison) = try await loop.submit { (core.value.isCompared, core.value.comparison) }.get()
            if isDone { return }
            progress.show(
                "comparing disks  \(Percent.text(UInt64(comparison.described), of: UInt64(comparison.total)))")
            try await Task.sleep(for: .milliseconds(50))
            try Task.checkCancellation()
        }
    }

    /// Tells the secondary of the zeroes that were held back, as fast as it takes them.
    private func settle(_ core: NIOLoopBound<AgentCore>) async throws {
        while true {
            let (isDone, mustWait) = try await loop.submit {
                core.value.wantsLessInput ? (false, true) : (core.value.settle(ranges: 4096), false)
            }.get()
            if isDone { return }
            if mustWait { try await Task.sleep(for: .milliseconds(10)) }
            try Task.checkCancellation()
        }
    }

    func mirrorDisks(
        _ guest: ProtectedGuest, _ core: NIOLoopBound<AgentCore>, _ directory: SocketDirectory
    ) async throws {
        guard !guest.disks.isEmpty else {
            progress.say("no writable disk: RAM and device state only")
            return
        }
        let exports = guest.disks.map { disk in
            NBDExport(
                name: disk.id, size: disk.size, flags: [.flush, .fua, .trim, .writeZeroes],
                blockMin: UInt32(Sizes.sector))
        }
        let server = try await ServerBootstrap(group: loop)
            .childChannelOption(.recvAllocator, value: FixedSizeRecvByteBufferAllocator(capacity: 256 << 10))
            .childChannelInitializer { channel in
                channel.eventLoop.makeCompletedFuture {
                    try channel.pipeline.syncOperations.addHandler(NBDHandler(core: core.value, exports: exports))
                }
            }
            .bind(unixDomainSocketPath: directory.path("nbd.sock")).get()
        directory.protect("nbd.sock")
        _ = server
        for (index, disk) in guest.disks.enumerated() {
            var node: JSONValue = [
                "driver": "nbd", "node-name": .string(GuestNames.nbdNode(index)), "export": .string(disk.id),
                "server": ["type": "unix", "path": .string(directory.path("nbd.sock"))],
            ]
            if disk.discards, case .object(var members) = node {
                members["discard"] = "unmap"
                node = .object(members)
            }
            try await relay.execute("blockdev-add", node)
            // An error of the target is the end of the session, and pauses the mirror: see GuestRestoration+Jobs.
            try await relay.execute(
                "blockdev-mirror",
                [
                    "job-id": .string(GuestNames.mirrorJob(index)), "device": .string(disk.node),
                    "target": .string(GuestNames.nbdNode(index)), "sync": "full", "copy-mode": "write-blocking",
                    "granularity": .whole(Self.mirrorGranularity),
                    "on-target-error": "stop", "filter-node-name": .string(GuestNames.filterNode(index)),
                    "speed": .whole(firstSpeed),
                ])
        }
        try await followInitialCopy(guest, core)
    }

    /// Waits until all mirrors are ready. The speed of the jobs follows what the secondary takes, so that the initial
    /// copy alone never fills the budget.
    private func followInitialCopy(_ guest: ProtectedGuest, _ core: NIOLoopBound<AgentCore>) async throws {
        let total = guest.disks.reduce(UInt64(0)) { $0 + $1.size }
        var meter = RateMeter()
        var speed = firstSpeed
        while true {
            try await Task.sleep(for: .milliseconds(100))
            try Task.checkCancellation()
            let jobs = try await relay.execute("query-block-jobs").arrayValue ?? []
            let ours = jobs.filter { GuestNames.isOurs($0["device"]?.stringValue ?? "") }
            guard ours.count == guest.disks.count else {
                throw Refused(description: "a mirror job ended during the initial copy; see the guest's QEMU log")
            }
            let left = ours.reduce(UInt64(0)) { sum, job in
                let length = job["len"]?.uintValue ?? 0
                return sum + (length - min(length, job["offset"]?.uintValue ?? 0))
            }
            let (figures, skipped, lag) = try await loop.submit {
                (core.value.figures, core.value.skippedBytes, core.value.linkLag)
            }.get()
            let had = skipped == 0 ? "" : "  skipped \(ByteText.text(skipped))"
            if ours.allSatisfy({ $0["ready"]?.boolValue == true }) {
                try await settle(core)
                let sent = try await loop.submit { core.value.sentTotal }.get()
                log.info(
                    "initial copy of disks",
                    metadata: ["disks": "\(total)", "skipped": "\(skipped)", "sent": "\(sent)"])
                let saved = skipped == 0 ? "" : "; \(ByteText.text(skipped)) of them were there already"
                progress.say("disks copied: \(ByteText.text(total)) in \(guest.disks.count) disk(s)\(saved)")
                // From now on every guest write is mirrored before it completes; nothing is left to slow down.
                for index in guest.disks.indices { try await setSpeed(0, index) }
                return
            }
            let done = total - min(total, left)
            meter.add(done)
            progress.show(
                "copying disks  \(Percent.text(done, of: total))  \(ByteText.text(meter.bytesPerSecond))/s\(had)")
            let wanted = CopySpeed.next(
                current: speed, outstanding: figures.outstandingBytes, budget: UInt64(options.budgetBytes),
                lag: lag)
            if wanted != speed {
                speed = wanted
                for index in guest.disks.indices {
                    try await setSpeed(max(1, speed / UInt64(guest.disks.count)), index)
                }
            }
        }
    }

    /// Bytes in a second for a start, of each disk.
    private var firstSpeed: UInt64 { min(UInt64(options.budgetBytes / 4), options.bandwidth ?? .max) }

    private func setSpeed(_ speed: UInt64, _ index: Int) async throws {
        do {
            try await relay.execute(
                "block-job-set-speed", ["device": .string(GuestNames.mirrorJob(index)), "speed": .whole(speed)])
        } catch QMPError.refused {
            // The job has just ended; whoever counts the jobs says so.
        }
    }
}

/// The speed of the initial copy, from how much of the budget is in use and how far the secondary is behind. Set ten
/// times a second.
enum CopySpeed {
    /// One block of the mirror in a second: no link is slower than this and of use.
    static let least: UInt64 = 64 << 10

    /// Bytes per second for the next tenth of a second.
    ///
    /// - Parameter lag: nanoseconds since the oldest byte was sent that the secondary has not taken in.
    static func next(current: UInt64, outstanding: UInt64, budget: UInt64, lag: UInt64 = 0) -> UInt64 {
        let most = budget * 2
        if outstanding > budget / 2 || lag > 1_000_000_000 { return max(least, current / 4) }
        if outstanding > budget / 4 || lag > 300_000_000 { return max(least, current * 3 / 4) }
        return min(most, current * 5 / 4)
    }
}

/// Bytes per second over the last two seconds or so.
struct RateMeter {
    private var samples: [(at: Moment, bytes: UInt64)] = []

    mutating func add(_ bytes: UInt64) {
        samples.append((MonotonicClock.now(), bytes))
        if samples.count > 20 { samples.removeFirst() }
    }

    var bytesPerSecond: UInt64 {
        guard let first = samples.first, let last = samples.last else { return 0 }
        let time = last.at.nanoseconds(since: first.at)
        guard time > 0, last.bytes > first.bytes else { return 0 }
        return UInt64(Double(last.bytes - first.bytes) / Double(time) * 1e9)
    }
}
