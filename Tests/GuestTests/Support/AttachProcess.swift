import Foundation
import Glibc

/// `colo-blk attach`: the guardian, and its child, the agent.
final class AttachProcess {
    enum Target {
        case secondary(String)
        case store(String)
    }

    let guardian: ChildProcess
    let began = monotonicSeconds()

    init(
        _ guest: Guest, to target: Target, name: String, options: [String] = [], logPath: String
    ) throws {
        guard let binary = Settings.binary else { throw TestFailure("COLO_BLK_BIN is not set") }
        var arguments = ["attach", "--qmp", guest.qmpPath, "--guest", name, "--log-level", "info"]
        switch target {
        case .secondary(let address): arguments += ["--to", address]
        case .store(let directory): arguments += ["--store", directory]
        }
        guardian = try ChildProcess("attach", binary, arguments + options, output: logPath)
    }

    var log: String { guardian.outputText }

    /// Waits for a line with these words, and for the last of so many.
    @discardableResult
    func waitFor(_ words: String, times: Int = 1, within seconds: Double = 90) throws -> Double {
        try waitUntil(
            "attach says '\(words)'", within: seconds, every: 10, seen: { tail(of: self.guardian.outputPath) }
        ) {
            if log.components(separatedBy: words).count > times { return true }
            if let code = guardian.exitCode {
                throw TestFailure(
                    "attach ended with \(code) before it said '\(words)': \(tail(of: guardian.outputPath))")
            }
            return false
        }
    }

    /// Waits until the first checkpoint is committed. Returns the seconds since the start.
    @discardableResult
    func waitUntilProtected(within seconds: Double = 90) throws -> Double {
        try waitFor("protected:", within: seconds)
        return monotonicSeconds() - began
    }

    /// The agent's process; nil when there is none.
    func findAgent() -> pid_t? {
        ProcessTable.children(of: guardian.pid).first { pid in
            ProcessTable.arguments(of: pid).dropFirst().first == "agent" && ProcessTable.isAlive(pid)
        }
    }

    func agent(within seconds: Double = 10) throws -> pid_t {
        var found: pid_t?
        try waitUntil("the agent is there", within: seconds, every: 2, seen: { tail(of: self.guardian.outputPath) }) {
            guard guardian.isRunning else { throw TestFailure("attach ended: \(tail(of: guardian.outputPath))") }
            found = findAgent()
            return found != nil
        }
        return found ?? -1
    }

    /// Waits for the end; throws when the exit code is another one.
    func waitForExit(_ expected: Int32, within seconds: Double = 15) throws {
        let code = try guardian.waitForExit(within: seconds)
        guard code == expected else {
            throw TestFailure("attach exits with \(code), not \(expected): \(tail(of: guardian.outputPath))")
        }
    }

    /// SIGTERM, and the end that it must lead to.
    func detach() throws {
        guardian.signal(SIGTERM)
        try waitForExit(0)
    }
}
