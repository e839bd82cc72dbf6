import Foundation
import TestSupport
import Testing

@Suite("image convert", .enabled(if: ImageBinary.isReady, Comment(rawValue: ImageBinary.missing)))
struct ImageConvertTests {
    @Test("a converted image is the same disk, in both formats", arguments: ImageRecipe.all)
    func sameDisk(recipe: ImageRecipe) throws {
        let folder = try ScratchFolder()
        let path = try recipe.cook(in: folder.path)
        let kitchen = ImageKitchen(folder: folder.path)
        for format in ["raw", "qcow2"] {
            let target = kitchen.path("converted.\(format)")
            let outcome = try ImageBinary.run(["convert", "-O", format, path, target])
            #expect(outcome.status == 0 && outcome.output.isEmpty, "\(outcome.errors)")
            let compared = try Program.run("qemu-img", ["compare", "-F", format, path, target])
            #expect(compared.status == 0, "\(format): \(compared.output)\(compared.errors)")
            if format == "qcow2" { try kitchen.img(["check", "-q", target]) }
        }
        #expect(
            try FileManager.default.contentsOfDirectory(atPath: folder.path).allSatisfy { !$0.contains("converting") })
    }

    @Test("zeroes take no space")
    func sparse() throws {
        let folder = try ScratchFolder()
        let kitchen = ImageKitchen(folder: folder.path)
        let path = try kitchen.create("top.qcow2", "cluster_size=64k", size: 40 << 30)
        try kitchen.io(path, ["write -P 1 0 4k", "write -P 0 1G 1M", "write -P 2 35G 64k"])
        for (format, limit) in [("raw", 200_000), ("qcow2", 1_000_000)] {
            let target = kitchen.path("sparse.\(format)")
            let outcome = try ImageBinary.run(["convert", "-p", "-O", format, path, target])
            #expect(outcome.status == 0)
            #expect(outcome.errors.contains("converting [") && outcome.errors.contains("40 GiB"), "\(outcome.errors)")
            let values = try URL(filePath: target).resourceValues(forKeys: [.fileSizeKey])
            #expect(format != "raw" || values.fileSize == 40 << 30)
            let info = try #require(
                try ImageBinary.json(try ImageBinary.run(["info", "--output=json", target]).output) as? [String: Any])
            #expect((info["actual-size"] as? Int ?? .max) < limit, "\(format): \(info)")
        }
    }

    @Test("a target that would destroy something is refused")
    func refusedTargets() throws {
        let folder = try ScratchFolder()
        let kitchen = ImageKitchen(folder: folder.path)
        let path = try ImageRecipe.named("over raw").cook(in: folder.path)
        for target in [path, kitchen.path("base.raw"), folder.path] {
            let outcome = try ImageBinary.run(["convert", path, target])
            #expect(outcome.status == 1 && outcome.errors.hasPrefix("colo-blk: "), "\(outcome.errors)")
        }
        let store = kitchen.path("store")
        let disk = store + "/guest/disks/d"
        try FileManager.default.createDirectory(atPath: disk, withIntermediateDirectories: true)
        for name in ["store.info", "lock", "guest/disks/d/secondary.raw"] {
            _ = FileManager.default.createFile(atPath: "\(store)/\(name)", contents: Data("untouched".utf8))
        }
        for target in ["\(disk)/secondary.raw", "\(disk)/new.raw", "\(store)/x.raw"] {
            let outcome = try ImageBinary.run(["convert", path, target])
            #expect(outcome.status == 1 && outcome.errors.contains("is in the store"), "\(outcome.errors)")
        }
        #expect(try String(contentsOfFile: "\(disk)/secondary.raw", encoding: .utf8) == "untouched")
    }

    @Test("files of a store that is in use are read only when it is said")
    func storeInUse() throws {
        let folder = try ScratchFolder()
        let kitchen = ImageKitchen(folder: folder.path)
        let store = kitchen.path("store")
        try FileManager.default.createDirectory(atPath: store + "/g", withIntermediateDirectories: true)
        for name in ["store.info", "lock"] {
            _ = FileManager.default.createFile(atPath: "\(store)/\(name)", contents: Data())
        }
        let image = try kitchen.create("store/g/a.qcow2", "cluster_size=64k", size: 1 << 20)
        let descriptor = open("\(store)/lock", O_RDWR)
        #expect(flock(descriptor, LOCK_EX | LOCK_NB) == 0)
        for verb in [["info"], ["check"], ["map"], ["convert", "-O", "raw"]] {
            let target = verb[0] == "convert" ? [kitchen.path("out.raw")] : []
            let refused = try ImageBinary.run(verb + [image] + target)
            #expect(refused.status == 1 && refused.errors.contains("is in use"), "\(verb): \(refused.errors)")
            #expect(try ImageBinary.run(verb + ["-U", image] + target).status == 0, "\(verb)")
        }
        close(descriptor)
        #expect(try ImageBinary.run(["info", image]).status == 0)
    }
}
