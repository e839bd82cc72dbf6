import BlockReplica
import Checkpointer
import Link
import NIOCore
import Units

/// The guest's disks: what the mirrors write becomes frames of the epoch that is open, as far as it has to travel.
extension AgentCore {
    /// Digests of the secondary's blocks that are kept for a guest: 8,388,608 of 16 bytes, or 128 MiB, which describe
    /// 512 GiB of data. Blocks beyond are sent whether they differ or not.
    static let digestsMax = 8 << 20
    /// Once the initial copy is done: blocks of this size that are all zero travel as zeroes.
    private static let zeroBlockSize = 64 << 10

    // MARK: What the secondary holds

    /// The secondary tells what it holds of a disk. Returns what is wrong with it, or nil.
    func describe(_ digests: DiskDigests) -> String? {
        do throws(KnownBlocks.Malformed) {
            var first = digests.first
            for run in digests.runs {
                guard known.indices.contains(digests.disk) else {
                    return "it describes disk \(digests.disk) of \(known.count)"
                }
                switch run {
                case .zeroes(let count): try known[digests.disk].describe(zeroes: count, from: first)
                case .data(let found): try known[digests.disk].describe(found, from: first)
                }
                first += UInt64(run.count)
            }
        } catch {
            return "of disk \(digests.disk), \(error)"
        }
        guard digests.isLast else { return nil }
        if let missing = known.firstIndex(where: { !$0.isComplete }) {
            let disk = known[missing]
            return "it describes \(disk.described) of the \(disk.blockCount) blocks of disk \(missing)"
        }
        isCompared = true
        return nil
    }

    /// Blocks that the secondary has described, and how many there are.
    var comparison: (described: Int, total: Int) {
        (known.reduce(0) { $0 + $1.described }, known.reduce(0) { $0 + $1.blockCount })
    }

    /// The initial copy is done: tells the secondary of zeroes that were held back, at most `ranges` of them. True when
    /// there are no more; from then on every write travels.
    func settle(ranges: Int) -> Bool {
        for disk in known.indices {
            let held = known[disk].takeHeld(ranges: ranges)
            for range in held { sendExtent(.zeroes(disk: disk, range: range)) }
            guard held.isEmpty else {
                flush()
                return false
            }
        }
        settledSkips = skippedBytes
        known = []
        return true
    }

    /// Bytes of the initial copy that the secondary had already.
    var skippedBytes: UInt64 { known.reduce(settledSkips) { $0 + $1.skipped * UInt64($1.blockSize) } }

    // MARK: Writes

    /// A run of bytes that is sent in one way.
    private struct Run {
        enum Kind { case nothing, data, zeroes }
        var kind = Kind.nothing
        var start = 0
    }

    /// A write of the guest, or of the initial copy: belongs to the epoch that is open now.
    ///
    /// Whole blocks that are all zero travel as zeroes; what ``KnownBlocks`` finds the secondary to have does
    /// not travel. Both are decided block by block, and what is sent keeps its order.
    func diskWrite(disk: Int, offset: UInt64, bytes: UnsafeRawBufferPointer) {
        checking.touched(disk: disk, ByteRange(offset: offset, length: UInt64(bytes.count)))
        let blockSize = UInt64(known.indices.contains(disk) ? known[disk].blockSize : Self.zeroBlockSize)
        var run = Run()
        var done = 0
        while done < bytes.count {
            let place = offset + UInt64(done)
            let length = Int(min(UInt64(bytes.count - done), blockSize - place % blockSize))
            let piece = UnsafeRawBufferPointer(rebasing: bytes[done..<done + length])
            let end = place + UInt64(length)
            let isWhole = place % blockSize == 0 && (end % blockSize == 0 || end == settings.diskSizes[disk])
            let isZero = isWhole && ZeroBlocks.isZero(piece)
            let verdict = judge(disk, Int(place / blockSize), piece, isWhole: isWhole, isZero: isZero)
            if verdict == .zeroBlockAndSend {
                sendRun(&run, .nothing, upTo: done, disk, offset, bytes)
                let block = known[disk].range(of: Int(place / blockSize))
                let range = ByteRange(offset: block.lowerBound, length: block.upperBound - block.lowerBound)
                sendExtent(.zeroes(disk: disk, range: range))
            }
            let kind: Run.Kind = verdict == .nothing ? .nothing : isZero ? .zeroes : .data
            sendRun(&run, kind, upTo: done, disk, offset, bytes)
            done += length
        }
        sendRun(&run, .nothing, upTo: done, disk, offset, bytes)
    }

