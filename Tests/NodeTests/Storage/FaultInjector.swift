import AsyncIO
import Synchronization
import SystemPackage

/// Has chosen calls on the files below a directory fail, as a device or a file system would have them fail.
final class FaultInjector: FileObserver {
    private struct Rule {
        let errno: Errno
        let applies: @Sendable (FileCall) -> Bool
        var left: Int
    }

    private let directory: String
    private let rules = Mutex<[Rule]>([])
    private let hits = Mutex<[String]>([])

    /// Observes files that are opened from now on.
    init(below directory: String) {
        self.directory = directory
        FileObservation.begin(below: directory, self)
    }

    func end() { FileObservation.end(below: directory) }

    /// Calls to which the rule applies fail with this reason, `count` of them.
    func fail(_ errno: Errno, count: Int = .max, where applies: @escaping @Sendable (FileCall) -> Bool) {
        rules.withLock { $0.append(Rule(errno: errno, applies: applies, left: count)) }
    }

    /// No call fails any more.
    func heal() { rules.withLock { $0 = [] } }

    /// Paths of the calls that failed.
    var failed: [String] { hits.withLock { $0 } }

    func willPerform(_ call: FileCall) throws(IOError) {
        let errno = rules.withLock { rules -> Errno? in
            for index in rules.indices where rules[index].left > 0 && rules[index].applies(call) {
                rules[index].left -= 1
                return rules[index].errno
            }
            return nil
        }
        guard let errno else { return }
        hits.withLock { $0.append(call.path) }
        throw IOError(operation: "injected fault", path: call.path, errno: errno)
    }
}
