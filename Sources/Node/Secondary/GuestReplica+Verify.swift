import AsyncIO
import BlockReplica
import Checkpointer
import FoundationEssentials
import Link
import Logging
import RamCache
import Units

/// Comparing disks and RAM with the running guest's, a run of blocks or pages at a time, while protection goes on.
///
/// The primary tells digests with a checkpoint; they are compared with that checkpoint here: disks through a view of it,
/// RAM in the moment in which the cache holds it.
extension GuestReplica {
    /// Blocks of 64 KiB that one question is about: 16 MiB.
    private static let runBlocks: UInt64 = 256
    /// How long an answer may take; the next checkpoints have to come by then.
    private static let answerSeconds: UInt64 = 90
    /// Attempts to mend what differs.
    private static let repairAttempts = 3

    private struct Interrupted: Error, CustomStringConvertible {
        let description: String
    }

    func verify(
        _ options: VerifyOptions, progress: @escaping @Sendable (VerifyProgress) -> Void
    ) async throws -> VerifyReport {
        var report = VerifyReport(guest: name)
        guard let ram = store.ram, let first = session, store.sessionHasCheckpoint else {
            report.isCommitted = false
            report.unavailable =
                session == nil
                ? "no primary is connected, so there is no running guest to compare with"
                : "the first checkpoint of this session is not committed yet"
            return report
        }
        guard !isVerifying else {
            throw GuestStore.Failed(description: "'\(name)' is being compared already; wait for that")
        }
        isVerifying = true
        verification = Verification()
        defer {
            isVerifying = false
            endVerification()
        }
        var cursor = openCursor(options, ram.layout)
        log.info(
            "comparison begun", metadata: ["guest": "\(name)", "disk": "\(cursor.disk)", "block": "\(cursor.block)"])
        do {
            try await verifyDisks(options, &cursor, first, progress)
            try await verifyRam(options, &cursor, first, ram.layout, progress)
            removeCursor()
        } catch {
            cursor.report.unavailable = "\(error)"
            save(cursor)
        }
        report = cursor.report
        tell(.comparison, report.summary)
        if report.found > 0 {
            log.error(
                "the replica differed from the guest",
                metadata: ["guest": "\(name)", "found": "\(report.found)", "mended": "\(report.repaired)"])
        } else {
            log.info(
                "comparison ended",
                metadata: ["guest": "\(name)", "result": "\(report.unavailable ?? "all is equal")"])
        }
        return report
    }

    /// Whoever asked has left.
    func stopVerification() {
        verification?.isStopped = true
        giveUpVerification("it was interrupted; 'colo-blk verify --resume' goes on from there")
    }

    /// Ends a wait for an answer, if there is one.
    func giveUpVerification(_ reason: String) {
        giveUpCheck(reason)
        guard let waiter = verification?.waiter else { return }
        verification?.waiter = nil
        waiter.resume(throwing: Interrupted(description: reason))
    }

    private func endVerification() {
        for answer in verification?.answers ?? [] { store.releaseViews(answer.epoch) }
        verification = nil
    }

    private func goOn(with session: LinkSession) throws {
        guard self.session === session else { throw Interrupted(description: "the primary left meanwhile") }
        if verification?.isStopped ?? true {
            throw Interrupted(description: "it was interrupted; 'colo-blk verify --resume' goes on from there")
        }
    }

    // MARK: Where it stands

    private func openCursor(_ options: VerifyOptions, _ layout: RamLayout) -> VerifyCursor {
        var cursor = VerifyCursor(
            shape: store.diskDescriptions.map(\.size) + layout.blocks.map(\.length), guestMemory: options.guestMemory,
            report: VerifyReport(guest: name))
        cursor.report.disks = store.diskDescriptions.map { VerifyReport.Disk(id: $0.id, bytes: $0.size) }
        cursor.report.ramPages = UInt64(layout.pageCount)
        guard options.resume,
            let bytes = try? WholeFile.read(cursorPath, limit: VerifyCursor.lengthMax),
            let old = try? JSONDecoder().decode(VerifyCursor.self, from: Data(bytes)), old.shape == cursor.shape,
            old.guestMemory == cursor.guestMemory, old.report.disks.map(\.id) == cursor.report.disks.map(\.id)
        else { return cursor }
        cursor = old
        cursor.report.unavailable = nil
        return cursor
    }

    private var cursorPath: String { "\(store.directory)/\(VerifyCursor.fileName)" }

    private func removeCursor() { try? Directory.removeFile(cursorPath) }

    private func save(_ cursor: VerifyCursor) {
        guard let bytes = try? JSONEncoder().encode(cursor) else { return }
        do {
            try WholeFile.write(cursorPath, Array(bytes), durable: false)
        } catch {
            log.warning("how far the comparison is could not be kept", metadata: ["reason": "\(error)"])
        }
    }

