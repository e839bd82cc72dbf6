import Checkpointer
import Testing

@Suite("Silence on a link") struct SilenceTests {
    @Test("is told once, after as many own beats as it takes, and its end once")
    func fallsAndBreaks() {
        var silence = Silence()
        #expect(silence.beat(hasHeard: true) == nil)
        for _ in 1..<Heartbeats.silentMax { #expect(silence.beat(hasHeard: false) == nil && !silence.isLong) }
        #expect(silence.beat(hasHeard: false) == .fell && silence.isLong)
        #expect(silence.beat(hasHeard: false) == nil && silence.isLong)
        #expect(silence.beat(hasHeard: true) == .broken && !silence.isLong)
        #expect(silence.beat(hasHeard: true) == nil && silence.beats == 0)
    }

    @Test("a word in between begins the count anew")
    func begunAnew() {
        var silence = Silence()
        for _ in 1..<Heartbeats.silentMax { _ = silence.beat(hasHeard: false) }
        #expect(silence.beat(hasHeard: true) == nil)
        for _ in 1..<Heartbeats.silentMax { #expect(silence.beat(hasHeard: false) == nil) }
        #expect(silence.beat(hasHeard: false) == .fell)
    }
}
