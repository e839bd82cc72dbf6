import AsyncIO
import BlockReplica
import Glibc
import Link
import Logging
import NIOCore
import Testing
import TestSupport
import Units

@testable import Node

@Suite("A new replica begins with an existing copy")
struct SeedTests {
    private static let block = 64 << 10
    private static let small: UInt64 = 20_000

    /// A disk with data in every second 64 KiB, and a short last block.
    private func disk(_ random: inout SplitMix64) -> [UInt8] {
        var disk = [UInt8](repeating: 0, count: 80 * Self.block + 1536)
        for start in stride(from: 0, to: disk.count, by: 2 * Self.block) {
            let value = UInt8.random(in: 1...255, using: &random)
            for index in start..<min(start + Self.block, disk.count) { disk[index] = value &+ UInt8(index & 15) }
        }
        return disk
    }

    private func write(_ disk: [UInt8], _ place: Place, _ name: String = "seed") throws -> String {
        let path = "\(place.base)/\(name)"
        try WholeFile.write(path, disk, durable: false)
        return path
    }

    private func seed(_ path: String) -> DiskSeed { DiskSeed(guest: "g", disk: "d", file: path) }

    @Test("an equal seed costs nothing, one that differs in k blocks costs k blocks, garbage costs the data")
    func rawSeeds() async throws {
        var random = SplitMix64(seed: 3)
        let disk = disk(&random)
        var near = disk
        // Two blocks with data; two that must become zeroes, which costs next to nothing.
        for block in [0, 7, 31, 78] { near[block * Self.block + 5000] ^= 0xFF }
        let garbage = (0..<disk.count).map { _ in UInt8.random(in: 0...255, using: &random) }
        let data = 40 * UInt64(Self.block) + 1536
        for (name, seed, most) in [
            ("equal", disk, 0), ("near", near, 2 * 4096), ("garbage", garbage, data),
        ] {
            let place = try Place()
            defer { place.remove() }
            let protection = try await Protection(place, seeds: [self.seed(try write(seed, place))])
            let traffic = try await protection.protect(disk)
            #expect(traffic.bytes >= most && traffic.bytes <= most + most / 100 + Self.small, "\(name)")
            #expect(try protection.diskContents() == disk, "\(name)")
            try await protection.stop()
        }
    }

    @Test("a compressed qcow2 seed with a backing file")
    func qcow2Seed() async throws {
        guard Program.path(of: "qemu-img") != nil else { return print("skipped: no qemu-img") }
        var random = SplitMix64(seed: 4)
        let disk = disk(&random)
        var base = disk
        for index in 0..<10 * Self.block { base[index] = 9 }
        let place = try Place()
        defer { place.remove() }
        let lower = try write(base, place, "base.raw")
        let upper = try write(disk, place, "whole.raw")
        let image = "\(place.base)/seed.qcow2"
        let made = try Program.run(
            "qemu-img", ["convert", "-c", "-O", "qcow2", "-B", lower, "-F", "raw", upper, image])
        try #require(made.succeeded, "\(made.errors)")
        let protection = try await Protection(place, seeds: [seed(image)])
        let traffic = try await protection.protect(disk)
        #expect(traffic.bytes < Self.small)
        #expect(try protection.diskContents() == disk)
        try await protection.stop()
    }

    @Test("a seed of another size or of a disk that the guest has not is refused, and says so")
    func mismatches() async throws {
        var random = SplitMix64(seed: 5)
        let disk = disk(&random)
        for (seed, words) in [
            (DiskSeed(guest: "g", disk: "d", file: "short"), "the guest's disk has"),
            (DiskSeed(guest: "g", disk: "e", file: "whole"), "the guest has no disk 'e' (it has: d)"),
        ] {
            let place = try Place()
            defer { place.remove() }
            _ = try write(Array(disk[..<Self.block]), place, "short")
            _ = try write(disk, place, "whole")
            let file = DiskSeed(guest: seed.guest, disk: seed.disk, file: "\(place.base)/\(seed.file)")
            let protection = try await Protection(place, seeds: [file])
            do {
                _ = try await protection.connect(size: UInt64(disk.count))
                Issue.record("\(words): it was welcome")
            } catch let refuse as Refuse {
                #expect(refuse.code == .identityMismatch)
                #expect(refuse.message.contains(words), "\(refuse.message)")
            }
            try await protection.stop()
        }
    }

    @Test("a replica that has a checkpoint takes no seed, and keeps what it has")
    func afterACheckpoint() async throws {
        let place = try Place()
        defer { place.remove() }
        var random = SplitMix64(seed: 6)
        let disk = disk(&random)
        let path = try write(disk, place)
        do {
            let protection = try await Protection(place)
            _ = try await protection.protect(disk)
            try await protection.stop()
        }
        let log = Logger(label: "test", factory: { _ in SwiftLogNoOpLogHandler() })
        let options = SecondaryOptions(
            store: place.directory, proof: false, qemu: nil, ramDirectory: place.base, seeds: [seed(path)])
        let error = #expect(throws: DiskSeed.Refused.self) { try SecondaryDaemon.open(options: options, log: log) }
        #expect(error?.description.contains("colo-blk remove g") == true)
        #expect(try WholeFile.read("\(place.directory)/g/disks/d/secondary.raw", limit: 1 << 30) == disk)
    }

