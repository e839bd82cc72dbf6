import Logging
import Testing

@testable import Node

@Suite("Events of the replicas")
struct EventLogTests {
    private let book = LogBook()

    private func makeLog() -> EventLog { EventLog(log: book.logger()) }

    private func event(_ guest: String = "vm", _ message: String? = nil) -> GuestEvent {
        GuestEvent(
            number: 0, milliseconds: 1, guest: guest, kind: .state, state: .protected, before: .syncing,
            committedEpoch: 7, generation: 2, message: message)
    }

    @Test("every listener gets every event from its subscription on, with numbers that rise by one")
    func order() async {
        let log = makeLog()
        log.emit(event("early"))
        let (first, endFirst) = log.subscribe()
        log.emit(event("a"))
        let (second, endSecond) = log.subscribe()
        for name in ["b", "c"] { log.emit(event(name)) }
        endFirst()
        log.emit(event("d"))
        endSecond()
        log.emit(event("late"))
        var seen: [[String]] = []
        for stream in [first, second] {
            var own: [String] = []
            for await event in stream { own.append("\(event.number) \(event.guest)") }
            seen.append(own)
        }
        #expect(seen == [["2 a", "3 b", "4 c"], ["3 b", "4 c", "5 d"]])
    }

    @Test("who does not read loses the oldest, sees it by the numbers, and holds nobody up")
    func slowReader() async throws {
        let log = makeLog()
        let (stream, end) = log.subscribe()
        for _ in 0..<3000 { log.emit(event()) }
        end()
        var numbers: [UInt64] = []
        for await event in stream { numbers.append(event.number) }
        #expect(numbers.count == 1024)
        #expect(numbers == Array(1977...3000))
    }

    @Test("an event is a line of the log with everything that is known")
    func line() throws {
        makeLog().emit(event("vm", "why"))
        let (message, metadata) = try #require(book.lines.first)
        #expect(message == "notice: event state")
        let texts = metadata.mapValues { "\($0)" }
        #expect(
            texts == [
                "guest": "vm", "state": "protected", "before": "syncing", "generation": "2", "epoch": "7",
                "message": "why",
            ])
    }
}
