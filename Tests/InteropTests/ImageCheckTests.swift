import Foundation
import TestSupport
import Testing

@Suite("image check", .enabled(if: ImageBinary.isReady, Comment(rawValue: ImageBinary.missing)))
struct ImageCheckTests {
    @Test("figures and exit code are qemu-img's", arguments: ImageRecipe.all)
    func sameFigures(recipe: ImageRecipe) throws {
        let folder = try ScratchFolder()
        try compare(try recipe.cook(in: folder.path))
    }

    /// Checks with both programs.
    private func compare(_ path: String) throws {
        let ours = try ImageBinary.run(["check", "--output=json", path])
        let theirs = try Program.run("qemu-img", ["check", "--output=json", path])
        #expect(ours.status == theirs.status, "\(ours.errors)\(theirs.errors)")
        guard theirs.status != 63 else { return }
        #expect(try ImageBinary.json(ours.output) == ImageBinary.json(theirs.output), "\(ours.errors)\(theirs.errors)")
    }

    /// A plain image with data, its cluster size, the place of its first refcount block and of its first L2 table.
    private func sample(_ folder: ScratchFolder) throws -> (path: String, refcounts: Int, table: Int) {
        let path = try ImageRecipe.named("clusters of 64 KiB without zeroes").cook(in: folder.path)
        let refcountTable = try ImageBinary.field(path, at: 48, 8)
        let l1 = try ImageBinary.field(path, at: 40, 8)
        return (
            path, try ImageBinary.field(path, at: refcountTable, 8),
            try ImageBinary.field(path, at: l1, 8) & 0x00FF_FFFF_FFFF_FE00
        )
    }

    @Test("leaks end with 3")
    func leaks() throws {
        let folder = try ScratchFolder()
        let (path, refcounts, _) = try sample(folder)
        let end = (try ImageBinary.size(path) + 65535) / 65536
        try ImageBinary.patch(path, at: (end + 3) * 65536 - 1, [0])
        try ImageBinary.patch(path, at: refcounts + 2 * end, [0, 1, 0, 1, 0, 1])
        try compare(path)
        #expect(try ImageBinary.run(["check", path]).status == 3)
        #expect(try ImageBinary.run(["check", path]).errors.contains("Leaked cluster \(end) refcount=1 reference=0"))
    }

    @Test("clusters that are used but not counted end with 2")
    func corruption() throws {
        let folder = try ScratchFolder()
        let (path, refcounts, _) = try sample(folder)
        let data = try ImageBinary.field(path, at: try sample(folder).table, 8) & 0x00FF_FFFF_FFFF_FE00
        try ImageBinary.patch(path, at: refcounts + data / 65536 * 2, [0, 0])
        try compare(path)
        #expect(try ImageBinary.run(["check", path]).status == 2)
    }

    @Test("damaged tables: neither program calls clean what the other calls damaged", arguments: 0..<24)
    func damagedTables(seed: Int) throws {
        let folder = try ScratchFolder()
        let (path, refcounts, table) = try sample(folder)
        var random = SplitMix64(seed: UInt64(seed))
        // Entries that are in use: 20 clusters of data, 26 clusters that are counted.
        let isTable = Bool.random(using: &random)
        let place =
            isTable
            ? table + Int.random(in: 0..<20 * 8, using: &random) : refcounts + Int.random(in: 0..<52, using: &random)
        let before = try ImageBinary.field(path, at: place, 1)
        try ImageBinary.patch(path, at: place, [UInt8(before) ^ 1 << UInt8.random(in: 0..<8, using: &random)])
        let ours = try ImageBinary.run(["check", path])
        let theirs = try Program.run("qemu-img", ["check", path])
        #expect(
            ours.status == theirs.status,
            "seed \(seed), byte \(place): ours \(ours.status) \(ours.errors), theirs \(theirs.status) \(theirs.errors)")
    }

    @Test("a raw file has nothing to check")
    func raw() throws {
        let folder = try ScratchFolder()
        let outcome = try ImageBinary.run(["check", try ImageRecipe.named("a sparse raw file").cook(in: folder.path)])
        #expect(outcome.status == 63 && outcome.errors.contains("nothing to check"))
    }
}
