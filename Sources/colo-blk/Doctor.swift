import ArgumentParser
import Node

struct Doctor: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Tells whether a running guest can be protected, and what stands in the way. Changes nothing.")

    @Option(name: .long, help: "QMP socket of the running guest.")
    var qmp: String

    @Flag(name: .long, help: "Print JSON.")
    var json = false

    @OptionGroup var logging: LogOption

    mutating func run() async throws {
        let blocked: Bool
        do {
            let report = try await GuestDoctor.examine(qmp: qmp, log: logging.makeLogger("colo-blk"))
            blocked = report.isBlocked
            if json {
                print(try report.json())
            } else {
                for line in report.table() { print(line) }
            }
        } catch {
            throw fail("\(error)")
        }
        if blocked { throw ExitStatus.refused }
    }
}
