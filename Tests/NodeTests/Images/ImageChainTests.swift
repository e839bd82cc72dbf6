import AsyncIO
import Foundation
import Node
import Qcow2
import TestSupport
import Testing
import Units

/// All of a disk, read through a chain in pieces of random sizes.
func readAll(_ chain: ImageChain, random: inout TestSupport.SplitMix64, aligned: Bool) throws -> [UInt8] {
    var bytes = [UInt8](repeating: 0xEE, count: Int(chain.size))
    let buffer = AlignedBuffer(minimumCount: 1 << 20)
    var offset = 0
    while offset < bytes.count {
        let wanted = aligned ? 65536 : Int.random(in: 1...200_000, using: &random)
        let count = min(wanted, bytes.count - offset)
        let part = buffer.slice(0, count)
        part.initializeMemory(as: UInt8.self, repeating: 0xDD)
        try chain.read(UInt64(offset), into: part)
        bytes.replaceSubrange(offset..<offset + count, with: part)
        offset += count
    }
    return bytes
}

/// Where two byte strings first differ, for messages.
func firstDifference(_ left: [UInt8], _ right: [UInt8]) -> Int? {
    if left == right { return nil }
    return zip(left, right).enumerated().first { $0.element.0 != $0.element.1 }?.offset ?? min(left.count, right.count)
}

@Suite("Images and what is below them", .enabled(if: ImageRecipe.canCook, "qemu-img and qemu-io are missing"))
struct ImageChainTests {
    @Test("every kind of image reads as qemu-img converts it, byte for byte", arguments: ImageRecipe.all)
    func readsAsQemu(recipe: ImageRecipe) throws {
        let folder = try ScratchFolder()
        let path = try recipe.cook(in: folder.path)
        let expected = try ImageKitchen(folder: folder.path).contents(path)
        let chain = try ImageChain(path: path)
        var random = TestSupport.SplitMix64(seed: 99)
        #expect(firstDifference(try readAll(chain, random: &random, aligned: true), expected) == nil)
        #expect(firstDifference(try readAll(chain, random: &random, aligned: false), expected) == nil)
        let buffered = try ImageChain(path: path, direct: false)
        #expect(firstDifference(try readAll(buffered, random: &random, aligned: false), expected) == nil)
    }

    @Test("extents cover the disk without a gap, zeroes are zero, data lies where they say", arguments: ImageRecipe.all)
    func extentsAreTrue(recipe: ImageRecipe) throws {
        let folder = try ScratchFolder()
        let path = try recipe.cook(in: folder.path)
        let expected = try ImageKitchen(folder: folder.path).contents(path)
        let chain = try ImageChain(path: path)
        var offset: UInt64 = 0
        while let extent = try chain.nextExtent(at: offset) {
            #expect(extent.range.offset == offset && extent.range.length > 0)
            let bytes = expected[Int(offset)..<Int(extent.range.end)]
            if extent.isZero {
                #expect(bytes.allSatisfy { $0 == 0 }, "zeroes at \(extent.range)")
            } else if let place = extent.fileOffset {
                let handle = try FileHandle(forReadingFrom: URL(filePath: chain.paths[extent.depth]))
                try handle.seek(toOffset: place)
                var data = [UInt8](try handle.read(upToCount: Int(extent.range.length)) ?? Data())
                data += [UInt8](repeating: 0, count: Int(extent.range.length) - data.count)
                #expect(data == Array(bytes), "data at \(extent.range)")
            }
            offset = extent.range.end
        }
        #expect(offset == chain.size)
    }

    @Test("a lookup never goes beyond its limit")
    func limits() throws {
        let folder = try ScratchFolder()
        let chain = try ImageChain(path: try ImageRecipe.named("a chain of nine").cook(in: folder.path))
        for offset in stride(from: UInt64(0), to: chain.size, by: 7 * 512) {
            let extent = try #require(try chain.nextExtent(at: offset, limit: 1000))
            #expect(extent.range.offset == offset && extent.range.length <= 1000 && extent.range.length > 0)
        }
        #expect(try chain.nextExtent(at: chain.size) == nil)
        #expect(throws: ImageChainError.self) { try readPast(chain) }
    }

    private func readPast(_ chain: ImageChain) throws {
        let buffer = AlignedBuffer(minimumCount: 4096)
        try chain.read(chain.size - 512, into: buffer.bytes)
    }

