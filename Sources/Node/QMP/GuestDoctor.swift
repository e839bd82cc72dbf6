import Logging
import NIOPosix
import QEMU

/// `colo-blk doctor`: looks at a running guest over its monitor and changes nothing.
public struct GuestDoctor: Sendable {
    private let report: DoctorReport

    public static func examine(qmp path: String, log: Logger) async throws -> GuestDoctor {
        let client = try await QMPClient.connect(path: path, eventLoop: MultiThreadedEventLoopGroup.singleton.next())
        defer { client.close() }
        var process: GuestProcess?
        var problem: String? = "the monitor's socket tells no process id"
        if let pid = client.peerPID {
            do {
                process = try GuestProcess.read(pid: pid)
            } catch {
                problem = "\(error)"
            }
        }
        let answers = try await GuestAnswers.survey(client)
        return GuestDoctor(
            report: DoctorReport.examine(
                answers, arguments: process?.arguments, argumentsProblem: problem, outOfBand: client.outOfBand))
    }

    /// Whether an attach would be refused.
    public var isBlocked: Bool { report.hasBlockers }

    public func json() throws -> String { try JSONText.encode(report) }

    /// One finding a line, its remedy below it.
    public func table() -> [String] {
        var lines: [String] = []
        for finding in report.findings {
            let severity = finding.severity.rawValue
            lines.append(severity + String(repeating: " ", count: max(1, 9 - severity.utf8.count)) + finding.text)
            if let remedy = finding.remedy { lines.append("         -> \(remedy)") }
        }
        lines.append(isBlocked ? "This guest cannot be protected as it is." : "This guest can be protected.")
        return lines
    }
}
