import BlockReplica
import Checkpointer
import Link
import Units

/// Stands for Node's AgentCore+Disks: what the mirrors write becomes frames, as far as it has to travel.
extension AgentModel {
    private var blockSize: Int { DiskDigests.blockSize(ofDisks: guest.shape.diskSizes.map(UInt64.init)) }

    /// The secondary tells what it holds. Returns what is wrong with it, or nil.
    func describe(_ digests: DiskDigests) -> String? {
        do throws(KnownBlocks.Malformed) {
            var first = digests.first
            for run in digests.runs {
                guard known.indices.contains(digests.disk) else { return "there is no disk \(digests.disk)" }
                switch run {
                case .zeroes(let count): try known[digests.disk].describe(zeroes: count, from: first)
                case .data(let found): try known[digests.disk].describe(found, from: first)
                }
                first += UInt64(run.count)
            }
        } catch { return "\(error)" }
        guard digests.isLast else { return nil }
        if known.contains(where: { !$0.isComplete }) { return "blocks are missing" }
        mirror()
        return nil
    }

    /// The initial copy is done: tells of zeroes that were held back. From then on every write travels.
    func settleHeld() {
        for disk in known.indices {
            while true {
                let held = known[disk].takeHeld(ranges: 2)
                if held.isEmpty { break }
                for range in held { sendExtent(.zeroes(disk: disk, range: range)) }
            }
        }
        known = []
    }

    func diskWrite(disk: Int, offset: Int, bytes: ArraySlice<UInt8>) {
        var place = offset
        while place < offset + bytes.count {
            let block = place / blockSize
            let end = min((block + 1) * blockSize, offset + bytes.count)
            let piece = bytes[bytes.startIndex + place - offset..<bytes.startIndex + end - offset]
            let isWhole = isWhole(disk, place..<end)
            var verdict = KnownBlocks.Verdict.send
            if known.indices.contains(disk) {
                verdict = known[disk].data(block, isWhole: isWhole) { BlockDigest(modelOf: piece) }
            }
            if verdict == .zeroBlockAndSend {
                let range = known[disk].range(of: block)
                sendExtent(
                    .zeroes(
                        disk: disk,
                        range: ByteRange(offset: range.lowerBound, length: range.upperBound - range.lowerBound)))
            }
            if verdict != .nothing { sendData(disk, place, piece) }
            place = end
        }
    }

    func diskZeroes(disk: Int, offset: Int, count: Int, isDiscard: Bool) {
        var place = offset
        while place < offset + count {
            let block = place / blockSize
            let end = min((block + 1) * blockSize, offset + count)
            let mustSend =
                !known.indices.contains(disk)
                || known[disk].zeroes(block, isWhole: isWhole(disk, place..<end)) != .nothing
            if mustSend {
                let range = ByteRange(offset: UInt64(place), length: UInt64(end - place))
                sendExtent(isDiscard ? .discard(disk: disk, range: range) : .zeroes(disk: disk, range: range))
            }
            place = end
        }
    }

    private func isWhole(_ disk: Int, _ range: Range<Int>) -> Bool {
        range.lowerBound % blockSize == 0
            && (range.upperBound % blockSize == 0 || range.upperBound == guest.shape.diskSizes[disk])
    }

    private func sendData(_ disk: Int, _ offset: Int, _ bytes: ArraySlice<UInt8>) {
        guard let epoch = tag({ machine throws(ProtocolViolation) in try machine.sendDisk() }) else { return }
        var writer = ByteWriter()
        DiskWrite.encodePrefix(disk: disk, offset: UInt64(offset), into: &writer)
        writer.write(bytes: bytes)
        send(.diskWrite, writer.bytes, epoch)
    }

    private func sendExtent(_ extent: DiskExtent) {
        guard let epoch = tag({ machine throws(ProtocolViolation) in try machine.sendDisk() }) else { return }
        send(extent, epoch)
    }
}
