import Checkpointer
import Testing
import Units

@Suite("Output commit")
struct OutputCommitTests {
    private static func at(_ milliseconds: UInt64) -> Moment { Moment(nanoseconds: milliseconds * 1_000_000) }

    private static func machine(limit: UInt64 = 10_000, isClosed: Bool = false) -> OutputCommit {
        OutputCommit(limit: limit, first: Epoch(5), isClosed: isClosed)
    }

    @Test("packets pass until the first commit, then they wait for the commit of their epoch")
    func holds() {
        var machine = Self.machine()
        #expect(machine.packet(bytes: 100, now: Self.at(0)) == .pass)
        machine.boundary()
        #expect(machine.packet(bytes: 100, now: Self.at(10)) == .pass)
        // Epoch 6 is open and some of it is out already: the promise begins with its commit.
        #expect(machine.committed(Epoch(5), now: Self.at(20)) == nil)
        #expect(machine.state == .holding && !machine.isInForce)
        #expect(machine.packet(bytes: 100, now: Self.at(30)) == .hold(Epoch(6)))
        #expect(machine.oldestOfOpenEpoch == Self.at(30))
        machine.boundary()
        #expect(machine.oldestOfOpenEpoch == nil && machine.oldest == Self.at(30))
        #expect(machine.packet(bytes: 100, now: Self.at(40)) == .hold(Epoch(7)))
        #expect(machine.packet(bytes: 100, now: Self.at(41)) == .hold(Epoch(7)))
        #expect(machine.heldPackets == 3 && machine.heldBytes == 396)
        let release = machine.committed(Epoch(6), now: Self.at(70))
        #expect(release == OutputCommit.Release(through: Epoch(6), packets: 1, comesIntoForce: true))
        #expect(machine.isInForce && machine.heldPackets == 2)
        #expect(machine.times.summary == HoldTimes.Summary(median: 40_000_000, p95: 40_000_000, longest: 40_000_000))
        machine.boundary()
        #expect(machine.committed(Epoch(7), now: Self.at(90)) == OutputCommit.Release(through: Epoch(7), packets: 2))
        #expect(machine.committed(Epoch(8), now: Self.at(91)) == nil)
        #expect(machine.heldBytes == 0 && machine.droppedPackets == 0)
    }

    @Test("a session that begins closed lets nothing pass, and is in force from the start")
    func closedStart() {
        var machine = Self.machine(isClosed: true)
        #expect(machine.packet(bytes: 100, now: Self.at(0)) == .hold(Epoch(5)))
        machine.boundary()
        #expect(machine.packet(bytes: 100, now: Self.at(1)) == .hold(Epoch(6)))
        let release = machine.committed(Epoch(5), now: Self.at(9))
        #expect(release == OutputCommit.Release(through: Epoch(5), packets: 1, comesIntoForce: true))
    }

    @Test("what does not fit is dropped, and a release makes room")
    func bounded() {
        var machine = Self.machine(limit: 300, isClosed: true)
        #expect(machine.packet(bytes: 168, now: Self.at(0)) == .hold(Epoch(5)))
        #expect(machine.isFilling)
        #expect(machine.packet(bytes: 69, now: Self.at(1)) == .drop)
        #expect(machine.packet(bytes: 68, now: Self.at(2)) == .hold(Epoch(5)))
        #expect(machine.packet(bytes: 0, now: Self.at(3)) == .drop)
        #expect(machine.packet(bytes: .max, now: Self.at(3)) == .drop)
        #expect(machine.droppedPackets == 3 && machine.heldBytes == 300)
        machine.boundary()
        #expect(!machine.isFilling, "another checkpoint would release nothing")
        #expect(machine.committed(Epoch(5), now: Self.at(9))?.packets == 2)
        #expect(machine.packet(bytes: 268, now: Self.at(10)) == .hold(Epoch(6)))
    }

    @Test("at the end everything leaves and goes on leaving, or nothing does", arguments: [false, true])
    func ends(closed: Bool) {
        var machine = Self.machine(isClosed: true)
        _ = machine.packet(bytes: 100, now: Self.at(0))
        machine.boundary()
        _ = machine.packet(bytes: 100, now: Self.at(1))
        #expect(machine.end(closed: closed) == 2)
        #expect(machine.state == (closed ? .closed : .open))
        #expect(machine.heldPackets == 0 && machine.heldBytes == 0)
        #expect(machine.packet(bytes: 100, now: Self.at(2)) == (closed ? .drop : .pass))
        #expect(machine.droppedPackets == (closed ? 3 : 0))
        #expect(machine.committed(Epoch(6), now: Self.at(3)) == nil)
        #expect(machine.end(closed: !closed) == nil)
        #expect(machine.state == (closed ? .closed : .open))
    }

