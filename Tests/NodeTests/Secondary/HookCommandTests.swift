import Foundation
import Glibc
import Testing

@testable import Node

@Suite("Commands of the operator")
struct HookCommandTests {
    private static func withFile(_ body: (String) async throws -> Void) async throws {
        let file = FileManager.default.temporaryDirectory.appending(path: "hook-\(UUID().uuidString.prefix(8))").path
        defer { unlink(file) }
        try await body(file)
    }

    @Test("the exit code is the answer, and 0 alone is a yes")
    func answers() async {
        for (text, outcome) in [
            ("true", HookCommand.Outcome.exited(0)), ("exit 3", .exited(3)),
            ("nosuchprogram 2>/dev/null", .exited(127)), ("kill -9 $$", .signaled(9)),
        ] {
            let seen = await HookCommand(text: text).run(environment: [:])
            #expect(seen == outcome, "\(text)")
            #expect(seen.isSuccess == (text == "true"), "\(text)")
        }
    }

    @Test("facts are in its environment, and are never part of its text")
    func environment() async throws {
        try await Self.withFile { file in
            let evil = "a'\"; touch \(file).evil; $(touch \(file).evil) `touch \(file).evil`"
            let command = HookCommand(text: "printf '%s' \"$COLO_BLK_PRIMARY\" > \(file)")
            let outcome = await command.run(environment: ["COLO_BLK_PRIMARY": evil])
            #expect(outcome.isSuccess)
            let written = try String(contentsOfFile: file, encoding: .utf8)
            #expect(written == evil)
            #expect(!FileManager.default.fileExists(atPath: "\(file).evil"))
        }
    }

    @Test("when its time is over it is killed, and what it started with it")
    func tooLong() async throws {
        try await Self.withFile { file in
            var command = HookCommand(text: "sleep 100 & echo $! > \(file); sleep 100")
            command.limit = .milliseconds(500)
            let outcome = await command.run(environment: [:])
            #expect(outcome == .timedOut)
            #expect(!outcome.isSuccess)
            let text = try String(contentsOfFile: file, encoding: .utf8).trimmingCharacters(in: .whitespacesAndNewlines)
            let child = try #require(pid_t(text))
            // Without init to reap it it may stay as a zombie.
            for _ in 0..<200 where kill(child, 0) == 0 && !Self.isZombie(child) { usleep(10_000) }
            #expect(kill(child, 0) != 0 || Self.isZombie(child), "what it started lives on")
        }
    }

    private static func isZombie(_ pid: pid_t) -> Bool {
        let stat = (try? String(contentsOfFile: "/proc/\(pid)/stat", encoding: .utf8)) ?? ""
        return stat.split(separator: ")").last?.split(separator: " ").first == "Z"
    }
}
