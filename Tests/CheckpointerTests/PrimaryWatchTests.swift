import Checkpointer
import TestSupport
import Testing

@Suite("Primary watch")
struct PrimaryWatchTests {
    typealias Watch = PrimaryWatch

    /// A watch over a primary that is connected, and has committed a checkpoint if `isCurrent`.
    private func watching(_ policy: Watch.Policy, isCurrent: Bool = true) -> Watch {
        var watch = Watch(policy: policy)
        watch.connected()
        if isCurrent { watch.committed() }
        return watch
    }

    @Test("a loss is reported and told once, whatever follows it", arguments: Watch.Loss.allCases)
    func once(loss: Watch.Loss) {
        var watch = watching(.init(tells: true))
        #expect(watch.ended(.lost(loss), hasCheckpoint: true) == [.report(loss), .tell(loss)])
        #expect(watch.loss == loss)
        #expect(watch.fellSilent(hasCheckpoint: true).isEmpty)
        #expect(watch.ended(.lost(.disconnected), hasCheckpoint: true).isEmpty)
        #expect(watch.loss == loss)
        watch.connected()
        #expect(watch.loss == nil)
    }

    @Test("who leaves in order is not lost, whatever the policy")
    func orderly() {
        for policy in [Watch.Policy(), .init(tells: true), .init(tells: true, promotes: true)] {
            var watch = watching(policy)
            #expect(watch.ended(.orderly, hasCheckpoint: true).isEmpty)
            #expect(watch.loss == nil)
            #expect(watch.ended(.lost(.disconnected), hasCheckpoint: true).isEmpty, "nobody is there any more")
        }
    }

    @Test("silence that ends was a false alarm, and the next one counts again")
    func falseAlarm() {
        var watch = watching(.init(tells: true))
        #expect(watch.heard().isEmpty)
        #expect(watch.fellSilent(hasCheckpoint: true) == [.report(.silent), .tell(.silent)])
        #expect(watch.heard() == [.welcomeBack])
        #expect(watch.loss == nil)
        #expect(watch.fellSilent(hasCheckpoint: true) == [.report(.silent), .tell(.silent)])
        // A farewell after all.
        #expect(watch.ended(.orderly, hasCheckpoint: true) == [.welcomeBack])
        #expect(watch.loss == nil)
    }

    @Test("without a checkpoint nothing was lost")
    func nothingToLose() {
        var watch = watching(.init(tells: true, promotes: true), isCurrent: false)
        #expect(watch.fellSilent(hasCheckpoint: false).isEmpty)
        #expect(watch.ended(.lost(.disconnected), hasCheckpoint: false).isEmpty)
        #expect(watch.loss == nil)
    }

    @Test("the guest is started only after the fence command said yes")
    func fenceFirst() {
        var watch = watching(.init(promotes: true))
        #expect(watch.ended(.lost(.silent), hasCheckpoint: true) == [.report(.silent), .fence(.silent)])
        #expect(!watch.mayConnect)
        // Nothing that happens meanwhile starts it, or fences twice.
        #expect(watch.heard().isEmpty)
        #expect(watch.fellSilent(hasCheckpoint: true).isEmpty)
        #expect(watch.ended(.lost(.disconnected), hasCheckpoint: true).isEmpty)
        #expect(watch.fenced(true) == [.promote])
        #expect(watch.fenced(true).isEmpty, "it is started once")
        #expect(!watch.mayConnect)
        watch.promoted(true)
        #expect(watch.loss == nil)
    }

    @Test("a fence command that failed leaves the replica what it was")
    func notFenced() {
        var watch = watching(.init(tells: true, promotes: true))
        #expect(watch.fellSilent(hasCheckpoint: true) == [.report(.silent), .tell(.silent), .fence(.silent)])
        #expect(watch.fenced(false) == [.stay(.notFenced)])
        #expect(watch.loss == .silent)
        #expect(watch.mayConnect)
        #expect(watch.fenced(true).isEmpty, "an answer that comes late starts nothing")
    }

    @Test("a checkpoint of before the session is not started by itself: the guest has run on since")
    func stale() {
        var watch = watching(.init(tells: true, promotes: true), isCurrent: false)
        #expect(
            watch.ended(.lost(.disconnected), hasCheckpoint: true)
                == [.report(.disconnected), .tell(.disconnected), .stay(.stale)])
        #expect(watch.loss == .disconnected)
    }

    @Test("a start that failed is a primary that is still lost; one by hand ends the matter")
    func startFailed() {
        var watch = watching(.init(promotes: true))
        _ = watch.ended(.lost(.guestDied), hasCheckpoint: true)
        _ = watch.fenced(true)
        watch.promoted(false)
        #expect(watch.loss == .guestDied)
        watch.failedOver()
        #expect(watch.loss == nil)
    }

    @Test("in any order of events nothing is started but behind a fence command that succeeded in this loss")
    func anyOrder() {
        var random = SplitMix64(seed: 7)
        for _ in 0..<2000 {
            var watch = Watch(policy: .init(tells: Bool.random(using: &random), promotes: Bool.random(using: &random)))
            var fences = 0
            for _ in 0..<30 {
                var actions: [Watch.Action] = []
                var said: Bool?
                switch Int.random(in: 0..<8, using: &random) {
                case 0 where watch.mayConnect: watch.connected()
                case 1: watch.committed()
                case 2: actions = watch.fellSilent(hasCheckpoint: Bool.random(using: &random))
                case 3: actions = watch.heard()
                case 4: actions = watch.ended(.orderly, hasCheckpoint: true)
                case 5:
                    let loss = Watch.Loss.allCases.randomElement(using: &random) ?? .silent
                    actions = watch.ended(.lost(loss), hasCheckpoint: Bool.random(using: &random))
                case 6:
                    said = Bool.random(using: &random)
                    actions = watch.fenced(said ?? false)
                default: watch.promoted(Bool.random(using: &random))
                }
                for action in actions {
                    if case .fence = action {
                        #expect(watch.policy.promotes && fences == 0)
                        fences += 1
                    }
                    if case .tell = action { #expect(watch.policy.tells) }
                    if action == .promote {
                        #expect(said == true && fences == 1)
                    }
                }
                if said != nil { fences = 0 }
            }
        }
    }
}