    @Test(
        "a block device becomes the disk, only what differs is sent, and the option may stay for ever",
        .enabled(if: LoopDevice.isPossible, "this machine gives us no loop device"))
    func device() async throws {
        let place = try Place()
        defer { place.remove() }
        var random = SplitMix64(seed: 7)
        var disk = disk(&random)
        let device = try #require(try LoopDevice(size: UInt64(disk.count), in: place.base))
        var near = disk
        near[7 * Self.block] ^= 0xFF
        near[8 * Self.block] ^= 0xFF
        let file = try DirectFile(path: device.path, mode: .readWrite, direct: false)
        try near.withUnsafeBytes { try file.write(at: 0, from: $0) }
        try file.sync()
        let seed = try DiskSeed(parsing: "g/d=\(device.path)", isDevice: true)
        for round in 0..<2 {
            let protection = try await Protection(place, seeds: [seed])
            let traffic = try await protection.protect(disk)
            #expect(traffic.bytes < 2 * 4096 + Self.small, "round \(round)")
            var found = [UInt8](repeating: 0, count: disk.count)
            try found.withUnsafeMutableBytes { try file.read(at: 0, into: $0) }
            #expect(found == disk, "round \(round)")
            #expect(Directory.linkTarget(protection.diskPath) == device.path)
            try await protection.stop()
            disk[round * Self.block] ^= 0x0F
        }
        #expect(throws: DiskSeed.Refused.self, "a file is no device") {
            _ = try DiskSeed(guest: "g", disk: "d", file: self.write(disk, place), isDevice: true).open()
        }
    }

    @Test("a device of another size is refused and stays where it is, also when nobody names it any more")
    func otherDevice() async throws {
        guard LoopDevice.isPossible else { return print("skipped: no loop device") }
        let place = try Place()
        defer { place.remove() }
        let device = try #require(try LoopDevice(size: 1 << 20, in: place.base))
        let seed = try DiskSeed(parsing: "g/d=\(device.path)", isDevice: true)
        for seeds in [[seed], []] {
            let protection = try await Protection(place, seeds: seeds)
            let refuse = await #expect(throws: Refuse.self) { _ = try await protection.connect(size: 2 << 20) }
            #expect(refuse?.code == .identityMismatch, "\(refuse?.message ?? "")")
            #expect(Directory.linkTarget(protection.diskPath) == device.path)
            try await protection.stop()
        }
    }

    @Test("a seed that is missing or no disk is refused at the start; what is no seed at all is refused by its form")
    func unusable() throws {
        let place = try Place()
        defer { place.remove() }
        let log = Logger(label: "test", factory: { _ in SwiftLogNoOpLogHandler() })
        let empty = try write([], place, "empty")
        let fake = try write([UInt8](repeating: 7, count: 4096), place, "fake.qcow2")
        for file in ["\(place.base)/none", empty, fake] {
            let options = SecondaryOptions(
                store: place.directory, proof: false, qemu: nil, ramDirectory: place.base, seeds: [seed(file)])
            #expect(throws: DiskSeed.Refused.self) { try SecondaryDaemon.open(options: options, log: log) }
        }
        for text in ["", "g", "g/d", "d=f", "/d=f", "g/=f", "g/d=", "../g/d=f", "g/../d=f"] {
            #expect(throws: DiskSeed.Refused.self, "\(text)") { try DiskSeed(parsing: text) }
        }
        #expect(try DiskSeed(parsing: "g/d=/a=b") == DiskSeed(guest: "g", disk: "d", file: "/a=b"))
        #expect(try DiskSeed(parsing: "d=/a", guest: "g") == DiskSeed(guest: "g", disk: "d", file: "/a"))
    }

    @Test("a first copy that was cut off leaves its disk, and the next one is compared with it")
    func interrupted() async throws {
        let place = try Place()
        defer { place.remove() }
        var random = SplitMix64(seed: 7)
        let disk = disk(&random)
        let protection = try await Protection(place)
        let (connected, core) = try await protection.connect(size: UInt64(disk.count))
        let half = disk.count / 2 / Self.block * Self.block
        try await protection.loop.submit {
            connected.handler.value.deliver(to: core.value, on: connected.channel)
        }.get()
        try await protection.wait(core, "the comparison") { $0.isCompared }
        try await protection.loop.submit {
            disk[..<half].withUnsafeBytes { core.value.diskWrite(disk: 0, offset: 0, bytes: $0) }
            core.value.flush()
        }.get()
        try await protection.wait(core, "the data's arrival") { $0.outstandingBytes < UInt64(Self.block) * 17 }
        try await connected.channel.close()
        try await protection.waitForIdle()
        #expect(Directory.exists(protection.diskPath))
        let traffic = try await protection.protect(disk)
        #expect(try protection.diskContents() == disk)
        #expect(traffic.committed == Epoch(1))
        try await protection.stop()
    }
}
