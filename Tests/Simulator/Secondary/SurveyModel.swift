import Link
import Units

extension BlockDigest {
    /// Stands for the SHA-256 of a block: the simulator's blocks are not chosen by an attacker.
    init(modelOf bytes: some Collection<UInt8>) {
        var high: UInt64 = 0xCBF2_9CE4_8422_2325
        var low: UInt64 = 0x9AE1_6A3B_2F90_404F
        for byte in bytes {
            high = (high ^ UInt64(byte)) &* 0x100_0000_01B3
            low = (low &+ UInt64(byte)) &* 0xFF51_AFD7_ED55_8CCD
            low ^= low >> 29
        }
        self.init(high: high, low: low)
    }
}

/// Stands for Node's DiskSurvey and RamSurvey: says what a replica's disks and its RAM cache hold.
enum SurveyModel {
    static func known(_ store: StoreModel) -> [RamKnown] {
        guard let ram = store.continuedRam else { return [RamKnown(isLast: true, first: 0, runs: [])] }
        let bytes = ram.contents
        let pages = 0..<bytes.count / Sizes.page
        let half = pages.count / 2
        return [pages[..<half], pages[half...]].filter { !$0.isEmpty }.map { part in
            RamKnown(
                isLast: part.endIndex == pages.endIndex, first: UInt64(part.startIndex),
                runs: part.map { page in
                    let contents = bytes[page * Sizes.page..<(page + 1) * Sizes.page]
                    return contents.allSatisfy { $0 == 0 } ? .zeroes(1) : .data([BlockDigest(modelOf: contents)])
                })
        }
    }

    static func digests(_ store: StoreModel, _ storage: Storage) throws -> [DiskDigests] {
        var frames: [DiskDigests] = []
        let blockSize = DiskDigests.blockSize(ofDisks: store.disks.map(\.size))
        for (index, disk) in store.disks.enumerated() {
            let bytes = try storage.readAll("\(disk.folder)/secondary.raw")
            var runs: [DiskDigests.Run] = []
            var offset = 0
            while offset < Int(disk.size) {
                let end = min(offset + blockSize, Int(disk.size))
                let block = bytes[offset..<end]
                runs.append(block.allSatisfy { $0 == 0 } ? .zeroes(1) : .data([BlockDigest(modelOf: block)]))
                offset = end
            }
            let isLast = index == store.disks.count - 1
            frames.append(DiskDigests(disk: index, isLast: isLast, first: 0, runs: runs))
        }
        return frames
    }
}
