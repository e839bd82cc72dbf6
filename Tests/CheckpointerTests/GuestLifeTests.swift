import Testing

@testable import Checkpointer

/// Plays: what QEMU tells, and what follows.
@Suite struct GuestLifeTests {
    private static func protected() -> GuestLife {
        var life = GuestLife()
        life.entering(at: 100)
        _ = life.happened(.stopped(at: 150))
        life.entered()
        _ = life.happened(.resumed)
        return life
    }

    private static let paused = "the guest is paused; 'cont' resumes it. Checkpoints wait until it runs"

    @Test("the stops of checkpoints mean nothing, whenever they are told")
    func ownStops() {
        var life = Self.protected()
        for time in stride(from: UInt64(1000), to: 3000, by: 200) {
            life.replied(at: time)
            #expect(life.happened(.stopped(at: time + 1)).isEmpty)
            #expect(life.happened(.resumed).isEmpty)
        }
        // Told late: the next request is answered already.
        life.replied(at: 3000)
        life.replied(at: 3200)
        for time in [UInt64(3001), 3201] {
            #expect(life.happened(.stopped(at: time)).isEmpty)
            #expect(life.happened(.resumed).isEmpty)
        }
        #expect(!life.isHalted && life == Self.protected())
    }

    @Test("a stop between checkpoints halts them until somebody resumes the guest")
    func operatorStops() {
        var life = Self.protected()
        #expect(life.happened(.stopped(at: 900)) == [.halt(Self.paused), .ask])
        #expect(life.isHalted)
        #expect(life.found("paused").isEmpty, "told already")
        #expect(life.happened(.resumed) == [.goOn])
        #expect(life == Self.protected())
    }

    @Test("a stop that a checkpoint overtakes is done again")
    func overtaken() {
        var life = Self.protected()
        // Answered at 1000, but the operator's stop came at 999: the checkpoint finds the guest stopped and starts it.
        life.replied(at: 1000)
        #expect(life.happened(.stopped(at: 999)) == [.halt(Self.paused), .ask])
        #expect(life.found("colo").isEmpty)
        #expect(life.happened(.resumed) == [.stopAgain])
        #expect(life.isHalted)
        // Our own stop is told as well, and is nobody's news.
        #expect(life.happened(.stopped(at: 1005)) == [.ask])
        #expect(life.found("paused").isEmpty)
        #expect(life.happened(.resumed) == [.goOn])
        #expect(life == Self.protected())
    }

