import Checkpointer
import Qcow2
import Units

/// A whole machine at one moment.
struct Machine: Equatable {
    var disks: [[UInt8]]
    var ram: [UInt8]
    var device: [UInt8]

    /// What differs, for people; nil when nothing does.
    func difference(from other: Machine) -> String? {
        var parts: [String] = []
        for (index, pair) in zip(disks, other.disks).enumerated() where pair.0 != pair.1 {
            let blocks = Set(
                (0..<min(pair.0.count, pair.1.count)).filter { pair.0[$0] != pair.1[$0] }.map { $0 / 4096 })
            parts.append("disk \(index) in blocks \(blocks.sorted().prefix(8))")
        }
        if ram != other.ram {
            let pages = Set((0..<min(ram.count, other.ram.count)).filter { ram[$0] != other.ram[$0] }.map { $0 / 4096 })
            parts.append("RAM in pages \(pages.sorted().prefix(8))")
        }
        if device != other.device { parts.append("device state") }
        return parts.isEmpty ? nil : parts.joined(separator: ", ")
    }
}

extension StoreModel {
    /// `top`: the file that the chain starts with; nil: the one that shows the checkpoint. An active disk is not synced,
    /// so that only a guest that was just started can rely on it.
    /// The machine as a guest that is started now would find it: disks through the chain of files as QEMU follows it, RAM
    /// from the cache, device state from its file.
    func machine(_ storage: Storage, top: String? = nil) throws -> Machine {
        guard let record, let ram else { throw Failed("there is no checkpoint") }
        let disks = try record.disks.map { disk in
            try Chain.read(
                storage, folder: "disks/\(disk.id)", top: try top ?? Self.top(storage, disk.id, after: record.epoch),
                size: Int(disk.size))
        }
        return Machine(disks: disks, ram: ram.contents, device: try readDevice(record))
    }

    private static func top(_ storage: Storage, _ id: String, after epoch: Epoch) throws -> String {
        let epochs = storage.files(in: "disks/\(id)").compactMap { name -> Epoch? in
            if case .hidden(let found) = StoreFileName(name), found > epoch { return found }
            return nil
        }
        return epochs.min().map { OverlayFile.name($0) } ?? "secondary.raw"
    }
}

/// Reads a chain of images as QEMU does: by the backing file that each names.
enum Chain {
    static func read(_ storage: Storage, folder: String, top: String, size: Int) throws -> [UInt8] {
        var layers: [(path: String, cluster: Int, runs: [OverlayRun])] = []
        var name = top
        while name != "secondary.raw" {
            guard layers.count < 8 else { throw StoreModel.Failed("\(folder): the chain of \(top) has no end") }
            let path = "\(folder)/\(name)"
            let reader = try OverlayFile.reader(storage, path)
            layers.append((path, reader.header.clusterSize, try OverlayFile.runs(storage, path, reader)))
            name = reader.header.backingFile
        }
        var bytes = Array(try storage.readAll("\(folder)/secondary.raw").prefix(size))
        for layer in layers.reversed() {
            for run in layer.runs {
                let start = Int(run.guestCluster) * layer.cluster
                let count = min(Int(run.count) * layer.cluster, size - start)
                let data =
                    try run.fileOffset.map { try storage.read(layer.path, at: Int($0), count: count) }
                    ?? [UInt8](repeating: 0, count: count)
                bytes.replaceSubrange(start..<start + count, with: data)
            }
        }
        return bytes
    }
}
