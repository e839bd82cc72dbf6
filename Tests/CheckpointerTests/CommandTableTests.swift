import Checkpointer
import Testing
import Units

@Suite("Commands and frames")
struct CommandTableTests {
    @Test("docs/wire-format.md lists the frames with the code's values, names, senders and scopes")
    func document() {
        let rows = Document("wire-format.md").table(["Kind", "Name", "From", "Epoch", "Payload bytes"])
        #expect(rows.map { $0[0] } == SessionFrame.all.map { "\($0.wireKind)" })
        #expect(rows.map { $0[1] } == SessionFrame.all.map(\.description))
        for (row, command) in zip(rows, Command.allCases) {
            #expect(row[2] == (command.rule.direction == .toSecondary ? "P" : "S"), "\(command)")
            #expect(row[3] == "\(command.rule.scope)", "\(command)")
        }
    }

    @Test("a kind on the wire is one frame or none")
    func wireKinds() {
        for value in UInt8.min...UInt8.max {
            let frame = SessionFrame(wireKind: value)
            #expect(frame?.wireKind == (frame == nil ? nil : value))
            let isKnown = [0...6, 16...34, 40...44].contains { (range: ClosedRange<UInt8>) in range.contains(value) }
            #expect((frame != nil) == isKnown, "\(value)")
        }
        #expect(Set(SessionFrame.all).count == 31)
        #expect(SessionFrame.all.filter(\.isDisk) == [.diskWrite, .diskZeroes, .diskDiscard])
    }

    @Test("every predecessor in the table leads back to a command without one")
    func predecessors() {
        for command in Command.allCases {
            var chain: [Command] = [command]
            while let predecessor = chain.last?.rule.predecessor, chain.count < 8 { chain.append(predecessor) }
            #expect(chain.count < 8, "\(command)")
            #expect(chain.last == .request, "\(command)")
        }
    }
}
