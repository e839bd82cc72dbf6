import TestSupport
import Testing

@testable import Node

@Suite("A power loss at every moment of a guest's store")
struct StoreCrashTests {
    @Test(
        "whatever a power loss leaves, the checkpoint that was acknowledged is recovered, or the one being committed",
        arguments: ["", "w", "C", "wCwCw", "CwAwC", "wCA", "CwP"], [UInt64(31)])
    func powerLoss(story: String, seed: UInt64) throws {
        let lab = try StoreCrashLab(seed: seed)
        try lab.examine(story)
        print("store crashes, story '\(story)', seed \(seed): \(lab.figures)")
        let commits = story.count { $0 == "C" }
        #expect(lab.figures.checkpointsSeen.count >= commits)
        #expect(lab.figures.crashes > 20)
    }

    private static let omissions: [(name: String, isOmitted: @Sendable (FileEvent) -> Bool)] = [
        ("the commit record is not synced", { $0 == .sync("g/commit") }),
        ("the RAM log is not synced", { $0.isSync && $0.path.hasPrefix("g/ram/") }),
        ("the device state is not synced", { $0.isSync && $0.path.hasPrefix("g/device/") }),
        ("the secondary disk is not synced", { $0 == .sync("g/disks/d/secondary.raw") }),
        ("the session's files are not synced", { $0.isSync && $0.path.hasPrefix("g/sessions/") }),
        ("the guest's own name is not synced", { $0 == .syncDirectory("") }),
        ("the names of disks are not synced", { $0 == .syncDirectory("g/disks") }),
        ("the name of the device state is not synced", { $0 == .syncDirectory("g/device") }),
    ]

    @Test("a planted omission is found", arguments: 0..<omissions.count)
    func planted(index: Int) throws {
        let omission = Self.omissions[index]
        let lab = try StoreCrashLab(seed: 32)
        lab.plant = { events in events.filter { !omission.isOmitted($0) } }
        let finding = #expect(throws: StoreCrashLab.Finding.self, "\(omission.name)") { try lab.examine("wCwC") }
        if let finding { print("\(omission.name): \(finding.description.prefix { $0 != "\n" })") }
    }
}
