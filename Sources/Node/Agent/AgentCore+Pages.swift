import Checkpointer
import Link
import Logging
import NIOCore
import QEMU
import RamCache
import Units

/// Pages on their way from QEMU to the encoder, and what is said about them on the link.
extension AgentCore {
    /// Chunks that may be on their way to the encoder while a checkpoint comes in; beyond it the socket is left alone,
    /// and the guest waits for the encoder. In bytes the same as the link's budget.
    var chunksMax: Int { max(64, Int(settings.budgetBytes) / PageChunk.bytes) }

    /// Chunks that wait for the end of the guest's pause: while QEMU hands over its pages it gets the processors, and neither
    /// encoding nor the link takes part. A checkpoint of more than half of the budget is encoded as it comes.
    private var heldChunksMax: Int { chunksMax / 2 }

    /// Free chunks that are kept: a checkpoint of 20,000 pages takes no memory from the kernel.
    private static let freeChunksMax = 320

    @inline(__always)
    func take(block: Int, page: UInt32, data: UnsafeRawPointer?) {
        dirtyPages += 1
        let lane = RamEncoder.lane(ofPage: page)
        let chunk = chunks[lane]
        if let data {
            chunk.append(block: UInt16(block), page: page, data: data)
        } else {
            chunk.appendZero(block: UInt16(block), page: page)
        }
        if chunk.isFull { chunkIsFull(lane: lane) }
    }

    private func chunkIsFull(lane: Int) {
        let epoch = streamEpoch
        guard running || !isRamKnown else { return submitChunk(lane: lane, epoch: epoch) }
        heldChunks.append((chunks[lane], lane))
        chunks[lane] = freeChunks.popLast() ?? PageChunk()
        if heldChunks.count > heldChunksMax, isRamKnown { submitHeld(epoch: epoch) }
    }

    /// The secondary tells what its RAM cache holds. The initial copy waits for that; QEMU's socket is left alone.
    func take(_ told: RamKnown) {
        guard let layout else { return }
        let known = knownPages ?? KnownPages(layout)
        knownPages = known
        if let wrong = known.describe(told) {
            return end(.linkLost("what the secondary says of its memory is wrong: \(wrong)"))
        }
        guard told.isLast else { return }
        if !known.isEmpty { encoder.setKnown(known) }
        knownPages = nil
        submitChunks(epoch: streamEpoch)
        if let state = waitingState {
            waitingState = nil
            completeEpoch(deviceState: state)
        }
        onPressureChange()
    }

    private func submitHeld(epoch: Epoch) {
        for held in heldChunks { submit(held.chunk, lane: held.lane, epoch: epoch) }
        heldChunks.removeAll(keepingCapacity: true)
    }

    func submitChunks(epoch: Epoch) {
        guard isRamKnown else { return }
        submitHeld(epoch: epoch)
        for lane in chunks.indices { submitChunk(lane: lane, epoch: epoch) }
    }

    private func submitChunk(lane: Int, epoch: Epoch) {
        let full = chunks[lane]
        guard !full.isEmpty else { return }
        chunks[lane] = freeChunks.popLast() ?? PageChunk()
        submit(full, lane: lane, epoch: epoch)
    }

    private func submit(_ full: PageChunk, lane: Int, epoch: Epoch) {
        chunksInFlight += 1
        let bound = NIOLoopBound(self, eventLoop: loop)
        let loop = loop
        encoder.encode(full, lane: lane, epoch: epoch) { output in
            loop.execute {
                bound.value.sendBatch(output)
                bound.value.flush()
            }
        } done: { chunk in
            loop.execute { bound.value.recycle(chunk) }
        }
    }

    private func recycle(_ chunk: PageChunk) {
        chunk.removeAll()
        chunksInFlight -= 1
        if freeChunks.count < Self.freeChunksMax { freeChunks.append(chunk) }
        onPressureChange()
    }

    // MARK: The end of an epoch's RAM

    /// All of a checkpoint is in our memory, and the guest stands still until we say that it may go on. What of its disks
    /// and its own memory can only be read now is read first.
    func checkpointArrived(deviceState: [UInt8]) {
        guard !isAcknowledgedAhead else {
            // Owing an acknowledgement is over, if the whole checkpoint came at once.
            owed = .nothing
            pauseEnded()
            return completeEpoch(deviceState: deviceState)
        }
        var isLate = false
        readDisksInPause { [self] in
            readMemoryInPause { [self] in
                completeEpoch(deviceState: deviceState)
                owed = .acknowledge
                if isLate { onOwed() }
            }
        }
        isLate = true
    }

    /// Whether something must be read while the guest stands still, so that QEMU is not to be let go ahead.
    var needsPause: Bool {
        wantedCheck?.source == .guest || wantedRepair?.source == .guest
            || (checking.readers != nil && !(checking.repairs.isEmpty && !checking.hasRestless))
    }

    /// Digests of the guest's own memory, and pages of it that are to be sent whole.
    private func readMemoryInPause(_ done: @escaping () -> Void) {
        let check = wantedCheck.flatMap { $0.source == .guest ? $0 : nil }
        let repair = wantedRepair.flatMap { $0.source == .guest ? $0 : nil }
        guard let layout, check != nil || repair != nil else { return done() }
        let memory = guestMemory
        let finish = NIOLoopBound(done, eventLoop: loop)
        let bound = NIOLoopBound(self, eventLoop: loop)
        let loop = loop
        _ = BlockingTask.run(label: "colo-blk.compare") {
            let answer = check.map { ask in
                RamDigests(ask: ask, outcome: GuestMemory.answer(ask, layout: layout, memory: memory))
            }
            let pages = repair.flatMap { repair in try? memory?.get().pages(repair.pages, layout: layout) }
            loop.execute {
                let core = bound.value
                core.guestAnswer = answer
                core.repairPages = pages
                finish.value()
            }
        }
    }

