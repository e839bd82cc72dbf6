import Foundation
import Synchronization

/// Makes a real QEMU behave as 10.0.2 does: asked to enter COLO it says so in the stream, and then ends the migration
/// as completed, closes the socket and leaves the guest stopped.
///
/// The capability is kept from QEMU, which so does an ordinary migration; the mark of COLO is put into its stream.
final class FakeMigration {
    private let path: String
    private let state = State()

    private final class State: Sendable {
        let target = Mutex<String?>(nil)
        let listener = Mutex<FakeListener?>(nil)
        let continued = Mutex(false)
    }

    /// Whether somebody has sent `cont`.
    var continued: Bool { state.continued.withLock { $0 } }

    /// - Parameter path: a socket of ours for QEMU's stream.
    init(_ path: String) throws {
        self.path = path
        let state = self.state
        let listener = try FakeListener("unix:\(path)") { qemu in
            guard let target = state.target.withLock({ $0 }), let agent = try? FakeStream.connect(to: target) else {
                return qemu.shut()
            }
            qemu.setReadLimit(60)
            agent.setReadLimit(60)
            Self.carry(from: qemu, to: agent)
            agent.shut()
            qemu.shut()
        }
        state.listener.withLock { $0 = listener }
    }

    /// Header and configuration section, then the command ENABLE_COLO (8, no data), then the rest.
    private static func carry(from qemu: FakeStream, to agent: FakeStream) {
        var head: [UInt8] = []
        while head.count < 13 {
            let more = qemu.read()
            if more.isEmpty { return }
            head += more
        }
        let length = head[9..<13].reduce(0) { $0 << 8 | Int($1) }
        while head.count < 13 + length {
            let more = qemu.read()
            if more.isEmpty { return }
            head += more
        }
        agent.write(head[..<(13 + length)])
        agent.write([8, 0, 8, 0, 0])
        agent.write(head[(13 + length)...])
        while true {
            let more = qemu.read()
            guard !more.isEmpty, agent.write(more) else { return }
        }
    }

    func story() -> FakeMonitor.Story {
        let state = state
        let path = path
        return FakeMonitor.Story(
            command: { message in
                var arguments = message["arguments"] as? FakeMonitor.Message ?? [:]
                switch message["execute"] as? String {
                case "migrate":
                    state.target.withLock { $0 = arguments["uri"] as? String }
                    arguments["uri"] = "unix:\(path)"
                    message["arguments"] = arguments
                case "migrate-set-capabilities":
                    let list = arguments["capabilities"] as? [FakeMonitor.Message] ?? []
                    arguments["capabilities"] = list.map { entry in
                        guard entry["capability"] as? String == "x-colo" else { return entry }
                        return ["capability": "x-colo", "state": false] as FakeMonitor.Message
                    }
                    message["arguments"] = arguments
                case "cont":
                    state.continued.withLock { $0 = true }
                default:
                    break
                }
            })
    }
}
