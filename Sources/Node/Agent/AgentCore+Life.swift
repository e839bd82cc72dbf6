import Checkpointer
import Link
import Logging
import Units

/// What the core asks of the guest's QEMU besides checkpoints; set by the session, called on the event loop.
struct GuestDoors {
    /// Asks what state the guest is in; the answer comes through ``AgentCore/found(_:)``.
    var ask: () -> Void = {}
    var stop: () -> Void = {}
    /// Compares the machine with what the replica has; the words say why.
    var compareMachine: (String) -> Void = { _ in }
    /// Asks whether QEMU is in COLO still, and ends the session when it is not.
    var checkMigration: () -> Void = {}
    /// Tells people.
    var say: (String) -> Void = { _ in }
}

/// What the guest does besides its checkpoints. ``GuestLife`` decides.
extension AgentCore {
    func happened(_ happening: GuestLife.Happening) {
        switch happening {
        case .stopped: guestStopped(true)
        case .resumed: guestStopped(false)
        default: break
        }
        perform(life.happened(happening))
    }

    /// The guest's state, as QEMU's answer to a question names it.
    func found(_ state: String) { perform(life.found(state)) }

    private func perform(_ actions: [GuestLife.Action]) {
        guard !hasEnded else { return }
        for action in actions {
            switch action {
            case .ask: guest.ask()
            case .halt(let words):
                haltWords = words
                send(GuestState(code: .halted, message: words))
                guest.say("waiting: \(words)")
            case .goOn:
                haltWords = nil
                send(GuestState(code: .running))
                guest.say("the guest runs; checkpoints go on")
                network?.resumedAt = MonotonicClock.now()
                proceed()
            case .stopAgain:
                log.notice("a checkpoint has started a guest that somebody had stopped; it is stopped again")
                guest.stop()
            case .say(let words): guest.say(words)
            case .compareMachine(let words): guest.compareMachine(words)
            case .end(.shutOff(let words)): end(.guestGone(words))
            case .end(.died(let words)): end(.guestDied(words))
            case .end(.refused(let words)): end(.refused(words))
            }
        }
    }
}
