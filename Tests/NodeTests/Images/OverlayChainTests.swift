import Foundation
import TestSupport
import Testing
import Units

@testable import Node

@Suite("The chains of a replica as images", .enabled(if: ImageRecipe.canCook, "qemu-img and qemu-io are missing"))
struct OverlayChainTests {
    /// A stopped store whose top file is a hidden disk, or an active disk over it.
    private func chain(active: Bool, seed: UInt64) throws -> (scene: RecoverScene, path: String) {
        let scene = try RecoverScene(size: 2_500_000 / 512 * 512, writes: 120, seed: seed)
        guard active else { return (scene, scene.disk + "/hidden-2.qcow2") }
        let replica = try DiskReplica(directory: scene.disk, durable: true)
        return (scene, try replica.createActive(name: "active.qcow2", after: Epoch(1)))
    }

    @Test("hidden over hidden over secondary, and active over all, is the checkpoint", arguments: [false, true])
    func content(active: Bool) throws {
        let (scene, path) = try chain(active: active, seed: active ? 31 : 32)
        let chain = try ImageChain(path: path)
        #expect(chain.paths.count == (active ? 4 : 3) && chain.warnings.isEmpty)
        var random = TestSupport.SplitMix64(seed: 1)
        #expect(firstDifference(try readAll(chain, random: &random, aligned: true), scene.checkpoint) == nil)
        #expect(try ImageKitchen(folder: scene.folder.path).contents(path) == scene.checkpoint)
    }

    @Test("info, map, check and convert work on them as qemu-img does", arguments: [false, true])
    func verbs(active: Bool) throws {
        let (scene, path) = try chain(active: active, seed: active ? 33 : 34)
        let kitchen = ImageKitchen(folder: scene.folder.path)
        let chain = try ImageChain(path: path)
        var lines: [String] = []
        try chain.forEachMapEntry { (entry) throws(ImageChainError) in lines.append(entry.json) }
        #expect("[" + lines.joined(separator: ",\n") + "]\n" == (try kitchen.img(["map", "--output=json", path])))
        #expect(try ImageInfo.describe(chain, libqcow: true).count == chain.paths.count)
        for path in chain.paths where path.hasSuffix(".qcow2") {
            let report = try #require(try ImageCheckReport.check(path: path, format: nil))
            let theirs = try Program.run("qemu-img", ["check", "--output=json", path])
            #expect(report.verdict.rawValue == theirs.status, "\(report.findings) \(theirs.errors)")
        }
        for format in ImageFormat.allCases {
            let target = kitchen.path("out.\(format)")
            _ = try ImageConverter(chain, to: target, format: format).run()
            #expect(try kitchen.contents(target) == scene.checkpoint)
        }
        let held = try Store.open(directory: scene.store)
        #expect(try ImagePlaceInStore.find(path)?.isInUse == true)
        withExtendedLifetime(held) {}
    }
}
