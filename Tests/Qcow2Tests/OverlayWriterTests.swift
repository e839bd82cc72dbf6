import Foundation
import Qcow2
import Testing

/// An overlay under construction with what it should show.
private struct Model {
    var writer: OverlayWriter
    var file = MemoryFile()
    /// The disk through the overlay.
    var disk: [UInt8]
    var random: SplitMix64
    /// Called after each single write.
    var afterWrite: ((MemoryFile, [UInt8]) throws -> Void)?

    init(size: Int, base: [UInt8], seed: UInt64, clusterBits: Int? = nil) throws {
        writer = try OverlayWriter(
            virtualSize: UInt64(size), backingFile: "base.raw", backingFormat: .raw, clusterBits: clusterBits)
        disk = base
        random = SplitMix64(seed: seed)
        file.grow(to: writer.fileLength)
        for write in try writer.initialWrites() { file.write(write) }
    }

    /// Maps up to `count` random units, some of them as zeroes.
    mutating func grow(count: Int) throws {
        let unit = writer.unit
        let units = (disk.count - 1) / unit + 1
        var data: Set<UInt64> = []
        var zeroes: Set<UInt64> = []
        for _ in 0..<count {
            let place = UInt64.random(in: 0..<UInt64(units), using: &random)
            if writer.contains(place) || data.contains(place) || zeroes.contains(place) { continue }
            if random.next() % 5 == 0 { zeroes.insert(place) } else { data.insert(place) }
        }
        var growth = OverlayGrowth()
        try writer.extend(data: data.sorted(), zeroes: zeroes.sorted(), &growth)
        file.grow(to: growth.fileLength)
        var later = disk
        for place in zeroes {
            let range = Int(place) * unit..<min(Int(place + 1) * unit, disk.count)
            later.replaceSubrange(range, with: repeatElement(0, count: range.count))
        }
        for (index, place) in data.sorted().enumerated() {
            var bytes = Array(random.bytes(unit)[..<unit])
            let range = Int(place) * unit..<min(Int(place + 1) * unit, disk.count)
            if range.count < unit {
                bytes.replaceSubrange(range.count..., with: repeatElement(0, count: unit - range.count))
            }
            later.replaceSubrange(range, with: bytes[..<range.count])
            try perform(FileWrite(offset: growth.dataOffset + UInt64(index * unit), bytes: bytes), seen: disk)
        }
        for write in growth.refcountWrites.separate { try perform(write, seen: disk) }
        let mapping = growth.mappingWrites.separate
        for write in mapping.dropLast() { try perform(write, seen: nil) }
        if let last = mapping.last { try perform(last, seen: later) }
        disk = later
    }

    private mutating func perform(_ write: FileWrite, seen: [UInt8]?) throws {
        file.write(write)
        if let seen { try afterWrite?(file, seen) } else { try afterWrite?(file, []) }
    }
}

@Suite("Overlays as QEMU sees them", .enabled(if: QemuTool.isInstalled, "qemu-utils is not installed"))
struct OverlayWriterTests {
    @Test(
        "qemu-img finds nothing wrong and reads the model's contents after random growth",
        arguments: [
            (512, 4), (4096, 4), (4608, 6), (2 << 20, 300), (3_000_320, 900), (10 << 20, 9000),
        ], [9, 12, 14])
    func randomGrowth(shape: (size: Int, units: Int), clusterBits: Int) throws {
        let (size, units) = shape
        let seed = UInt64(size) &* 77 &+ UInt64(clusterBits)
        let scratch = try Scratch()
        var random = SplitMix64(seed: seed)
        let base = random.bytes(size)
        _ = try scratch.file("base.raw", base)
        var model = try Model(size: size, base: base, seed: seed, clusterBits: clusterBits)
        for _ in 0..<4 { try model.grow(count: units / 4 + 1) }
        let image = try scratch.file("overlay.qcow2", model.file.bytes)
        let check = try QemuTool.run("qemu-img", ["check", "-f", "qcow2", image])
        #expect(check.status == 0, "seed \(seed): \(check.output)")
        let seen = try QemuTool.contents(image, in: scratch)
        #expect(seen == model.disk, "seed \(seed)")
    }

