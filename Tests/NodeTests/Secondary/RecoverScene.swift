import AsyncIO
import Checkpointer
import Foundation
import TestSupport
import Testing
import Units

@testable import Node

/// A stopped store with one guest whose disk was written to behind its last checkpoint, and what the checkpoint was.
struct RecoverScene {
    let folder: ScratchFolder
    /// The disk at the committed checkpoint.
    let checkpoint: [UInt8]
    /// Bytes of the disk; not a multiple of a block.
    let size: Int

    var store: String { folder.path + "/store" }
    var guest: String { store + "/g" }
    var disk: String { guest + "/disks/d" }

    /// `writes`: random writes in each of the two epochs behind the checkpoint.
    init(size: Int, writes: Int, seed: UInt64, durability: Durability = .disk) throws {
        folder = try ScratchFolder("recover")
        self.size = size
        var random = TestSupport.SplitMix64(seed: seed)
        var model = [UInt8](repeating: 0, count: size)
        let path = folder.path + "/store"
        let description = try Store.open(directory: path).description
        for name in ["", "/disks", "/ram", "/device", "/sessions"] { try Directory.create("\(path)/g\(name)") }
        try CommitFile.create(in: "\(path)/g")
        let disk = try DiskReplica.create(
            directory: "\(path)/g/disks/d", size: UInt64(size), durable: durability == .disk)
        try disk.beginEpoch(Epoch(1), preserve: false)
        try Self.scribble(disk, Epoch(1), &model, writes, &random)
        _ = try disk.seal(epoch: Epoch(1))
        try CommitFile(path: "\(path)/g/commit", store: description.id).append(durable: true) { sequence in
            CommitRecord(
                store: description.id, session: Identifier(using: &random), guest: "g", sequence: sequence,
                generation: .first, epoch: Epoch(1), role: .replica, durability: durability, wallClockMilliseconds: 1,
                ramSectionID: 0, ramFiles: [], device: nil, disks: [.init(id: "d", size: UInt64(size))])
        }
        try disk.committed(Epoch(1))
        checkpoint = model
        for epoch in [Epoch(2), Epoch(3)] {
            try disk.beginEpoch(epoch, preserve: true)
            try Self.scribble(disk, epoch, &model, writes, &random)
            _ = try disk.seal(epoch: epoch)
        }
    }

    private static func scribble(
        _ disk: DiskReplica, _ epoch: Epoch, _ model: inout [UInt8], _ writes: Int,
        _ random: inout TestSupport.SplitMix64
    ) throws {
        for _ in 0..<writes {
            let start = Int.random(in: 0..<model.count / 512, using: &random) * 512
            let length = min(Int.random(in: 1...20, using: &random) * 512, model.count - start)
            if Int.random(in: 0..<6, using: &random) == 0 {
                try disk.writeZeroes(
                    epoch: epoch, range: ByteRange(offset: UInt64(start), length: UInt64(length)))
                model.replaceSubrange(start..<start + length, with: repeatElement(0, count: length))
            } else {
                let bytes = [UInt8](repeating: UInt8.random(in: 1...255, using: &random), count: length)
                try bytes.withUnsafeBytes { try disk.write(epoch: epoch, offset: UInt64(start), bytes: $0) }
                model.replaceSubrange(start..<start + length, with: bytes)
            }
        }
    }

    var hidden: [String] {
        get throws { try Directory.names(in: disk).filter { $0.hasPrefix("hidden-") } }
    }

    func content() throws -> [UInt8] {
        [UInt8](try Data(contentsOf: URL(filePath: disk + "/secondary.raw")))
    }

    /// Every file below the store, with its bytes' checksum.
    func fingerprint() throws -> [String: UInt32] {
        var found: [String: UInt32] = [:]
        let files = FileManager.default.enumerator(atPath: store)
        while let name = files?.nextObject() as? String {
            var isFolder: ObjCBool = false
            guard FileManager.default.fileExists(atPath: "\(store)/\(name)", isDirectory: &isFolder),
                !isFolder.boolValue
            else { continue }
            found[name] = CRC32C.checksum([UInt8](try Data(contentsOf: URL(filePath: "\(store)/\(name)"))))
        }
        return found
    }
}