    private func judge(
        _ disk: Int, _ block: Int, _ piece: UnsafeRawBufferPointer, isWhole: Bool, isZero: Bool
    ) -> KnownBlocks.Verdict {
        guard known.indices.contains(disk) else { return .send }
        if isZero { return known[disk].zeroes(block, isWhole: true) }
        return known[disk].data(block, isWhole: isWhole) { BlockDigest.of(piece) }
    }

    /// Sends the run that ends at `end` when one of another kind begins there.
    private func sendRun(
        _ run: inout Run, _ kind: Run.Kind, upTo end: Int, _ disk: Int, _ offset: UInt64,
        _ bytes: UnsafeRawBufferPointer
    ) {
        guard kind != run.kind else { return }
        let start = offset + UInt64(run.start)
        switch run.kind {
        case .nothing: break
        case .data: sendData(disk, start, UnsafeRawBufferPointer(rebasing: bytes[run.start..<end]))
        case .zeroes:
            sendExtent(.zeroes(disk: disk, range: ByteRange(offset: start, length: UInt64(end - run.start))))
        }
        run = Run(kind: kind, start: end)
    }

    func sendData(_ disk: Int, _ offset: UInt64, _ bytes: UnsafeRawBufferPointer) {
        var done = 0
        while done < bytes.count {
            guard let epoch = tag({ machine throws(ProtocolViolation) in try machine.sendDisk() }) else { return }
            let length = min(LinkLimits.diskDataMax, bytes.count - done)
            let piece = UnsafeRawBufferPointer(rebasing: bytes[done..<done + length])
            var buffer = link.allocator.buffer(capacity: FrameHeader.length + DiskWrite.prefixLength + length)
            let header = withUnsafeTemporaryAllocation(byteCount: DiskWrite.prefixLength, alignment: 8) { prefix in
                prefix.storeBytes(of: UInt16(disk).bigEndian, toByteOffset: 0, as: UInt16.self)
                prefix.storeBytes(of: (offset + UInt64(done)).bigEndian, toByteOffset: 2, as: UInt64.self)
                return buffer.writeFrame(
                    .diskWrite, generation: settings.generation, epoch: epoch,
                    prefix: UnsafeRawBufferPointer(prefix), data: piece)
            }
            send(buffer, header: header)
            done += length
        }
    }

    /// Zeroes or a discard, which reads as zeroes on the secondary.
    func diskExtent(_ extent: DiskExtent) {
        checking.touched(disk: extent.disk, extent.range)
        guard known.indices.contains(extent.disk) else { return sendExtent(extent) }
        let blockSize = UInt64(known[extent.disk].blockSize)
        var start = extent.range.offset
        var place = start
        while place < extent.range.end {
            let block = known[extent.disk].range(of: Int(place / blockSize))
            let end = min(block.upperBound, extent.range.end)
            let isWhole = place == block.lowerBound && end == block.upperBound
            if known[extent.disk].zeroes(Int(place / blockSize), isWhole: isWhole) == .nothing {
                sendPart(of: extent, start..<place)
                start = end
            }
            place = end
        }
        sendPart(of: extent, start..<place)
    }

    private func sendPart(of extent: DiskExtent, _ part: Range<UInt64>) {
        guard !part.isEmpty else { return }
        let range = ByteRange(offset: part.lowerBound, length: part.upperBound - part.lowerBound)
        let isDiscard = extent.kind == .diskDiscard
        sendExtent(
            isDiscard ? .discard(disk: extent.disk, range: range) : .zeroes(disk: extent.disk, range: range))
    }

    private func sendExtent(_ extent: DiskExtent) {
        guard let epoch = tag({ machine throws(ProtocolViolation) in try machine.sendDisk() }) else { return }
        sendPayload(extent, epoch: epoch)
    }
}