    @Test("remembers the hold times of the last packets only")
    func times() {
        var machine = Self.machine(limit: 1 << 30, isClosed: true)
        for index in 0..<UInt64(3000) {
            _ = machine.packet(bytes: 1, now: Self.at(index < 2000 ? 0 : 9_900))
        }
        _ = machine.committed(Epoch(5), now: Self.at(10_000))
        let summary = machine.times.summary
        #expect(summary?.longest == 10_000_000_000 && summary?.median == 100_000_000)
        #expect(summary?.p95 == 100_000_000)
    }

    /// A guest, QEMU and a secondary without any order but the one that the agent relies on, beside the machine.
    private struct World {
        struct Packet: Equatable {
            let number: Int
            /// The epoch in which the guest sent it.
            let sent: Epoch
        }

        var machine: OutputCommit
        var random: SplitMix64
        let beganClosed: Bool
        /// The epoch that the guest is in; it goes on behind our acknowledgement only.
        var guest = Epoch(5)
        var committed = Epoch(4)
        var sealed = Epoch(4)
        /// Sent by the guest and not read yet.
        var socket: [Packet] = []
        var queue: [(epoch: Epoch, packet: Packet)] = []
        var left: [Packet] = []
        var dropped: [Packet] = []
        var now = Moment(nanoseconds: 0)
        var count = 0

        /// Everything that was ever let out belongs to a committed epoch.
        var isKept: Bool { left.allSatisfy { $0.sent <= committed } }

        mutating func step() {
            now = now.advanced(byNanoseconds: UInt64(random.below(5_000_000)))
            switch random.below(10) {
            case 0..<4:
                socket.append(Packet(number: count, sent: guest))
                count += 1
            case 4..<7: read(random.below(4))
            case 7:
                // The boundary, and the guest runs on. At most two epochs are uncommitted.
                guard guest.rawValue - committed.rawValue <= 2 else { return }
                if random.below(2) == 0 { read(.max) }
                machine.boundary()
                sealed = guest
                guest = guest.next
            default:
                guard committed < sealed else { return }
                committed = committed.next
                guard let release = machine.committed(committed, now: now) else { return }
                var released = 0
                while let first = queue.first, first.epoch <= release.through {
                    left.append(queue.removeFirst().packet)
                    released += 1
                }
                #expect(released == release.packets)
            }
        }

        mutating func read(_ most: Int) {
            for _ in 0..<min(most, socket.count) {
                let packet = socket.removeFirst()
                switch machine.packet(bytes: 100 + random.below(1400), now: now) {
                case .pass: left.append(packet)
                case .hold(let epoch): queue.append((epoch, packet))
                case .drop: dropped.append(packet)
                }
            }
        }
    }

    @Test("whatever comes when: nothing leaves before its commit, nothing overtakes, nothing leaves twice")
    func property() {
        let seed = UInt64.random(in: 0...UInt64(UInt32.max))
        print("output commit: seed \(seed)")
        var seeds = SplitMix64(seed: seed)
        for round in 0..<300 {
            let isClosed = seeds.below(2) == 0
            let limit = UInt64(seeds.below(3) == 0 ? 6_000 : 1 << 20)
            var world = World(
                machine: Self.machine(limit: limit, isClosed: isClosed), random: SplitMix64(seed: seeds.next()),
                beganClosed: isClosed)
            for _ in 0..<400 {
                world.step()
                #expect(world.machine.heldBytes <= limit, "seed \(seed), round \(round)")
                #expect(world.machine.heldPackets == world.queue.count, "seed \(seed), round \(round)")
                #expect(world.isKept || !world.machine.isInForce, "seed \(seed), round \(round)")
                if isClosed { #expect(world.isKept, "seed \(seed), round \(round)") }
            }
            #expect(zip(world.left, world.left.dropFirst()).allSatisfy { $0.number < $1.number }, "seed \(seed)")
            let closes = seeds.below(2) == 0
            let held = world.queue.map(\.packet)
            #expect(world.machine.end(closed: closes) == held.count)
            if !closes { world.left += held }
            let gone = Set(world.left.map(\.number)).union(world.dropped.map(\.number))
            let rest = Set(world.socket.map(\.number)).union(closes ? held.map(\.number) : [])
            #expect(gone.isDisjoint(with: rest) && gone.count + rest.count == world.count, "seed \(seed)")
            #expect(zip(world.left, world.left.dropFirst()).allSatisfy { $0.number < $1.number }, "seed \(seed)")
        }
    }
}
