import Checkpointer
import Testing
import Units

/// A primary and a secondary with two queues between them, driven at random: whatever one side lets itself send must be
/// legal where it arrives, however late that is.
private struct Pair {
    var random: SplitMix64
    var primary = PrimaryProtocol()
    var secondary = SecondaryProtocol()
    var toSecondary: [FrameInfo] = []
    var toPrimary: [FrameInfo] = []
    /// Sealed at the secondary and not committed; committed and not applied.
    var sealed: [Epoch] = []
    var unapplied: Epoch?
    var deviceOffset: UInt64 = 0
    var committed: [Epoch] = []
    var diskEpochs: Set<Epoch> = []
    var digestsLeft = 3
    var knownLeft = 2
    /// The secondary has the layout.
    var hasLayout = false
    let generation = Generation(9)

    init(seed: UInt64) throws {
        random = SplitMix64(seed: seed)
        try primary.connected()
        _ = try secondary.received(FrameInfo(.hello))
        try secondary.welcome(generation: generation, firstEpoch: Epoch(100))
        _ = try primary.received(FrameInfo(.welcome))
        try primary.welcomed(generation: generation, firstEpoch: Epoch(100))
    }

    mutating func push(_ frame: SessionFrame, _ epoch: Epoch, value: UInt64 = 0, length: UInt64 = 0) {
        toSecondary.append(FrameInfo(frame, generation: generation, epoch: epoch, value: value, length: length))
    }

    /// Tries to send something; what our own machine refuses is simply not sent, nor what the link has no room for.
    mutating func trySend() {
        guard toSecondary.count < 20 else { return }
        do {
            switch random.below(12) {
            case 0: push(.identity, try primary.sendIdentity())
            case 1: push(.ramLayout, try primary.sendRamLayout())
            case 2, 3: push(.diskWrite, try primary.sendDisk())
            case 4: push(.ramBatch, try primary.sendRamBatch())
            case 5: push(.command(.request), try primary.sendRequest())
            case 6:
                push(.command(.send), try primary.sendBoundary())
                deviceOffset = 0
            case 7: push(.command(.size), try primary.sendSize(bytes: 30), value: 30)
            case 8, 9:
                let length = UInt64(random.below(15) + 1)
                push(
                    .deviceState, try primary.sendDeviceState(offset: deviceOffset, bytes: length),
                    value: deviceOffset, length: length)
                deviceOffset += length
            case 10: push(.seal, try primary.sendSeal())
            default: push(.heartbeat, .none)
            }
        } catch {
            // Not legal now.
        }
    }

    mutating func secondaryReceives() throws {
        guard !toSecondary.isEmpty else { return }
        switch try secondary.received(toSecondary.removeFirst()) {
        case .say(let command, let epoch):
            try secondary.replied(epoch)
            answer(command, epoch)
        case .commit(let epoch): sealed.append(epoch)
        case .bufferDisk(let epoch): diskEpochs.insert(epoch)
        case .layOutRam: hasLayout = true
        case .echo: toPrimary.append(FrameInfo(.heartbeat, generation: generation))
        default: break
        }
    }

    mutating func answer(_ command: Command, _ epoch: Epoch) {
        toPrimary.append(FrameInfo(.command(command), generation: generation, epoch: epoch))
    }

    /// Whether the secondary has something to say.
    var hasWork: Bool {
        !sealed.isEmpty || unapplied != nil || digestsLeft > 0 || (hasLayout && knownLeft > 0)
    }

    mutating func secondaryWorks() throws {
        if digestsLeft > 0 {
            digestsLeft -= 1
            try secondary.sendDigests(isLast: digestsLeft == 0)
            toPrimary.append(FrameInfo(.diskDigests, generation: generation, value: digestsLeft == 0 ? 1 : 0))
        } else if knownLeft > 0, hasLayout {
            knownLeft -= 1
            try secondary.sendKnown(isLast: knownLeft == 0)
            toPrimary.append(FrameInfo(.ramKnown, generation: generation, value: knownLeft == 0 ? 1 : 0))
        } else if let epoch = unapplied {
            if case .say(let command, let epoch) = try secondary.applied(epoch) { answer(command, epoch) }
            unapplied = nil
        } else if let epoch = sealed.first {
            sealed.removeFirst()
            guard case .say(let command, _) = try secondary.committed(epoch) else { return }
            answer(command, epoch)
            if command == .received { unapplied = epoch }
        }
    }

    mutating func primaryReceives() throws {
        guard !toPrimary.isEmpty else { return }
        if case .committed(let epoch) = try primary.received(toPrimary.removeFirst()) { committed.append(epoch) }
    }
}

@Suite("Both sides of the link together")
struct ProtocolPairTests {
    @Test("what one side sends is legal on the other, whatever the delays, and epochs are committed in order")
    func random() throws {
        for seed in UInt64(1)...60 {
            var pair = try Pair(seed: seed)
            // Some runs have a slow link, some a slow secondary.
            let weights = [1 + pair.random.below(6), 1 + pair.random.below(6), 1 + pair.random.below(6)]
            for _ in 0..<1500 {
                let choice = pair.random.below(8 + weights.reduce(0, +))
                do {
                    switch choice {
                    case 0..<8: pair.trySend()
                    case ..<(8 + weights[0]): try pair.secondaryReceives()
                    case ..<(8 + weights[0] + weights[1]): try pair.secondaryWorks()
                    default: try pair.primaryReceives()
                    }
                } catch {
                    Issue.record("seed \(seed): \(error)")
                    break
                }
                #expect(pair.primary.uncommittedSealed <= 2 && pair.secondary.uncommittedSealed <= 2, "seed \(seed)")
            }
            // Wherever that has led, it is no dead end: without delays, epochs go on being committed.
            let before = pair.committed.count
            for _ in 0..<500 where pair.committed.count < before + 3 {
                for _ in 0..<8 { pair.trySend() }
                while !pair.toSecondary.isEmpty { try pair.secondaryReceives() }
                while pair.hasWork { try pair.secondaryWorks() }
                while !pair.toPrimary.isEmpty { try pair.primaryReceives() }
            }
            #expect(pair.committed.count >= before + 3, "seed \(seed): stuck behind \(before) commits")
            let expected = pair.committed.indices.map { Epoch(100 + UInt64($0)) }
            #expect(pair.committed == expected, "seed \(seed)")
            #expect(pair.diskEpochs.count >= 3, "seed \(seed)")
        }
    }
}
