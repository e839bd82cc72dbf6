import AsyncIO
import Foundation
import TestSupport
import Units

@testable import Node

/// Runs sequences, crashes them everywhere, recovers what is left with the real code, and compares.
final class DiskCrashLab {
    /// A crash after which the recovery did not give the one checkpoint that it must.
    struct Finding: Error, CustomStringConvertible {
        let description: String
    }

    struct Figures {
        var sequences = 0
        var crashes = 0
        var secondCrashes = 0
        var imagesChecked = 0
    }

    /// A change of the record before it is examined: what the disk would have seen had the code done otherwise.
    typealias Plant = ([FileEvent]) -> [FileEvent]

    var explorer = CrashExplorer()
    /// One of so many crashes is crashed again while it is recovered.
    var secondCrashEvery = 40
    /// One of so many crashes has its overlays checked by qemu-img.
    var checkEvery = 0
    var plant: Plant = { $0 }
    /// The same for the record of a recovery.
    var recoveryPlant: Plant = { $0 }
    private(set) var figures = Figures()

    private let seed: UInt64
    private let durable: Bool
    private let scratch: DiskScratch
    private let start: CrashImage
    private var runFolder: String { scratch.path + "/run" }
    private var leftFolder: String { scratch.path + "/left" }

    init(durable: Bool, seed: UInt64) throws {
        self.durable = durable
        self.seed = seed
        scratch = try DiskScratch(below: FileManager.default.isWritableFile(atPath: "/dev/shm") ? "/dev/shm" : "/tmp")
        try Directory.create(scratch.path + "/run")
        try Directory.create(scratch.path + "/left")
        try DiskSequence.prepare(scratch.path + "/run", durable: durable)
        start = ModelDisk.crashFree(try ModelDisk(directory: scratch.path + "/run"))
    }

    /// Throws a finding that says how to see it again.
    func examine(_ sequence: DiskSequence) throws {
        figures.sequences += 1
        try start.materialise(in: runFolder)
        let recorder = FileRecorder(below: runFolder)
        let checkpoints: [UInt64: [UInt8]]
        do {
            defer { FileObservation.end(below: runFolder) }
            var teller = try DiskTeller(runFolder, durable: durable, recorder: recorder)
            try teller.tell(sequence)
            checkpoints = teller.checkpoints
        }
        let events = plant(recorder.end())
        // Each sequence has a seed of its own, so that it can be examined alone.
        var random = SplitMix64(seed: sequence.description.utf8.reduce(seed) { $0 &* 33 &+ UInt64($1) })
        let body: (CrashExplorer.Crash) throws -> Bool = { crash in
            for epoch in crash.allowed {
                guard let expected = checkpoints[epoch] else { continue }
                do {
                    try self.judge(crash.image, epoch, expected, &random)
                } catch {
                    throw self.finding(sequence, crash, epoch, events, error)
                }
            }
            return true
        }
        if durable {
            var fates = SplitMix64(seed: random.next())
            try explorer.walk(from: ModelDisk(start), events, allowed: 1...1, &fates, body)
        } else {
            try ProcessCrashes.walk(from: ModelDisk(start), events, allowed: 1...1, body)
        }
    }

    private func judge(
        _ image: CrashImage, _ epoch: UInt64, _ expected: [UInt8], _ random: inout SplitMix64
    ) throws {
        figures.crashes += 1
        try image.materialise(in: leftFolder)
        if checkEvery > 0, figures.crashes % checkEvery == 0 { try checkOverlays() }
        guard figures.crashes % secondCrashEvery == 0 else { return try recover(epoch, expected) }
        let recorder = FileRecorder(below: leftFolder)
        do {
            defer { FileObservation.end(below: leftFolder) }
            try recover(epoch, expected)
        }
        let events = recoveryPlant(recorder.end())
        let again: (CrashExplorer.Crash) throws -> Bool = { crash in
            self.figures.secondCrashes += 1
            try crash.image.materialise(in: self.leftFolder)
            do { try self.recover(epoch, expected) } catch {
                throw Finding(description: "a second crash, before change \(crash.index) of the recovery: \(error)")
            }
            return true
        }
        if durable {
            try explorer.walk(from: ModelDisk(image), events, allowed: epoch...epoch, &random, again)
        } else {
            try ProcessCrashes.walk(from: ModelDisk(image), events, allowed: epoch...epoch, again)
        }
    }

    /// The real recovery on real files; throws when it fails or gives something else.
    private func recover(_ epoch: UInt64, _ expected: [UInt8]) throws {
        let replica = try DiskReplica(directory: leftFolder, durable: durable, limits: DiskSequence.limits)
        _ = try replica.recover(committed: Epoch(epoch))
        let found = try ModelFile(contentsOf: "\(leftFolder)/secondary.raw").bytes
        guard found == expected else { throw Finding(description: Self.difference(found, expected)) }
        let names = try Directory.names(in: leftFolder)
        guard names == ["secondary.raw"] else { throw Finding(description: "left behind: \(names)") }
    }

    private static func difference(_ found: [UInt8], _ expected: [UInt8]) -> String {
        guard found.count == expected.count else { return "\(found.count) bytes, not \(expected.count)" }
        let sectors = stride(from: 0, to: found.count, by: 512).filter {
            found[$0..<$0 + 512] != expected[$0..<$0 + 512]
        }
        let first = sectors[0]
        return "sectors \(sectors.map { $0 / 512 }) differ; sector \(first / 512) begins with \(found[first]), not "
            + "\(expected[first])"
    }

    /// Leaked clusters are what a crash may leave; anything else is a fault.
    private func checkOverlays() throws {
        for name in try Directory.names(in: leftFolder) where name.hasSuffix(".qcow2") {
            figures.imagesChecked += 1
            let check = try Program.run("qemu-img", ["check", "-f", "qcow2", "\(leftFolder)/\(name)"])
            guard [0, 3].contains(check.status) else {
                throw Finding(description: "qemu-img check \(name): \(check.output)\(check.errors)")
            }
        }
    }

    private func finding(
        _ sequence: DiskSequence, _ crash: CrashExplorer.Crash, _ epoch: UInt64, _ events: [FileEvent],
        _ error: any Error
    ) -> Finding {
        let last = events[..<crash.index].suffix(12).map(\.summary).joined(separator: "\n  ")
        let files = crash.image.files.map { "\($0.key) (\($0.value.size))" }.sorted().joined(separator: ", ")
        return Finding(
            description: "COLO_BLK_CRASH_REPLAY='\(String(sequence.letters.map(\.rawValue)))' seed \(seed), durable "
                + "\(durable), crash before change \(crash.index) of \(events.count), recovering \(epoch): \(error)\n"
                + "pending changes: \(crash.fates)\nfiles: \(files)\nlast changes:\n  \(last)")
    }
}

extension ModelDisk {
    /// What is there when nothing is pending.
    static func crashFree(_ disk: ModelDisk) -> CrashImage { disk.crash([]) }
}

extension FileEvent {
    /// Without the bytes.
    var summary: String {
        if case .write(let path, let offset, let bytes) = self { return "write \(path) \(offset)+\(bytes.count)" }
        return "\(self)"
    }
}