    private func tell(_ cursor: VerifyCursor, _ progress: (VerifyProgress) -> Void) {
        let report = cursor.report
        let disks = report.disks.reduce(UInt64(0)) { $0 + $1.bytes }
        let page = UInt64(Sizes.page)
        progress(
            VerifyProgress(
                doneBytes: report.disks.reduce(UInt64(0)) { $0 + $1.comparedBytes } + report.comparedPages * page,
                totalBytes: disks + report.ramPages * page, differences: report.found))
    }

    /// Waits until so many bytes may have been compared since `began`.
    private func pace(_ bytes: UInt64, since began: Moment, _ options: VerifyOptions) async throws {
        guard options.bytesPerSecond > 0 else { return }
        let due = Double(bytes) / Double(options.bytesPerSecond) * 1e9
        let spent = Double(MonotonicClock.now().nanoseconds(since: began))
        if due > spent { try await Task.sleep(for: .nanoseconds(Int64(due - spent))) }
    }

    // MARK: Disks

    private func verifyDisks(
        _ options: VerifyOptions, _ cursor: inout VerifyCursor, _ first: LinkSession,
        _ progress: @escaping @Sendable (VerifyProgress) -> Void
    ) async throws {
        var runs = 0
        while cursor.disk < cursor.report.disks.count {
            let size = cursor.report.disks[cursor.disk].bytes
            let count = (size - 1) / UInt64(BlockWatch.blockSize) + 1
            while cursor.block < count {
                try goOn(with: first)
                let began = MonotonicClock.now()
                let most = min(Self.runBlocks, max(1, options.bytesPerSecond / 4 / UInt64(BlockWatch.blockSize)))
                let run = options.bytesPerSecond == 0 ? Self.runBlocks : most
                let blocks = cursor.block..<min(cursor.block + run, count)
                try await verify(blocks, options, &cursor, first)
                cursor.block = blocks.upperBound
                runs += 1
                if runs % 16 == 0 { save(cursor) }
                tell(cursor, progress)
                try await pace(UInt64(blocks.count * BlockWatch.blockSize), since: began, options)
            }
            cursor.disk += 1
            cursor.block = 0
        }
    }

    private func verify(
        _ blocks: Range<UInt64>, _ options: VerifyOptions, _ cursor: inout VerifyCursor, _ first: LinkSession
    ) async throws {
        let disk = cursor.disk
        let size = cursor.report.disks[disk].bytes
        let blockSize = UInt64(BlockWatch.blockSize)
        var different = try await compare(disk, blocks, size, &cursor.report, first)
        let end = min(blocks.upperBound * blockSize, size)
        cursor.report.disks[disk].comparedBytes += end - blocks.lowerBound * blockSize
        guard !different.isEmpty else { return }
        let found = different
        for _ in 0..<Self.repairAttempts where options.repair && !different.isEmpty {
            for run in Self.runs(of: different.keys.sorted()) {
                first.send(
                    DiskVerify(action: .repair, disk: disk, first: run.lowerBound, count: UInt32(run.count)),
                    generation: store.generation)
            }
            var left: [UInt64: Epoch] = [:]
            for run in Self.runs(of: different.keys.sorted()) {
                left.merge(try await compare(disk, run, size, &cursor.report, first)) { $1 }
            }
            different = left
        }
        cursor.report.disks[disk].differentBlocks += UInt64(found.count)
        cursor.report.disks[disk].repairedBlocks += UInt64(found.count - different.count)
        for (block, epoch) in found.sorted(by: { $0.key < $1.key }) {
            cursor.report.add(
                .init(
                    disk: cursor.report.disks[disk].id, offset: block * blockSize,
                    length: min(blockSize, size - block * blockSize), epoch: epoch.rawValue,
                    repaired: different[block] == nil))
        }
    }

    /// Numbers behind each other as ranges.
    private static func runs(of blocks: [UInt64]) -> [Range<UInt64>] {
        var runs: [Range<UInt64>] = []
        for block in blocks {
            if let last = runs.last, last.upperBound == block {
                runs[runs.count - 1] = last.lowerBound..<block + 1
            } else {
                runs.append(block..<block + 1)
            }
        }
        return runs
    }

    /// Asks about blocks and compares what is answered. Returns those that differ, with the checkpoint that showed it.
    private func compare(
        _ disk: Int, _ blocks: Range<UInt64>, _ size: UInt64, _ report: inout VerifyReport, _ first: LinkSession
    ) async throws -> [UInt64: Epoch] {
        first.send(
            DiskVerify(action: .digest, disk: disk, first: blocks.lowerBound, count: UInt32(blocks.count)),
            generation: store.generation)
        var missing = Set(blocks)
        var different: [UInt64: Epoch] = [:]
        while !missing.isEmpty {
            try goOn(with: first)
            let answer = try await nextAnswer()
            defer { store.releaseViews(answer.epoch) }
            guard answer.check.disk == disk else { continue }
            switch answer.check.outcome {
            case .unavailable(let reason): throw Interrupted(description: reason)
            case .digests(let entries):
                for entry in entries where missing.contains(entry.block) {
                    if try await differs(entry, disk, size, answer.epoch) { different[entry.block] = answer.epoch }
                    missing.remove(entry.block)
                }
                report.saw(answer.epoch)
            }
        }
        return different
    }

