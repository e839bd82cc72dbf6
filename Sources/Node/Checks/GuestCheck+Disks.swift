import AsyncIO
import Checkpointer
import Qcow2
import Units

/// A guest's disks: the secondary disk, what lies over it, and whether the chain of files is whole.
extension GuestCheck {
    mutating func checkDisk(_ disk: CommitRecord.Disk, _ record: CommitRecord) {
        let place = "disks/\(disk.id)"
        checkSecondary("\(place)/\(DiskFiles.secondary)", disk)
        let names = (try? Directory.names(in: folder.disk(disk.id))) ?? []
        let hidden = names.compactMap(DiskFiles.hiddenEpoch).sorted()
        let later = hidden.filter { $0 > record.epoch }
        for epoch in hidden {
            // Each names the one of the next epoch as the file below it, or the secondary disk.
            let above = epoch > record.epoch ? hidden.filter { $0 > epoch } : hidden
            let below = Set(above.map { DiskFiles.hidden($0) } + [DiskFiles.secondary])
            let words =
                epoch > record.epoch
                ? "pre-images of epoch \(epoch), which is not committed"
                    + (record.role == .replica ? ": the next start writes them back" : "")
                : "pre-images of epoch \(epoch), which is committed: of no use any more"
            checkOverlay(
                "\(place)/\(DiskFiles.hidden(epoch))", "hidden disk", size: disk.size, below: below,
                isNeeded: epoch > record.epoch, words)
        }
        let active = StoreFileName.active.name
        guard names.contains(active) else { return }
        let below = Set([later.first.map { DiskFiles.hidden($0) } ?? DiskFiles.secondary])
        checkOverlay(
            "\(place)/\(active)", "active disk", size: disk.size, below: below, isNeeded: true,
            "writes of the guest since its failover")
    }

    private mutating func checkSecondary(_ file: String, _ disk: CommitRecord.Disk) {
        let path = "\(folder.path)/\(file)"
        do {
            let opened = try DirectFile(path: path, mode: .readOnly)
            let size = try opened.size()
            guard size >= disk.size else {
                return add(
                    file, "secondary disk", .damaged, "has \(size) bytes, the disk has \(disk.size); it was cut")
            }
            guard !quick else {
                return add(file, "secondary disk", .good, "\(size) bytes; its contents were not read")
            }
            let read = try readData(opened, upTo: disk.size)
            add(
                file, "secondary disk", .good,
                "\(size) bytes, \(ByteText.text(read)) of data could be read (blocks carry no "
                    + "checksums)")
        } catch {
            add(file, "secondary disk", error)
        }
    }

    /// Reads what is no hole; returns how much that was. Blocks that the medium cannot read throw.
    private func readData(_ file: DirectFile, upTo size: UInt64) throws(IOError) -> UInt64 {
        let staging = AlignedBuffer(minimumCount: 1 << 20)
        var total: UInt64 = 0
        var place: UInt64 = 0
        while place < size, let start = try file.nextData(at: place), start < size {
            let end = min(max(try file.nextHole(at: start), start + 1), size)
            var at = start / UInt64(AlignedBuffer.alignment) * UInt64(AlignedBuffer.alignment)
            while at < end {
                let count = Int(min(UInt64(staging.count), size - at))
                try file.read(at: at, into: staging.slice(0, count))
                at += UInt64(count)
                total += UInt64(count)
            }
            place = max(at, end)
        }
        return total
    }

    private mutating func checkOverlay(
        _ file: String, _ what: String, size: UInt64, below: Set<String>, isNeeded: Bool, _ words: String
    ) {
        let path = "\(folder.path)/\(file)"
        do {
            guard let check = try ImageCheckReport.check(path: path, format: .qcow2) else { return }
            let header = try ImageLayer(path: path, format: .qcow2, direct: true).reader?.header
            guard let header, header.virtualSize == size else {
                return add(
                    file, what, isNeeded ? .damaged : .leftover,
                    "describes a disk of \(header?.virtualSize ?? 0) bytes, the disk has \(size)")
            }
            if check.verdict == .corrupt {
                let first = check.result.findings.first.map { ", the first: \($0)" } ?? ""
                return add(
                    file, what, isNeeded ? .damaged : .leftover,
                    "\(words); \(check.result.corruptions) errors in its tables\(first)")
            }
            if isNeeded, !below.contains(header.backingFile ?? "") {
                return add(
                    file, what, .damaged,
                    "\(words); it lies over '\(header.backingFile ?? "nothing")' instead of "
                        + below.sorted().joined(separator: " or "))
            }
            let leaks = check.verdict == .leaks ? ", \(check.result.leaks) leaked clusters as a crash leaves them" : ""
            let held = ByteText.text(check.result.allocatedClusters * header.clusterSize)
            add(file, what, isNeeded && what == "active disk" ? .good : .leftover, "\(words); \(held)\(leaks)")
        } catch {
            if isNeeded { add(file, what, error) } else { add(file, what, .leftover, "\(words); \(error)") }
        }
    }
}
