import Foundation
import Link
import Testing

extension BadInput {
    /// `colo-blk status --follow` beside a primary that comes and goes.
    @Suite("Events")
    struct Events {
        @Test("what happens to a replica is told at once, in order, to a verb and in the log")
        func told() throws {
            let serve = try FakeServe()
            func visit() throws -> FakePrimary {
                let primary = try FakePrimary(serve.address)
                primary.send(FakeFrames.frame(FakeFrames.hello(guest: "vm")))
                #expect(primary.welcome() != nil)
                return primary
            }
            func logged() -> Int { serve.process.error.split(separator: "\n").count { $0.contains("] event ") } }
            try visit().stream.shut()
            #expect(FakeTool.wait(10) { logged() == 4 })

            let follow = try FakeProcess(["status", "--follow", "--json", "--store", serve.store.path])
            func lines() throws -> [[String: Any]] {
                try follow.out.split(separator: "\n").map {
                    try #require(try JSONSerialization.jsonObject(with: Data($0.utf8)) as? [String: Any])
                }
            }
            #expect(FakeTool.wait(10) { follow.out.contains("\n") })
            #expect(try lines().map { $0["state"] as? String } == ["idle"], "what is the case comes first")
            try visit().stream.shut()
            #expect(FakeTool.wait(10) { logged() == 8 && follow.out.split(separator: "\n").count == 5 })
            let events = try lines().dropFirst()
            let words = events.map { event in
                ["kind", "before", "state"].compactMap { event[$0] as? String }.joined(separator: " ")
            }
            #expect(words == ["session syncing", "state idle syncing", "session idle", "state syncing idle"])
            #expect(events.compactMap { $0["number"] as? Int } == [5, 6, 7, 8])
            #expect((events.last?["message"] as? String)?.contains("link was closed") == true)
        }
    }
}