    /// The encoder is done with an epoch.
    func ramEnded(_ statistics: PageBatchEncoder.Statistics, deviceState: [UInt8]) {
        let figures = RamFigures(from: encoded, to: statistics)
        encoded = statistics
        if streamEpoch == settings.firstEpoch {
            self.figures.firstIdentical = figures.identical
            log.info(
                "initial copy of RAM",
                metadata: ["pages": "\(figures.pages)", "known": "\(figures.identical)", "sent": "\(figures.bytes)"])
        }
        guard let check = wantedCheck, streamEpoch > settings.firstEpoch else {
            return finish(figures, nil, deviceState: deviceState)
        }
        if let answer = guestAnswer {
            return finish(figures, answer, deviceState: deviceState)
        }
        // The question may have come while a checkpoint was under way whose memory was not read: the next one answers.
        guard check.source == .copy, let layout else { return finish(figures, nil, deviceState: deviceState) }
        let bound = NIOLoopBound(self, eventLoop: loop)
        let loop = loop
        encoder.digests(first: Int(check.first), count: Int(check.count), layout: layout) { values in
            loop.execute {
                let answer = RamDigests(ask: check, outcome: .digests(values))
                bound.value.finish(figures, answer, deviceState: deviceState)
            }
        }
    }

    private func finish(_ figures: RamFigures, _ answer: RamDigests?, deviceState: [UInt8]) {
        if let answer {
            wantedCheck = nil
            guestAnswer = nil
            sendDigests(answer)
        }
        sendDiskChecks()
        sendFigures(figures)
        sendPrimaryFigures()
        seal(deviceState: deviceState)
    }

    private func sendPrimaryFigures() {
        guard let epoch = tag({ machine throws(ProtocolViolation) in try machine.sendPrimaryFigures() }) else { return }
        var own = PrimaryFigures()
        own.pauseNanoseconds = figures.lastPauseNanoseconds
        own.dirtyPages = UInt64(figures.lastDirtyPages)
        own.outstandingBytes = outstandingBytes
        own.lagNanoseconds = figures.lastCommitLagNanoseconds
        own.intervalNanoseconds = settings.intervalNanoseconds
        let current = currentFigures
        own.pausedMillionths = UInt64((current.pauseShare ?? 0) * 1e6)
        if let network = current.network {
            own.network = network.isInForce ? 2 : 1
            own.heldPackets = UInt64(network.packets)
            own.droppedPackets = network.dropped
            own.holdMedianNanoseconds = network.times?.median ?? 0
            own.holdP95Nanoseconds = network.times?.p95 ?? 0
            own.holdLongestNanoseconds = network.times?.longest ?? 0
        }
        sendPayload(own, epoch: epoch)
    }

    // MARK: Mending

    /// The secondary wants pages whole. They come with the next checkpoint.
    func repairRam(_ repair: RamRepair) {
        guard let layout, repair.pages.allSatisfy({ $0 < UInt64(layout.pageCount) }) else {
            return end(.linkLost("the secondary asks for pages that the guest has not"))
        }
        guard repair.source == .guest else {
            wantedRepair = repair
            return
        }
        let bound = NIOLoopBound(self, eventLoop: loop)
        locateGuestMemory { result in
            bound.value.guestMemory = result
            bound.value.wantedRepair = repair
        }
    }

    /// Behind all other pages of the epoch, so that they are what the secondary has in the end.
    func resendPages(_ epoch: Epoch) {
        guard let repair = wantedRepair, let layout, epoch > settings.firstEpoch else { return }
        // Asked for while a checkpoint was under way whose memory was not read: the next one has it.
        guard repair.source == .copy || repairPages != nil else { return }
        wantedRepair = nil
        let contents = repairPages
        repairPages = nil
        let bound = NIOLoopBound(self, eventLoop: loop)
        let loop = loop
        let places = repair.pages.map { layout.location(ofGlobalPage: Int($0)) }
        encoder.resend(places.map { (UInt16($0.block), UInt32($0.page)) }, contents: contents, epoch: epoch) { output in
            loop.execute { bound.value.sendBatch(output) }
        }
    }

    // MARK: Comparing

    /// The secondary asks for page digests. They are of the next checkpoint.
    func verifyRam(_ ask: RamVerify) {
        guard let layout, ask.first <= UInt64(layout.pageCount),
            UInt64(ask.count) <= UInt64(layout.pageCount) - ask.first
        else {
            return end(.linkLost("the secondary asks for pages \(ask.first) + \(ask.count), which the guest has not"))
        }
        guard ask.source == .guest else {
            wantedCheck = ask
            return
        }
        let bound = NIOLoopBound(self, eventLoop: loop)
        locateGuestMemory { result in
            bound.value.guestMemory = result
            bound.value.wantedCheck = ask
        }
    }
}

extension RamFigures {
    /// What came between two states of the same counters.
    init(from old: PageBatchEncoder.Statistics, to new: PageBatchEncoder.Statistics) {
        self.init()
        pages = new.pages - old.pages
        identical = new.identical - old.identical
        zero = new.zero - old.zero
        delta = new.delta - old.delta
        raw = new.raw - old.raw
        rawBytes = new.rawBytes - old.rawBytes
        bytes = new.bytes - old.bytes
    }
}
