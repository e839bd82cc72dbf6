import AsyncIO
import Foundation
import Qcow2
import TestSupport
import Testing
import Units

@testable import Node

@Suite("Damaged images", .enabled(if: ImageRecipe.canCook, "qemu-img and qemu-io are missing"))
struct ImageMutationTests {
    static let names = [
        "clusters of 512 bytes", "clusters of 4 KiB", "zlib, 4 KiB", "zlib", "zstd", "zlib with extended L2",
        "extended L2, 16 KiB", "internal snapshots", "persistent bitmaps", "version 2", "over raw",
    ]

    @Test("bytes flipped anywhere: a typed error or a read, never a crash, and no memory for it", arguments: names)
    func flipped(name: String) throws {
        let folder = try ScratchFolder()
        let path = try ImageRecipe.named(name).cook(in: folder.path)
        let sound = [UInt8](try Data(contentsOf: URL(filePath: path)))
        let places = try tables(path)
        var refused = 0
        let before = try residentBytes()
        for seed in 0..<UInt64(80) {
            var random = TestSupport.SplitMix64(seed: seed)
            var bytes = sound
            for _ in 0..<Int.random(in: 1...4, using: &random) {
                let range = Int.random(in: 0..<3, using: &random) == 0 ? 0..<128 : places.randomElement(using: &random)
                let place = Int.random(in: range ?? 0..<128, using: &random)
                bytes[place] =
                    Bool.random(using: &random)
                    ? bytes[place] ^ 1 << UInt8.random(in: 0..<8, using: &random)
                    : UInt8.random(in: 0...255, using: &random)
            }
            try Data(bytes).write(to: URL(filePath: path))
            do throws(ImageChainError) { try walk(path) } catch { refused += 1 }
            // Only the reading of files may fail otherwise, and these are here.
            do throws(ImageChainError) { _ = try ImageCheckReport.check(path: path, format: .qcow2) } catch {
                if case .io(let reason) = error { Issue.record("seed \(seed): \(reason)") }
            }
        }
        #expect(refused > 10, "only \(refused) of 80 were refused")
        #expect(try residentBytes() < before + (192 << 20))
    }

    /// Looks at all that a chain maps, as far as a damaged size lets it.
    private func walk(_ path: String) throws(ImageChainError) {
        let chain = try ImageChain(path: path, format: .qcow2)
        let buffer = AlignedBuffer(minimumCount: 65536)
        var offset: UInt64 = 0
        for _ in 0..<5000 {
            guard let extent = try chain.nextExtent(at: offset) else { break }
            precondition(extent.range.offset == offset && extent.range.length > 0 && extent.range.end <= chain.size)
            let count = Int(min(extent.range.length, UInt64(buffer.count)))
            try chain.read(offset, into: buffer.slice(0, count))
            offset = extent.range.end
        }
    }

    /// Where the tables of an image are, so that most flips matter; found without our own reader.
    private func tables(_ path: String) throws -> [Range<Int>] {
        let bytes = [UInt8](try Data(contentsOf: URL(filePath: path)))
        func field(_ offset: Int, _ length: Int) -> Int {
            bytes[offset..<offset + length].reduce(0) { $0 << 8 | Int($1) }
        }
        let cluster = 1 << field(20, 4)
        let l1 = field(40, 8)
        var ranges = [0..<min(512, bytes.count), l1..<l1 + field(36, 4) * 8]
        ranges.append(field(48, 8)..<field(48, 8) + min(cluster, 64))
        for index in 0..<field(36, 4) {
            let table = field(l1 + index * 8, 8) & 0x00FF_FFFF_FFFF_FE00
            if table != 0 { ranges.append(table..<table + min(cluster, 512)) }
        }
        return ranges
    }

    private func residentBytes() throws -> Int {
        let text = try String(contentsOfFile: "/proc/self/statm", encoding: .utf8)
        return (text.split(separator: " ").dropFirst().first.flatMap { Int($0) } ?? 0) * 4096
    }
}