    @Test("marks of damage and guessed formats are told")
    func warnings() throws {
        let folder = try ScratchFolder()
        let dirty = try ImageChain(path: try ImageRecipe.named("lazy refcounts, left dirty").cook(in: folder.path))
        #expect(dirty.warnings.contains { $0.contains("dirty") }, "\(dirty.warnings)")

        let kitchen = ImageKitchen(folder: folder.path)
        _ = try kitchen.raw("base.raw", size: 1 << 20, seed: 1)
        let path = try kitchen.create("guess.qcow2", "cluster_size=64k", size: 1 << 20)
        try setBacking(path, name: "base.raw")
        let guessed = try ImageChain(path: path)
        #expect(guessed.warnings.contains { $0.contains("guessed") }, "\(guessed.warnings)")
        #expect(guessed.paths == [path, folder.path + "/base.raw"])
        #expect(try kitchen.contents(path) == (try kitchen.contents(kitchen.path("base.raw"), format: "raw")))
    }

    @Test("loops, chains that are too deep, strange names and strange formats are refused by name")
    func refusedChains() throws {
        let folder = try ScratchFolder()
        let kitchen = ImageKitchen(folder: folder.path)
        let path = try kitchen.create("a.qcow2", "cluster_size=64k", size: 1 << 20)
        let other = try kitchen.create("b.qcow2", "cluster_size=64k", size: 1 << 20)
        try setBacking(path, name: "b.qcow2")
        try setBacking(other, name: "./a.qcow2")
        #expect(throws: ImageChainError.loop(path: folder.path + "/./a.qcow2")) { _ = try ImageChain(path: path) }
        for (name, word) in [
            ("nbd://host/disk", "no path"), ("json:{}", "no path"), ("missing.raw", "No such file"),
            (".", "no regular file"),
        ] {
            try setBacking(other, name: name)
            let error = #expect(throws: ImageChainError.self) { _ = try ImageChain(path: path) }
            #expect(error?.description.contains(word) == true, "\(String(describing: error))")
        }
        try Data("QED\0 and more".utf8).write(to: URL(filePath: kitchen.path("b.qed")))
        try setBacking(path, name: "b.qed")
        #expect(throws: ImageChainError.unsupportedFormat(path: kitchen.path("b.qed"), format: "qed")) {
            _ = try ImageChain(path: path)
        }
        for level in 0..<70 {
            let link = try kitchen.create("deep\(level).qcow2", "cluster_size=64k", size: 1 << 20)
            if level > 0 { try setBacking(link, name: "deep\(level - 1).qcow2") }
        }
        #expect(try ImageChain(path: kitchen.path("deep63.qcow2")).paths.count == 64)
        #expect(throws: ImageChainError.tooDeep(path: kitchen.path("deep0.qcow2"), limit: 64)) {
            _ = try ImageChain(path: kitchen.path("deep64.qcow2"))
        }
    }

    @Test("what cannot be read is refused in words that name it")
    func refusedFeatures() throws {
        let folder = try ScratchFolder()
        let kitchen = ImageKitchen(folder: folder.path)
        let external = kitchen.path("external.qcow2")
        try kitchen.img([
            "create", "-q", "-f", "qcow2", "-o", "data_file=\(kitchen.path("the-data")),data_file_raw=on", external,
            "1M",
        ])
        try expectRefusal(external, "external data file '\(kitchen.path("the-data"))'")
        let luks = try kitchen.create("luks.qcow2", "cluster_size=64k", size: 1 << 20)
        try patch(luks, at: 32, [0, 0, 0, 2])
        try expectRefusal(luks, "LUKS encryption")
        let unknown = try kitchen.create("unknown.qcow2", "cluster_size=64k", size: 1 << 20)
        try patch(unknown, at: 72, [0, 0, 1])
        try expectRefusal(unknown, "incompatible bit 40")
        // The image's own name for bit 0 of the second byte, written over the one that QEMU gave to bit 4.
        let bytes = [UInt8](try Data(contentsOf: URL(filePath: unknown)))
        let name = try #require(bytes.firstRange(of: Array("extended L2 entries".utf8)))
        try patch(unknown, at: name.lowerBound - 1, [40] + Array("flux capacitors\0".utf8))
        try expectRefusal(unknown, "'flux capacitors' (incompatible bit 40)")
    }

    private func expectRefusal(_ path: String, _ words: String) throws {
        let error = #expect(throws: ImageChainError.self) { _ = try ImageChain(path: path) }
        #expect(error?.description.contains(words) == true, "\(String(describing: error))")
    }
}

/// Writes bytes into a file.
func patch(_ path: String, at offset: Int, _ bytes: [UInt8]) throws {
    let handle = try FileHandle(forUpdating: URL(filePath: path))
    try handle.seek(toOffset: UInt64(offset))
    try handle.write(contentsOf: Data(bytes))
    try handle.close()
}

/// Gives an image of 64 KiB clusters a backing file without a format, as no qemu-img would any more.
func setBacking(_ path: String, name: String) throws {
    try patch(path, at: 8, [0, 0, 0, 0, 0, 0, 0x80, 0, 0, 0, 0, UInt8(name.utf8.count)])
    try patch(path, at: 0x8000, Array(name.utf8))
}