    @Test(
        "a crash after any single write leaves an image with the right contents and at worst leaked clusters",
        arguments: [9, 12])
    func crashAfterEachWrite(clusterBits: Int) throws {
        let seed = 20_232 + UInt64(clusterBits)
        let scratch = try Scratch()
        let size = 2 << 20
        var random = SplitMix64(seed: seed)
        let base = random.bytes(size)
        _ = try scratch.file("base.raw", base)
        var model = try Model(size: size, base: base, seed: seed, clusterBits: clusterBits)
        try model.grow(count: 200)
        var images = 0
        model.afterWrite = { file, seen in
            images += 1
            let image = try scratch.file("crash.qcow2", file.bytes)
            let check = try QemuTool.run("qemu-img", ["check", "-f", "qcow2", image])
            #expect(check.status == 0 || check.status == 3, "seed \(seed), write \(images): \(check.output)")
            if !seen.isEmpty, images % 4 == 0 {
                let contents = try QemuTool.contents(image, in: scratch)
                #expect(contents == seen, "seed \(seed), write \(images)")
            }
        }
        for _ in 0..<3 { try model.grow(count: 5) }
        #expect(images > 15)
    }

    @Test("a new refcount block counts from the moment that its table entry is written")
    func refcountBlockBoundary() throws {
        let seed: UInt64 = 99
        let scratch = try Scratch()
        let size = 12 << 20
        let base = [UInt8](repeating: 7, count: size)
        _ = try scratch.file("base.raw", base)
        var model = try Model(size: size, base: base, seed: seed, clusterBits: 12)
        // Tables and the fixed clusters take some too; stop a few clusters before 2048.
        let first = (0..<2034).map { UInt64($0) }
        try map(&model, first)
        model.afterWrite = { file, _ in
            let image = try scratch.file("crash.qcow2", file.bytes)
            let check = try QemuTool.run("qemu-img", ["check", "-f", "qcow2", image])
            #expect(check.status == 0 || check.status == 3, "seed \(seed): \(check.output)")
        }
        for _ in 0..<3 { try model.grow(count: 16) }
        #expect(model.writer.fileLength > 2048 * 4096, "the boundary was crossed")
        let image = try scratch.file("overlay.qcow2", model.file.bytes)
        #expect(try QemuTool.run("qemu-img", ["check", "-f", "qcow2", image]).status == 0)
    }

    private func map(_ model: inout Model, _ blocks: [UInt64]) throws {
        var growth = OverlayGrowth()
        try model.writer.extend(data: blocks, zeroes: [], &growth)
        model.file.grow(to: growth.fileLength)
        for write in growth.refcountWrites.separate + growth.mappingWrites.separate { model.file.write(write) }
        for block in blocks {
            model.disk.replaceSubrange(
                Int(block) * 4096..<Int(block + 1) * 4096, with: repeatElement(0, count: 4096))
        }
    }

    @Test("an overlay over an overlay reads through both, and its backing name can be changed in place")
    func chain() throws {
        let scratch = try Scratch()
        let size = 1 << 20
        let base = [UInt8](repeating: 1, count: size)
        _ = try scratch.file("base.raw", base)
        var lower = try Model(size: size, base: base, seed: 1)
        try lower.grow(count: 60)
        _ = try scratch.file("hidden-2.qcow2", lower.file.bytes)
        var upper = try Model(size: size, base: lower.disk, seed: 2)
        try upper.grow(count: 60)
        let rename = try upper.writer.setBackingFile("hidden-2.qcow2", format: .qcow2)
        upper.file.write(rename)
        let image = try scratch.file("hidden-1.qcow2", upper.file.bytes)
        #expect(try QemuTool.run("qemu-img", ["check", "-f", "qcow2", image]).status == 0)
        #expect(try QemuTool.contents(image, in: scratch) == upper.disk)
    }

    @Test("QEMU writes to an empty 64 KiB overlay, and only there", arguments: [512, 1_000_448, 40 << 20])
    func emptyOverlay(size: Int) throws {
        let scratch = try Scratch()
        let base = [UInt8](repeating: 3, count: size)
        let basePath = try scratch.file("base.raw", base)
        let empty = try EmptyOverlay(virtualSize: UInt64(size), backingFile: "base.raw", backingFormat: .raw)
        var file = MemoryFile()
        file.grow(to: empty.fileLength)
        for write in empty.writes { file.write(write) }
        let image = try scratch.file("active.qcow2", file.bytes)
        #expect(try QemuTool.run("qemu-img", ["check", "-f", "qcow2", image]).status == 0)
        let write = try QemuTool.run("qemu-io", ["-f", "qcow2", "-c", "write -P 9 0 512", image])
        #expect(write.status == 0, "\(write.output)")
        let check = try QemuTool.run("qemu-img", ["check", "-f", "qcow2", image])
        #expect(check.status == 0, "\(check.output)")
        var expected = base
        expected.replaceSubrange(0..<512, with: repeatElement(9, count: 512))
        #expect(try QemuTool.contents(image, in: scratch) == expected)
        #expect(try [UInt8](Data(contentsOf: URL(fileURLWithPath: basePath))) == base)
    }
}
