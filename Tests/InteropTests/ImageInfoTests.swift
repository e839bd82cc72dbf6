import Foundation
import TestSupport
import Testing

@Suite("image info", .enabled(if: ImageBinary.isReady, Comment(rawValue: ImageBinary.missing)))
struct ImageInfoTests {
    @Test("every key that qemu-img shows is shown with the same value", arguments: ImageRecipe.all)
    func sameKeys(recipe: ImageRecipe) throws {
        let folder = try ScratchFolder()
        let path = try recipe.cook(in: folder.path)
        let ours = try ImageBinary.run(["info", "--output=json", "--backing-chain", path])
        #expect(ours.status == 0, "\(ours.errors)")
        let theirs = try ImageKitchen(folder: folder.path).img(["info", "--output=json", "--backing-chain", path])
        let ourFiles = try #require(try ImageBinary.json(ours.output) as? [[String: Any]])
        let theirFiles = try #require(try ImageBinary.json(theirs) as? [[String: Any]])
        #expect(ourFiles.count == theirFiles.count)
        for (our, their) in zip(ourFiles, theirFiles) {
            var our = our
            let libqcow = our.removeValue(forKey: "libqcow")
            #expect((libqcow != nil) == (our["format"] as? String == "qcow2"))
            // Newer QEMUs tell of the nodes below, too.
            var their = their
            their.removeValue(forKey: "children")
            #expect(our as NSDictionary == their as NSDictionary, "ours \(our), qemu-img's \(their)")
        }
    }

    @Test("people are told the same, with libqcow's view")
    func human() throws {
        let folder = try ScratchFolder()
        let path = try ImageRecipe.named("extended L2, 64 KiB").cook(in: folder.path)
        let text = try ImageBinary.run(["info", path]).output
        for line in ["file format: qcow2", "extended l2: true", "libqcow: does not open it"] {
            #expect(text.contains(line), "\(text)")
        }
        let without = try ImageBinary.run(["info", "--no-libqcow", path]).output
        #expect(!without.contains("libqcow"))
        #expect(try ImageBinary.run(["info", folder.path + "/missing"]).status == 1)
    }

    @Test("libqcow's view says where it reads wrongly")
    func doubts() throws {
        let folder = try ScratchFolder()
        let path = try ImageRecipe.named("zeroes that keep their place").cook(in: folder.path)
        let info = try #require(
            try ImageBinary.json(try ImageBinary.run(["info", "--output=json", path]).output) as? [String: Any])
        let view = try #require(info["libqcow"] as? [String: Any])
        #expect(view["opens"] as? Bool == true)
        #expect(view["virtual-size"] as? Int == info["virtual-size"] as? Int)
        #expect((view["doubts"] as? [String])?.contains { $0.contains("zero clusters") } == true, "\(view)")
    }

    @Test("what cannot be read is refused in one line")
    func refused() throws {
        let folder = try ScratchFolder()
        let path = try ImageKitchen(folder: folder.path).create("a.qcow2", "cluster_size=64k", size: 1 << 20)
        try ImageBinary.patch(path, at: 20, [0, 0, 0, 40])
        let outcome = try ImageBinary.run(["info", path])
        #expect(outcome.status == 1 && outcome.output.isEmpty)
        #expect(outcome.errors.hasPrefix("colo-blk: \(path): cluster_bits at byte 20 is 40"), "\(outcome.errors)")
    }
}
