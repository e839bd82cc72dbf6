import Checkpointer
import Testing
import Units

/// One step of a play: what is done, and what is legal afterwards.
private struct Scene {
    /// What the primary may send, by kind and epoch, beside heartbeat and bye.
    var legal: [SessionFrame: UInt64]
    /// What the secondary may say, by command and epoch.
    var mayCommit: UInt64?
    var mayApply: UInt64?
}

private let disks: [SessionFrame] = [.diskWrite, .diskZeroes, .diskDiscard]

/// Disk frames of an epoch, and other frames.
private func legal(disk: UInt64, _ others: [SessionFrame: UInt64] = [:]) -> [SessionFrame: UInt64] {
    var legal = others
    for frame in disks { legal[frame] = disk }
    return legal
}

private func command(_ command: Command) -> SessionFrame { .command(command) }

@Suite("Secondary's side of the link")
struct SecondaryProtocolTests {
    private typealias Action = SecondaryProtocol.Action

    private static func frame(_ frame: SessionFrame, _ epoch: UInt64, _ generation: UInt64 = 3) -> FrameInfo {
        let value: UInt64 = frame == .command(.size) ? 100 : 0
        return FrameInfo(
            frame, generation: Generation(generation), epoch: Epoch(epoch), value: value,
            length: frame == .deviceState ? 100 : 0, streamOffset: 4711)
    }

    private static func receive(_ info: FrameInfo, _ machine: inout SecondaryProtocol)
        -> Result<SecondaryProtocol.Action, ProtocolViolation>
    {
        Result { () throws(ProtocolViolation) in try machine.received(info) }
    }

    /// Welcomed with generation 3 and first epoch 5.
    private static func welcomed() throws -> SecondaryProtocol {
        var machine = SecondaryProtocol()
        #expect(try machine.received(FrameInfo(.hello)) == .decide)
        try machine.welcome(generation: Generation(3), firstEpoch: Epoch(5))
        check(machine, Scene(legal: [.identity: 5, .ramLayout: 5, command(.send): 5]), "before the digests")
        try machine.sendDigests(isLast: false)
        check(machine, Scene(legal: [.identity: 5, .ramLayout: 5, command(.send): 5]), "before the last digests")
        try machine.sendDigests(isLast: true)
        var again = machine
        #expect(throws: ProtocolViolation.self) { try again.sendDigests(isLast: true) }
        return machine
    }

