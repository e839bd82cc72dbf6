import BlockReplica
import Checkpointer
import Link
import Logging
import NIOCore
import Units

/// Comparing and mending the secondary's disks: the guest's disks are read while it runs, and what was read is told with
/// the first checkpoint at whose end it holds; see ``BlockWatch``.
extension AgentCore {
    /// The secondary asks about blocks of a disk.
    func verifyDisk(_ ask: DiskVerify) {
        guard settings.diskSizes.indices.contains(ask.disk) else {
            return end(.linkLost("the secondary asks about disk \(ask.disk), which the guest has not"))
        }
        let size = settings.diskSizes[ask.disk]
        let blocks = (size - 1) / UInt64(BlockWatch.blockSize) + 1
        guard ask.first < blocks, UInt64(ask.count) <= blocks - ask.first else {
            return end(
                .linkLost(
                    "the secondary asks about blocks \(ask.first) + \(ask.count) of disk \(ask.disk), of \(blocks)"))
        }
        checking.lastUse = MonotonicClock.now()
        switch ask.action {
        case .digest:
            checking.number += 1
            checking.disk = ask.disk
            checking.watch = BlockWatch(diskSize: size, first: ask.first, count: Int(ask.count))
            checking.answers = []
        case .repair:
            for block in ask.first..<ask.first + UInt64(ask.count)
            where checking.repairs.count < DiskChecking.repairsMax {
                checking.repairs.append(.init(disk: ask.disk, block: block))
            }
        }
        openReaders()
    }

    private func openReaders() {
        guard checking.readers == nil else { return readOn() }
        guard !checking.isOpening else { return }
        checking.isOpening = true
        let bound = NIOLoopBound(self, eventLoop: loop)
        openDiskReaders { result in
            let core = bound.value
            core.checking.isOpening = false
            switch result {
            case .success(let readers):
                core.checking.readers = readers
                core.readOn()
            case .failure(let failed): core.giveUpDiskCheck("\(failed)")
            }
        }
    }

    private func giveUpDiskCheck(_ reason: String) {
        checking.unavailable = reason
        checking.watch = nil
        checking.repairs = []
        checking.readers?.forEach { $0.close() }
        checking.readers = nil
    }

    /// Reads the next blocks, when there are any and nothing is being read.
    private func readOn() {
        guard !hasEnded, !checking.isReading, let reader = checking.readers?[checking.disk],
            let blocks = checking.watch?.take(atMost: DiskReader.readMax / BlockWatch.blockSize)
        else { return }
        checking.isReading = true
        let number = checking.number
        let bound = NIOLoopBound(self, eventLoop: loop)
        let loop = loop
        reader.read(byteRange(blocks, of: checking.disk)) { result in
            let found = result.map { bytes in
                stride(from: 0, to: bytes.count, by: BlockWatch.blockSize).map { start in
                    let end = min(start + BlockWatch.blockSize, bytes.count)
                    return BlockDigest.of(UnsafeRawBufferPointer(rebasing: bytes[start..<end]))
                }
            }
            loop.execute { bound.value.readEnded(number, blocks, found) }
        }
    }

    private func byteRange(_ blocks: Range<UInt64>, of disk: Int) -> ByteRange {
        let start = blocks.lowerBound * UInt64(BlockWatch.blockSize)
        let end = min(blocks.upperBound * UInt64(BlockWatch.blockSize), settings.diskSizes[disk])
        return ByteRange(offset: start, length: end - start)
    }

    private func readEnded(_ number: Int, _ blocks: Range<UInt64>, _ found: Result<[BlockDigest], any Error>) {
        checking.isReading = false
        if number == checking.number {
            switch found {
            case .success(let digests):
                for (block, digest) in zip(blocks, digests) { checking.watch?.finished(block, digest) }
            case .failure(let error): return giveUpDiskCheck("\(error)")
            }
        }
        readOn()
    }

