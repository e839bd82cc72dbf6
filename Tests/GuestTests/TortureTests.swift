import Foundation
import Testing

extension RealGuests {
    /// A short run of `Scripts/torture`: some faults at random moments against real processes.
    @Suite struct TortureTests {
        @Test func randomFaultsLoseNothing() throws {
            try Scene.run("torture") { scene in
                let log = scene.directory + "/torture.log"
                let script = Settings.repository + "/Scripts/torture"
                let seed = Settings.seed % (1 << 32)
                let torture = try ChildProcess(
                    "torture", "/usr/bin/env",
                    [
                        "python3", script, "--injections", Settings.isFull ? "100" : "8", "--minutes", "4", "--seed",
                        "\(seed)",
                    ], output: log,
                    environment: ["COLO_BLK_BIN": try #require(Settings.binary)])
                let code = try torture.waitForExit(within: 300)
                let text = try String(contentsOfFile: log, encoding: .utf8)
                #expect(code == 0, "\(text.suffix(3000))")
                let summary = text.split(separator: "\n").last.map(String.init) ?? ""
                #expect(summary.contains(" injections in "), "\(text.suffix(3000))")
                scene.say(summary)
            }
        }
    }
}
