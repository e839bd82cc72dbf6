import TestSupport
import Testing

@Suite("image map", .enabled(if: ImageBinary.isReady, Comment(rawValue: ImageBinary.missing)))
struct ImageMapTests {
    @Test("the map is qemu-img's map, byte for byte", arguments: ImageRecipe.all)
    func sameMap(recipe: ImageRecipe) throws {
        let folder = try ScratchFolder()
        let path = try recipe.cook(in: folder.path)
        let ours = try ImageBinary.run(["map", "--output=json", path])
        #expect(ours.status == 0, "\(ours.errors)")
        let theirs = try ImageKitchen(folder: folder.path).img(["map", "--output=json", path])
        #expect(ours.output == theirs)
    }

    @Test("people see where data lies")
    func human() throws {
        let folder = try ScratchFolder()
        let path = try ImageRecipe.named("over raw").cook(in: folder.path)
        let ours = try ImageBinary.run(["map", path])
        let theirs = try ImageKitchen(folder: folder.path).img(["map", path])
        #expect(ours.output == theirs)
        let packed = try ImageRecipe.named("zlib").cook(in: folder.path)
        #expect(try ImageBinary.run(["map", packed]).output.contains("(compressed)"))
    }
}