    /// The boundary of an epoch: what is ready is told with it.
    func harvestDiskCheck() {
        guard checking.watch != nil else { return }
        // What is still to be written again is not told before it was.
        for repair in checking.repairs where repair.disk == checking.disk {
            checking.watch?.touched(byteRange(repair.block..<repair.block + 1, of: repair.disk))
        }
        for found in checking.watch?.boundary() ?? [] {
            checking.answers.append(.init(block: found.block, digest: found.digest))
        }
        readOn()
    }

    // MARK: While the guest stands still

    /// Reads what can only be read now, and writes again what the secondary wants to have again; then calls `done`. After
    /// ``DiskChecking/pauseLimit`` milliseconds it is called in any case: the guest waits.
    func readDisksInPause(_ done: @escaping () -> Void) {
        guard let readers = checking.readers, checking.isBusy else { return done() }
        var places = checking.repairs.prefix(DiskChecking.pauseBlocks).map { ($0, isRepair: true) }
        for block in checking.watch?.restless(atMost: DiskChecking.pauseBlocks - places.count) ?? [] {
            places.append((DiskChecking.Repair(disk: checking.disk, block: block), isRepair: false))
        }
        guard !places.isEmpty else { return done() }
        checking.pause += 1
        let pause = checking.pause
        var left = places.count
        func finishOne() {
            left -= 1
            guard left == 0 else { return }
            checking.pause += 1
            done()
        }
        let finish = NIOLoopBound(finishOne, eventLoop: loop)
        let late = NIOLoopBound(done, eventLoop: loop)
        let bound = NIOLoopBound(self, eventLoop: loop)
        let loop = loop
        loop.scheduleTask(in: .milliseconds(DiskChecking.pauseLimit)) {
            let core = bound.value
            guard core.checking.pause == pause else { return }
            core.checking.pause += 1
            core.log.warning("the guest's disk could not be read in time; it goes on, and the comparison later")
            late.value()
        }
        for (place, isRepair) in places {
            readers[place.disk].read(byteRange(place.block..<place.block + 1, of: place.disk)) { result in
                let found = result.map { [UInt8]($0) }
                loop.execute {
                    let core = bound.value
                    guard core.checking.pause == pause else { return }
                    switch found {
                    case .success(let bytes): core.took(bytes, of: place, isRepair: isRepair)
                    case .failure(let error): core.giveUpDiskCheck("\(error)")
                    }
                    finish.value()
                }
            }
        }
    }

    private func took(_ bytes: [UInt8], of place: DiskChecking.Repair, isRepair: Bool) {
        let range = byteRange(place.block..<place.block + 1, of: place.disk)
        guard isRepair else {
            let digest = bytes.withUnsafeBytes { BlockDigest.of($0) }
            checking.answers.append(.init(block: place.block, digest: digest))
            checking.watch?.tellRestless(place.block)
            return
        }
        checking.repairs.removeAll { $0 == place }
        // The guest stands still: nothing of the open epoch was written before, and what comes later is newer.
        bytes.withUnsafeBytes { sendData(place.disk, range.offset, $0) }
        checking.touched(disk: place.disk, range)
    }

    // MARK: Telling

    /// Tells with the epoch that is being completed what was found at its boundary.
    func sendDiskChecks() {
        if let reason = checking.unavailable {
            checking.unavailable = nil
            checking.answers = []
            return send(check: DiskCheck(disk: checking.disk, outcome: .unavailable(reason)))
        }
        while !checking.answers.isEmpty {
            let entries = Array(checking.answers.prefix(LinkLimits.verifyBlocksMax))
            checking.answers.removeFirst(entries.count)
            send(check: DiskCheck(disk: checking.disk, outcome: .digests(entries)))
        }
    }

    private func send(check: DiskCheck) {
        guard let epoch = tag({ machine throws(ProtocolViolation) in try machine.sendDiskCheck() }) else { return }
        sendPayload(check, epoch: epoch)
    }

    /// Called with every beat: nobody has asked for a while, and QEMU's server is not needed.
    func closeIdleReaders() {
        guard let readers = checking.readers, !checking.isBusy, !checking.isReading,
            MonotonicClock.now().nanoseconds(since: checking.lastUse) > DiskChecking.idleNanoseconds
        else { return }
        for reader in readers { reader.close() }
        checking.readers = nil
        closeDiskReaders()
    }
}