    private func differs(_ entry: DiskCheck.Entry, _ disk: Int, _ size: UInt64, _ epoch: Epoch) async throws -> Bool {
        // The link's frames get their turn in between.
        await Task.yield()
        let start = entry.block * UInt64(BlockWatch.blockSize)
        let length = min(UInt64(BlockWatch.blockSize), size - start)
        let buffer = AlignedBuffer(minimumCount: BlockWatch.blockSize)
        // The slice does not keep it alive.
        defer { withExtendedLifetime(buffer) {} }
        let bytes = buffer.slice(0, Int(length))
        try store.readView(disk, epoch, ByteRange(offset: start, length: length), into: bytes)
        return BlockDigest.of(UnsafeRawBufferPointer(bytes)) != entry.digest
    }

    private func nextAnswer() async throws -> Verification.Answer {
        if verification?.answers.isEmpty ?? true {
            try await withCheckedThrowingContinuation { (continuation: CheckedContinuation<Void, any Error>) in
                verification?.waits += 1
                verification?.waiter = continuation
                let number = verification?.waits
                Task {
                    try? await Task.sleep(for: .seconds(Self.answerSeconds))
                    guard verification?.waits == number, verification?.waiter != nil else { return }
                    giveUpVerification("the primary told nothing about its disks for \(Self.answerSeconds) s")
                }
            }
        }
        guard verification?.answers.isEmpty == false, let answer = verification?.answers.removeFirst() else {
            throw Interrupted(description: "it was interrupted")
        }
        return answer
    }

    /// Digests have come, of an epoch that is not committed yet.
    func keep(_ check: DiskCheck, of epoch: Epoch) {
        verification?.arriving[epoch, default: []].append(check)
    }

    /// The epoch is committed; from now on a view of it can be held.
    func committedForVerification(_ epoch: Epoch) {
        guard let checks = verification?.arriving.removeValue(forKey: epoch) else { return }
        for check in checks {
            store.holdViews(epoch)
            verification?.answers.append(.init(epoch: epoch, check: check))
        }
        guard let waiter = verification?.waiter else { return }
        verification?.waiter = nil
        waiter.resume()
    }

    // MARK: RAM

    private func verifyRam(
        _ options: VerifyOptions, _ cursor: inout VerifyCursor, _ first: LinkSession, _ layout: RamLayout,
        _ progress: @escaping @Sendable (VerifyProgress) -> Void
    ) async throws {
        let asks = RamCheckPlan(layout: layout, guestMemory: options.guestMemory).asks
        while cursor.run < asks.count {
            try goOn(with: first)
            let began = MonotonicClock.now()
            let ask = asks[cursor.run]
            var result = try await compare(ask, with: first)
            if let reason = result.unavailable { throw Interrupted(description: reason) }
            cursor.report.saw(result.epoch)
            let found = result
            for _ in 0..<Self.repairAttempts where options.repair && !result.different.isEmpty {
                for start in stride(from: 0, to: result.different.count, by: LinkLimits.repairPagesMax) {
                    let pages = result.different[start...].prefix(LinkLimits.repairPagesMax).map { UInt64($0) }
                    first.send(RamRepair(source: ask.source, pages: pages), generation: store.generation)
                }
                result = try await compare(ask, with: first)
                if let reason = result.unavailable { throw Interrupted(description: reason) }
                cursor.report.saw(result.epoch)
            }
            take(found, after: result, ask, layout, &cursor.report)
            cursor.run += 1
            save(cursor)
            tell(cursor, progress)
            try await pace(UInt64(ask.count) * UInt64(Sizes.page), since: began, options)
        }
    }

    private func take(
        _ found: RamCheck.Result, after result: RamCheck.Result, _ ask: RamVerify, _ layout: RamLayout,
        _ report: inout VerifyReport
    ) {
        report.comparedPages += UInt64(ask.count)
        report.differentPages += UInt64(found.different.count)
        let left = Set(result.different)
        report.repairedPages += UInt64(found.different.filter { !left.contains($0) }.count)
        for page in found.different {
            let place = layout.location(ofGlobalPage: page)
            report.add(
                .init(
                    ramBlock: layout.blocks[place.block].name, offset: place.page * UInt64(Sizes.page),
                    length: UInt64(Sizes.page), epoch: found.epoch.rawValue, repaired: !left.contains(page)))
        }
    }
}