    /// Tries every frame of every epoch and generation, and every event of our own, and compares with the scene.
    private static func check(_ machine: SecondaryProtocol, _ scene: Scene, _ where: String) {
        for frame in SessionFrame.all {
            for epoch in UInt64(0)...10 {
                for generation in UInt64(2)...4 {
                    var copy = machine
                    let info = self.frame(frame, epoch, generation)
                    let outcome = receive(info, &copy)
                    let isLegal =
                        frame == .bye
                        || (generation == 3
                            && (scene.legal[frame] == epoch
                                || ((frame == .heartbeat || frame == .guestState) && epoch == 0)))
                    #expect(
                        (outcome.failure == nil) == isLegal,
                        "\(`where`): \(frame)(\(epoch)) of generation \(generation): \(outcome)")
                    guard let violation = outcome.failure else { continue }
                    #expect(violation.culprit == .peer && violation.came == frame)
                    #expect(violation.epoch == Epoch(epoch) && violation.streamOffset == 4711)
                    #expect(copy.isClosed)
                }
            }
        }
        for epoch in UInt64(0)...10 {
            var copy = machine
            let commit = Result { () throws(ProtocolViolation) in try copy.committed(Epoch(epoch)) }
            #expect((commit.failure == nil) == (scene.mayCommit == epoch), "\(`where`): committed(\(epoch)): \(commit)")
            copy = machine
            let apply = Result { () throws(ProtocolViolation) in try copy.applied(Epoch(epoch)) }
            #expect((apply.failure == nil) == (scene.mayApply == epoch), "\(`where`): applied(\(epoch)): \(apply)")
            #expect(commit.failure?.culprit != .peer && apply.failure?.culprit != .peer)
        }
    }

    /// Plays one frame, which must give this action, and checks everything that may follow.
    private static func play(
        _ machine: inout SecondaryProtocol, _ name: SessionFrame, _ epoch: UInt64, _ expected: Action, then scene: Scene
    ) {
        #expect(receive(frame(name, epoch), &machine) == .success(expected))
        if case .say(.reply, let epoch) = expected {
            let outcome = Result { () throws(ProtocolViolation) in try machine.replied(epoch) }
            #expect(outcome.failure == nil)
        }
        check(machine, scene, "after \(name)(\(epoch))")
    }

    @Test("the initial copy: in every state exactly the right frames are legal")
    func initialCopy() throws {
        var machine = try Self.welcomed()
        let e5 = Epoch(5)
        #expect(machine.openEpoch == e5 && machine.generation == Generation(3))
        Self.check(
            machine,
            Scene(legal: legal(disk: 5, [.identity: 5, .ramLayout: 5, command(.send): 5])), "welcomed")
        Self.play(
            &machine, .identity, 5, .keepIdentity,
            then: Scene(legal: legal(disk: 5, [.ramLayout: 5, command(.send): 5])))
        Self.play(
            &machine, .ramLayout, 5, .layOutRam(e5),
            then: Scene(legal: legal(disk: 5, [command(.send): 5])))
        try machine.sendKnown(isLast: false)
        Self.check(machine, Scene(legal: legal(disk: 5, [command(.send): 5])), "before the last known")
        try machine.sendKnown(isLast: true)
        Self.check(machine, Scene(legal: legal(disk: 5, [.ramBatch: 5, command(.send): 5])), "all known")
        var again = machine
        #expect(throws: ProtocolViolation.self) { try again.sendKnown(isLast: true) }
        Self.play(
            &machine, .ramBatch, 5, .stageRam(e5),
            then: Scene(legal: legal(disk: 5, [.ramBatch: 5, command(.send): 5])))
        Self.play(
            &machine, .diskZeroes, 5, .bufferDisk(e5),
            then: Scene(legal: legal(disk: 5, [.ramBatch: 5, command(.send): 5])))
        Self.play(
            &machine, command(.send), 5, .boundary(closed: e5, opened: Epoch(6)),
            then: Scene(legal: legal(disk: 6, [.ramBatch: 5, .ramFigures: 5, .primaryFigures: 5, command(.size): 5])))
        Self.play(
            &machine, command(.size), 5, .expectDeviceState(e5, bytes: 100),
            then: Scene(legal: legal(disk: 6, [.deviceState: 5])))
        Self.play(
            &machine, .deviceState, 5, .appendDeviceState(e5, offset: 0, bytes: 100),
            then: Scene(legal: legal(disk: 6, [.seal: 5])))
        Self.play(&machine, .seal, 5, .commit(e5), then: Scene(legal: legal(disk: 6), mayCommit: 5))
        #expect(machine.uncommittedSealed == 1)
        #expect(try machine.committed(e5) == .say(.ready, e5))
        Self.check(machine, Scene(legal: legal(disk: 6, [command(.request): 6])), "ready")
        #expect(machine.uncommittedSealed == 0)
    }

    /// The initial copy done, without the checks in between.
    private static func ready() throws -> SecondaryProtocol {
        var machine = try welcomed()
        for name in [SessionFrame.identity, .ramLayout] { _ = try machine.received(frame(name, 5)) }
        try machine.sendKnown(isLast: true)
        for name in [command(.send), command(.size), .deviceState, .seal] { _ = try machine.received(frame(name, 5)) }
        _ = try machine.committed(Epoch(5))
        return machine
    }

    /// One whole checkpoint up to its seal.
    private static func seal(_ epoch: UInt64, _ machine: inout SecondaryProtocol) throws {
        if machine.openEpoch == Epoch(epoch) {
            _ = try? machine.received(frame(command(.request), epoch))
            try machine.replied(Epoch(epoch))
        }
        for name in [command(.send), command(.size), .deviceState, .seal] {
            _ = try machine.received(frame(name, epoch))
        }
    }

    @Test("a later epoch: in every state exactly the right frames are legal")
    func laterEpoch() throws {
        var machine = try Self.ready()
        let e6 = Epoch(6)
        Self.play(
            &machine, command(.request), 6, .say(.reply, e6), then: Scene(legal: legal(disk: 6, [command(.send): 6])))
        Self.play(
            &machine, command(.send), 6, .boundary(closed: e6, opened: Epoch(7)),
            then: Scene(
                legal: legal(
                    disk: 7,
                    [
                        .ramBatch: 6, .ramDigests: 6, .ramFigures: 6, .diskCheck: 6, .primaryFigures: 6,
                        command(.size): 6, command(.request): 7,
                    ])))
        Self.play(
            &machine, .diskDiscard, 7, .bufferDisk(Epoch(7)),
            then: Scene(
                legal: legal(
                    disk: 7,
                    [
                        .ramBatch: 6, .ramDigests: 6, .ramFigures: 6, .diskCheck: 6, .primaryFigures: 6,
                        command(.size): 6, command(.request): 7,
                    ])))
        Self.play(
            &machine, command(.size), 6, .expectDeviceState(e6, bytes: 100),
            then: Scene(legal: legal(disk: 7, [.deviceState: 6, command(.request): 7])))
        Self.play(
            &machine, command(.request), 7, .say(.reply, Epoch(7)),
            then: Scene(legal: legal(disk: 7, [.deviceState: 6])))
        Self.play(
            &machine, .deviceState, 6, .appendDeviceState(e6, offset: 0, bytes: 100),
            then: Scene(legal: legal(disk: 7, [.seal: 6])))
        Self.play(
            &machine, .seal, 6, .commit(e6), then: Scene(legal: legal(disk: 7, [command(.send): 7]), mayCommit: 6))
        #expect(try machine.committed(e6) == .say(.received, e6))
        Self.check(machine, Scene(legal: legal(disk: 7, [command(.send): 7]), mayApply: 6), "received(6)")
        #expect(try machine.applied(e6) == .say(.loaded, e6))
        Self.check(machine, Scene(legal: legal(disk: 7, [command(.send): 7])), "loaded(6)")
    }

    @Test("two sealed epochs may wait for their commit, a third may not even begin to")
    func twoUncommitted() throws {
        var machine = try Self.ready()
        try Self.seal(6, &machine)
        try Self.seal(7, &machine)
        #expect(machine.uncommittedSealed == 2)
        #expect(try machine.received(Self.frame(command(.request), 8)) == .say(.reply, Epoch(8)))
        try machine.replied(Epoch(8))
        Self.check(machine, Scene(legal: legal(disk: 8), mayCommit: 6), "two uncommitted")
        #expect(try machine.committed(Epoch(6)) == .say(.received, Epoch(6)))
        Self.check(machine, Scene(legal: legal(disk: 8, [command(.send): 8]), mayApply: 6), "one uncommitted")
        _ = try machine.applied(Epoch(6))
        Self.check(machine, Scene(legal: legal(disk: 8, [command(.send): 8]), mayCommit: 7), "one applied")
    }

    @Test("before welcome only hello and bye are legal, and after the end nothing is")
    func edges() throws {
        func check(_ machine: SecondaryProtocol, _ legal: Set<SessionFrame>) {
            for frame in SessionFrame.all {
                var copy = machine
                let outcome = Self.receive(Self.frame(frame, 0, 0), &copy)
                #expect((outcome.failure == nil) == legal.contains(frame), "\(frame): \(outcome)")
                #expect(copy.isClosed || frame == .hello)
            }
            var copy = machine
            #expect(throws: ProtocolViolation.self) { _ = try copy.committed(Epoch(5)) }
        }
        var machine = SecondaryProtocol()
        check(machine, [.hello, .bye])
        #expect(throws: ProtocolViolation.self) {
            var copy = SecondaryProtocol()
            try copy.welcome(generation: .first, firstEpoch: Epoch(1))
        }
        _ = try machine.received(FrameInfo(.hello))
        check(machine, [.bye])
        for (generation, epoch) in [(0, 1), (1, 0), (1, UInt64.max)] as [(UInt64, UInt64)] {
            var copy = machine
            #expect(throws: ProtocolViolation.self) {
                try copy.welcome(generation: Generation(generation), firstEpoch: Epoch(epoch))
            }
        }
        machine.refuse()
        check(machine, [])
        var gone = try Self.ready()
        gone.disconnected()
        check(gone, [])
        var left = try Self.ready()
        #expect(try left.received(Self.frame(.bye, 0)) == .close)
        check(left, [])
    }

    @Test("device state comes in order, without gaps, and exactly as much as size said")
    func deviceState() throws {
        var machine = try Self.welcomed()
        for name in [.identity, .ramLayout, command(.send)] { _ = try machine.received(Self.frame(name, 5)) }
        try machine.sendKnown(isLast: true)
        func piece(_ offset: UInt64, _ length: UInt64) -> FrameInfo {
            FrameInfo(.deviceState, generation: Generation(3), epoch: Epoch(5), value: offset, length: length)
        }
        for size in [0, 256 << 20 + 1, .max] as [UInt64] {
            var copy = machine
            let info = FrameInfo(command(.size), generation: Generation(3), epoch: Epoch(5), value: size)
            #expect(Self.receive(info, &copy).failure != nil, "size \(size)")
        }
        _ = try machine.received(Self.frame(command(.size), 5))
        for (offset, length) in [(1, 10), (0, 0), (0, 101), (0, .max), (.max, 1)] as [(UInt64, UInt64)] {
            var copy = machine
            #expect(Self.receive(piece(offset, length), &copy).failure != nil, "\(offset)+\(length)")
        }
        _ = try machine.received(piece(0, 60))
        var copy = machine
        #expect(Self.receive(Self.frame(.seal, 5), &copy).failure?.expected.contains("40 bytes") == true)
        copy = machine
        #expect(Self.receive(piece(0, 40), &copy).failure != nil)
        copy = machine
        #expect(Self.receive(piece(60, 41), &copy).failure != nil)
        _ = try machine.received(piece(60, 40))
        #expect(try machine.received(Self.frame(.seal, 5)) == .commit(Epoch(5)))
    }

    @Test("the initial copy cannot be sealed without identity, nor its size told without layout")
    func incomplete() throws {
        var machine = try Self.welcomed()
        _ = try machine.received(Self.frame(command(.send), 5))
        var copy = machine
        #expect(
            Self.receive(Self.frame(command(.size), 5), &copy).failure?.expected == "ramLayout comes before size(5)")
        _ = try machine.received(Self.frame(.ramLayout, 5))
        copy = machine
        #expect(
            Self.receive(Self.frame(command(.size), 5), &copy).failure?.expected
                == "the last ramKnown comes before size(5)")
        try machine.sendKnown(isLast: true)
        for name in [command(.size), SessionFrame.deviceState] { _ = try machine.received(Self.frame(name, 5)) }
        copy = machine
        #expect(Self.receive(Self.frame(.seal, 5), &copy).failure?.expected == "identity comes before seal(5)")
        _ = try machine.received(Self.frame(.identity, 5))
        #expect(try machine.received(Self.frame(.seal, 5)) == .commit(Epoch(5)))
    }

    @Test("a violation says what came, where, and what would have been right")
    func words() throws {
        var machine = try Self.ready()
        let text = Self.receive(Self.frame(.diskWrite, 5), &machine).failure?.description
        #expect(text?.contains("diskWrite(5) at byte 4711") == true)
        #expect(text?.contains("epoch 6") == true)
        var fenced = try Self.ready()
        let old = Self.receive(Self.frame(.diskWrite, 6, 2), &fenced).failure?.description
        #expect(old?.contains("generation 2 was fenced off") == true)
    }
}
