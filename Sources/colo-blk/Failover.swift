import ArgumentParser
import Node

struct Failover: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Starts the guest on this host from its last committed checkpoint.",
        discussion: """
            Make sure that the old primary cannot come back (fence it): two running copies of one guest on one network
            is worse than an outage. The replica refuses the old primary for ever after this.
            """)

    @Argument(help: "Name of the replica.")
    var guest: String

    @OptionGroup var store: StoreOption
    @OptionGroup var logging: LogOption

    @Flag(name: .long, help: "Print the QEMU command and change nothing.")
    var dryRun = false

    @Flag(name: .long, help: "Leave the guest paused.")
    var paused = false

    @Option(name: .long, help: "Command that makes sure that the primary is off; without exit code 0 nothing is done.")
    var fenceCommand: String?

    @Flag(name: .long, help: "Go on although the primary still answers.")
    var force = false

    @Flag(name: .long, help: "Send all RAM to QEMU instead of having it map the cache: slower, for a QEMU that cannot.")
    var fullStream = false

    @Flag(name: .long, help: "Print the report as JSON.")
    var json = false

    @Option(name: .long, help: "The QEMU to start instead of the one that the primary ran.")
    var qemu: String?

    @Argument(parsing: .postTerminator, help: "More arguments for QEMU.")
    var extra: [String] = []

    mutating func run() async throws {
        do {
            let report = try await StoreAccess(store: store.store, log: logging.makeLogger("colo-blk")).failover(
                guest: guest,
                options: FailoverOptions(
                    dryRun: dryRun, paused: paused, force: force, fullStream: fullStream, qemu: qemu,
                    extraArguments: extra, fenceCommand: fenceCommand))
            if json {
                print(try JSONText.encode(report))
                return
            }
            for finding in report.findings { printError("note: \(finding)") }
            if dryRun {
                print(report.commandLine)
                return
            }
            print("guest        \(report.guest)")
            print("checkpoint   \(report.epoch)")
            print("generation   \(report.generation)")
            print("process      \(report.pid.map(String.init) ?? "-")")
            print("qmp          \(report.qmpSocket ?? "-")")
            if let milliseconds = report.millisecondsToRunning {
                print("\(paused ? "loaded  " : "running ")     \(Fixed.text(milliseconds, 1)) ms after the decision")
            }
        } catch {
            throw fail("\(error)")
        }
    }
}