    @Test(
        "whatever stops the guest is named, with the remedy",
        arguments: [
            ("prelaunch", "'cont' starts it"), ("guest-panicked", "'system_reset' and 'cont'"),
            ("io-error", "mend that"),
            ("restore-vm", "'loadvm' has failed"), ("watchdog", "watchdog"), ("internal-error", "'system_reset'"),
            ("save-vm", "stopped (save-vm)"),
        ])
    func words(_ state: String, _ words: String) throws {
        var life = Self.protected()
        _ = life.happened(.stopped(at: 900))
        guard case .halt(let text) = try #require(life.found(state).first) else {
            Issue.record("not told")
            return
        }
        #expect(text.contains(words) && text.hasSuffix("Checkpoints wait until it runs"), "\(text)")
        #expect(life.isHalted)
    }

    @Test("a resume that was not told is found")
    func found() {
        var life = Self.protected()
        _ = life.happened(.stopped(at: 900))
        #expect(life.found("running") == [.goOn])
        #expect(life == Self.protected())
        // Not while a checkpoint is under way: it is that which runs the guest.
        life.replied(at: 1000)
        _ = life.happened(.stopped(at: 999))
        #expect(life.found("running").isEmpty && life.isHalted)
    }

    @Test("a guest that sleeps, and one that is stopped in its sleep")
    func sleep() throws {
        var life = Self.protected()
        guard case .halt(let words) = try #require(life.happened(.suspended).first) else {
            Issue.record("not told")
            return
        }
        #expect(words.contains("'system_wakeup'"))
        #expect(life.found("suspended").isEmpty, "the same words")
        #expect(life.happened(.woke) == [.goOn])
        #expect(life == Self.protected())
        _ = life.happened(.suspended)
        _ = life.happened(.stopped(at: 900))
        #expect(life.happened(.woke).isEmpty && life.isHalted)
        #expect(life.happened(.resumed) == [.goOn])
    }

    @Test("a reset is followed; one of a stopped guest has its state asked for")
    func reset() {
        var life = Self.protected()
        #expect(life.happened(.reset(byGuest: true)) == [.say("the guest has restarted; protection goes on")])
        #expect(life == Self.protected())
        _ = life.happened(.stopped(at: 900))
        #expect(life.happened(.reset(byGuest: false)) == [.say("the guest was reset; protection goes on"), .ask])
        #expect(life.isHalted)
    }

    @Test("a panic is said; what QEMU does then follows")
    func panic() throws {
        var life = Self.protected()
        #expect(life.happened(.panicked) == [.say("the guest's kernel has panicked")])
        #expect(!life.isHalted, "QEMU may let it run, for a kernel that writes a dump")
        guard case .halt(let words) = try #require(life.happened(.stopped(at: 900)).first) else {
            Issue.record("not told")
            return
        }
        #expect(words.contains("its kernel has panicked"))
        _ = life.happened(.reset(byGuest: false))
        #expect(life.happened(.resumed) == [.goOn])
        #expect(life == Self.protected())
    }

    @Test(
        "the end: who wished it has nothing to fail over",
        arguments: [
            "guest-shutdown", "guest-reset", "guest-panic", "host-qmp-quit", "host-signal", "host-ui",
            "host-qmp-system-reset", "none", "",
        ])
    func ends(_ reason: String) {
        for var life in [GuestLife(), Self.protected()] {
            let cause = GuestLife.Cause(reason)
            #expect(life.happened(.shutDown(cause)) == [.end(.shutOff(cause.words))])
        }
    }

    @Test("a QEMU that fails has died")
    func fails() {
        var life = Self.protected()
        let words = "the guest's QEMU has failed and cannot go on"
        #expect(life.happened(.shutDown(.init("host-error"))) == [.end(.died(words))])
    }

    @Test("stopped while disks are copied: the copy of RAM waits; while RAM is copied: refused")
    func initialCopy() throws {
        var life = GuestLife()
        #expect(life.happened(.stopped(at: 10)) == [.halt(Self.paused), .ask])
        #expect(life.isHalted)
        #expect(life.happened(.resumed) == [.goOn])
        // Before anybody listened.
        #expect(life.found("paused") == [.halt(Self.paused)])
        #expect(life.found("running") == [.goOn])
        life.entering(at: 100)
        #expect(life.happened(.stopped(at: 150)) == [.ask])
        for state in ["finish-migrate", "running", "colo"] { #expect(life.found(state).isEmpty) }
        guard case .end(.refused(let words)) = try #require(life.found("paused").first) else {
            Issue.record("not refused")
            return
        }
        #expect(words.contains("'cont'"))
    }

    @Test("QEMU's stop at the end of the copy may be told behind our answer")
    func lateEntry() {
        var life = GuestLife()
        life.entering(at: 100)
        life.entered()
        #expect(life.happened(.stopped(at: 150)).isEmpty)
        #expect(life.happened(.resumed).isEmpty)
        #expect(!life.isHalted && life == Self.protected())
    }

    @Test("drives and devices have the machine compared")
    func machine() {
        var life = Self.protected()
        for happening in [GuestLife.Happening.mediumMoved(drive: "cd0"), .deviceRemoved("nic1")] {
            guard case .compareMachine = life.happened(happening).first else {
                Issue.record("\(happening)")
                return
            }
        }
        #expect(life == Self.protected())
    }

    @Test("events that never come do not heap anything up")
    func bounded() {
        var life = Self.protected()
        for time in 0..<UInt64(100_000) { life.replied(at: 1000 + time) }
        for _ in 0..<8 { #expect(life.happened(.resumed).isEmpty) }
        #expect(life == Self.protected())
    }
}
