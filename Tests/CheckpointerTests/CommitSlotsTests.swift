import Checkpointer
import Testing
import Units

@Suite("Choosing between the commit slots")
struct CommitSlotsTests {
    private static let empty = [UInt8](repeating: 0, count: 4096)
    private static let six = CommitRecord.sample(sequence: 6, epoch: 39)
    private static let seven = CommitRecord.sample(sequence: 7, epoch: 40)

    private static func damaged(_ record: CommitRecord) -> [UInt8] {
        var bytes = CommitSlot.encode(record)
        bytes[2000] ^= 1
        return bytes
    }

    @Test("nothing was ever written: nothing is committed, and the first record goes to slot 1")
    func nothing() {
        let choice = choose(Self.empty, Self.empty).success
        #expect(choice == CommitSlots.Choice(record: nil, nextSequence: 1, damaged: nil))
        #expect(CommitRecord.sample(sequence: 1).slot == 1)
        #expect(CommitRecord.sample(sequence: 1).fileOffset == 4096)
        #expect(CommitSlots.fileLength == 8192)
    }

    @Test("the newer of two records counts, whichever slot it is in")
    func newest() {
        let eight = CommitRecord.sample(sequence: 8, epoch: 41)
        let seven = CommitSlot.encode(Self.seven)
        #expect(choose(CommitSlot.encode(Self.six), seven).success?.record == Self.seven)
        let later = choose(CommitSlot.encode(eight), seven).success
        #expect(later?.record == eight)
        #expect(later?.nextSequence == 9)
        #expect(choose(Self.empty, seven).success?.record == Self.seven)
        #expect(choose(CommitSlot.encode(Self.six), Self.empty).success?.record == Self.six)
    }

    @Test("a write torn at any 512 byte boundary, from either end, leaves the record before it")
    func torn() {
        let old = CommitSlot.encode(.sample(sequence: 5, epoch: 38))
        let new = CommitSlot.encode(Self.seven)
        let other = CommitSlot.encode(Self.six)
        for boundary in stride(from: 0, through: 4096, by: 512) {
            for (head, tail) in [(new, old), (old, new), (new, Self.empty), (Self.empty, new)] {
                let torn = Array(head[..<boundary] + tail[boundary...])
                let choice = choose(other, torn).success
                let isWhole = torn == new
                #expect(choice?.record == (isWhole ? Self.seven : Self.six), "torn at \(boundary)")
                #expect(choice?.nextSequence == (isWhole ? 8 : 7), "torn at \(boundary)")
                let isOld = torn == old || torn == Self.empty
                #expect((choice?.damaged == nil) == (isWhole || isOld), "torn at \(boundary)")
            }
        }
    }

    @Test("the first record torn means that nothing was committed; anything else unreadable is damage")
    func unreadable() {
        let torn = Self.damaged(.sample(sequence: 1))
        let choice = choose(Self.empty, torn).success
        #expect(choice?.record == nil)
        #expect(choice?.nextSequence == 1)
        #expect(choice?.damaged?.slot == 1)
        for (first, second) in [(torn, Self.empty), (torn, torn), (Self.damaged(Self.six), Self.damaged(Self.seven))] {
            guard case .allDamaged? = choose(first, second).failure else {
                Issue.record("unreadable slots were taken")
                continue
            }
        }
    }

    @Test("a newer version in either slot is refused, not passed over")
    func newer() {
        let newer6 = forge(CommitSlot.encode(Self.six), 8, [0, 2])
        let newer7 = forge(CommitSlot.encode(Self.seven), 8, [0, 2])
        #expect(choose(newer6, CommitSlot.encode(Self.seven)).failure == .newerVersion(slot: 0, 2))
        #expect(choose(CommitSlot.encode(Self.six), newer7).failure == .newerVersion(slot: 1, 2))
        #expect(choose(newer6, Self.damaged(Self.seven)).failure == .newerVersion(slot: 0, 2))
        #expect(choose(Self.empty, newer7).failure == .newerVersion(slot: 1, 2))
    }

    @Test("records in the wrong slot, of another store or of another guest are refused")
    func foreign() {
        let six = CommitSlot.encode(Self.six)
        let seven = CommitSlot.encode(Self.seven)
        #expect(choose(seven, six).failure == .misplaced(slot: 0, sequence: 7))
        #expect(choose(six, six).failure == .misplaced(slot: 1, sequence: 6))
        let strange = Identifier(high: 9, low: 9)
        #expect(choose(six, seven, store: Self.six.store).success?.record == Self.seven)
        guard case .foreign? = choose(six, seven, store: strange).failure else {
            Issue.record("the record of another store was taken")
            return
        }
        var other = Self.seven
        other.guest = "web-2"
        guard case .foreign? = choose(six, CommitSlot.encode(other)).failure else {
            Issue.record("records of two guests were taken")
            return
        }
    }
}
