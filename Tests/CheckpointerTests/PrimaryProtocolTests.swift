import Checkpointer
import Testing
import Units

@Suite("Primary's side of the link")
struct PrimaryProtocolTests {
    /// Everything that a primary may want to send.
    private static let sends: [(String, @Sendable (inout PrimaryProtocol) throws -> Epoch)] = [
        ("identity", { try $0.sendIdentity() }), ("ramLayout", { try $0.sendRamLayout() }),
        ("disk", { try $0.sendDisk() }), ("ram", { try $0.sendRamBatch() }), ("request", { try $0.sendRequest() }),
        ("boundary", { try $0.sendBoundary() }), ("size", { try $0.sendSize(bytes: 100) }),
        ("device", { try $0.sendDeviceState(offset: 0, bytes: 100) }), ("seal", { try $0.sendSeal() }),
    ]

    private static func info(_ frame: SessionFrame, _ epoch: UInt64, _ generation: UInt64 = 3) -> FrameInfo {
        FrameInfo(frame, generation: Generation(generation), epoch: Epoch(epoch), streamOffset: 12)
    }

    /// Compares what may be sent, with its epoch, and what may arrive, with all that could be.
    private static func check(
        _ machine: PrimaryProtocol, sends legal: [String: UInt64], arrivals: [Command: UInt64], digests: Bool = false,
        known: Bool = false, _ name: String
    ) {
        for (what, send) in sends {
            var copy = machine
            let outcome = Result { try send(&copy) }
            #expect(outcome.success == legal[what].map { Epoch($0) }, "\(name): sending \(what): \(outcome)")
            guard let error = outcome.failure else { continue }
            #expect((error as? ProtocolViolation)?.culprit == .ourselves)
            #expect(copy == machine, "\(name): a refused \(what) changed the machine")
        }
        for frame in SessionFrame.all {
            for epoch in UInt64(0)...10 {
                for generation in UInt64(2)...4 {
                    var copy = machine
                    let outcome = Result { () throws(ProtocolViolation) in
                        try copy.received(info(frame, epoch, generation))
                    }
                    var isLegal = frame == .bye || frame == .refuse
                    if generation == 3 {
                        if case .command(let command) = frame { isLegal = arrivals[command] == epoch }
                        if [.credit, .heartbeat, .ramVerify, .diskVerify, .ramRepair].contains(frame) {
                            isLegal = epoch == 0
                        }
                        if frame == .ramKnown { isLegal = known && epoch == 0 }
                        if frame == .diskDigests { isLegal = digests && epoch == 0 }
                    }
                    #expect(
                        (outcome.failure == nil) == isLegal,
                        "\(name): \(frame)(\(epoch)) of generation \(generation): \(outcome)")
                    if outcome.failure != nil { #expect(copy.isClosed) }
                }
            }
        }
    }

    private static func welcomed() throws -> PrimaryProtocol {
        var machine = PrimaryProtocol()
        try machine.connected()
        #expect(try machine.received(FrameInfo(.welcome)) == .readWelcome)
        try machine.welcomed(generation: Generation(3), firstEpoch: Epoch(5))
        return machine
    }

    @Test("in every state of a session exactly the right things may be sent and may arrive")
    func session() throws {
        var machine = try Self.welcomed()
        #expect(machine.isRunning && machine.openEpoch == Epoch(5) && machine.generation == Generation(3))
        Self.check(
            machine, sends: ["identity": 5, "ramLayout": 5, "boundary": 5], arrivals: [:], digests: true, "welcomed")
        #expect(try machine.received(Self.info(.diskDigests, 0)) == .digests(isLast: false))
        Self.check(
            machine, sends: ["identity": 5, "ramLayout": 5, "boundary": 5], arrivals: [:], digests: true, "digests")
        let last = FrameInfo(.diskDigests, generation: Generation(3), value: 1)
        #expect(try machine.received(last) == .digests(isLast: true))
        Self.check(
            machine, sends: ["identity": 5, "ramLayout": 5, "disk": 5, "boundary": 5], arrivals: [:], "compared")
        _ = try machine.sendIdentity()
        _ = try machine.sendRamLayout()
        Self.check(machine, sends: ["disk": 5, "boundary": 5], arrivals: [:], known: true, "layout out")
        #expect(try machine.received(Self.info(.ramKnown, 0)) == .known(isLast: false))
        Self.check(machine, sends: ["disk": 5, "boundary": 5], arrivals: [:], known: true, "known")
        #expect(!machine.isRamKnown)
        let lastKnown = FrameInfo(.ramKnown, generation: Generation(3), value: 1)
        #expect(try machine.received(lastKnown) == .known(isLast: true) && machine.isRamKnown)
        Self.check(machine, sends: ["disk": 5, "ram": 5, "boundary": 5], arrivals: [:], "all known")
        _ = try machine.sendBoundary()
        Self.check(machine, sends: ["disk": 6, "ram": 5, "size": 5], arrivals: [:], "boundary 5")
        #expect(machine.isTransferring && machine.unsealedEpoch == Epoch(5))
        _ = try machine.sendSize(bytes: 100)
        Self.check(machine, sends: ["disk": 6, "device": 5], arrivals: [:], "size 5")
        _ = try machine.sendDeviceState(offset: 0, bytes: 100)
        Self.check(machine, sends: ["disk": 6, "seal": 5], arrivals: [:], "device 5")
        _ = try machine.sendSeal()
        Self.check(machine, sends: ["disk": 6], arrivals: [.ready: 5], "sealed 5")
        #expect(!machine.mayCheckpoint && machine.committedEpoch == nil && machine.uncommittedSealed == 1)
        #expect(try machine.received(Self.info(.command(.ready), 5)) == .committed(Epoch(5)))
        #expect(machine.mayCheckpoint && machine.committedEpoch == Epoch(5))
        Self.check(machine, sends: ["disk": 6, "request": 6], arrivals: [:], "ready 5")

        _ = try machine.sendRequest()
        Self.check(machine, sends: ["disk": 6, "boundary": 6], arrivals: [.reply: 6], "request 6")
        _ = try machine.sendBoundary()
        Self.check(
            machine, sends: ["disk": 7, "ram": 6, "size": 6, "request": 7], arrivals: [.reply: 6], "boundary 6")
        #expect(!machine.mayCheckpoint)
        _ = try machine.sendSize(bytes: 100)
        _ = try machine.sendDeviceState(offset: 0, bytes: 100)
        _ = try machine.sendSeal()
        #expect(try machine.received(Self.info(.command(.reply), 6)) == .replied(Epoch(6)))
        Self.check(machine, sends: ["disk": 7, "request": 7], arrivals: [.received: 6], "sealed 6")
        _ = try machine.sendRequest()
        _ = try machine.sendBoundary()
        _ = try machine.sendSize(bytes: 100)
        _ = try machine.sendDeviceState(offset: 0, bytes: 100)
        _ = try machine.sendSeal()
        _ = try machine.sendRequest()
        #expect(machine.uncommittedSealed == 2 && !machine.mayCheckpoint)
        // Three epochs under way: no boundary, replies in order.
        Self.check(machine, sends: ["disk": 8], arrivals: [.reply: 7, .received: 6], "two uncommitted")
        #expect(try machine.received(Self.info(.command(.received), 6)) == .committed(Epoch(6)))
        Self.check(machine, sends: ["disk": 8, "boundary": 8], arrivals: [.reply: 7, .loaded: 6], "received 6")
        #expect(try machine.received(Self.info(.command(.loaded), 6)) == .loaded(Epoch(6)))
        Self.check(machine, sends: ["disk": 8, "boundary": 8], arrivals: [.reply: 7, .received: 7], "loaded 6")
    }

    @Test("the hello is answered by one welcome or a refusal, and by nothing else")
    func greeting() throws {
        var machine = PrimaryProtocol()
        #expect(throws: ProtocolViolation.self) { _ = try machine.received(FrameInfo(.welcome)) }
        machine = PrimaryProtocol()
        try machine.connected()
        #expect(throws: ProtocolViolation.self) { try machine.connected() }
        for frame in SessionFrame.all {
            var copy = machine
            let outcome = Result { () throws(ProtocolViolation) in try copy.received(FrameInfo(frame)) }
            switch frame {
            case .welcome: #expect(outcome == .success(.readWelcome))
            case .refuse: #expect(outcome == .success(.refused) && copy.isClosed)
            case .bye: #expect(outcome == .success(.close) && copy.isClosed)
            default: #expect(outcome.failure?.culprit == .peer && copy.isClosed, "\(frame)")
            }
            #expect(throws: ProtocolViolation.self) { _ = try copy.sendDisk() }
        }
        _ = try machine.received(FrameInfo(.welcome))
        var again = machine
        #expect(throws: ProtocolViolation.self) { _ = try again.received(FrameInfo(.welcome)) }
        for (generation, epoch) in [(0, 1), (1, 0), (1, UInt64.max)] as [(UInt64, UInt64)] {
            var copy = machine
            #expect(throws: ProtocolViolation.self) {
                try copy.welcomed(generation: Generation(generation), firstEpoch: Epoch(epoch))
            }
            #expect(copy.isClosed)
        }
        machine.closed()
        #expect(throws: ProtocolViolation.self) { _ = try machine.received(FrameInfo(.bye)) }
    }
}
