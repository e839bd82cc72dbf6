import ArgumentParser
import Node

struct Recover: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Takes the disks of a guest in a stopped store back to the committed checkpoint, in place.",
        discussion: """
            Afterwards disks/ID/secondary.raw alone is the disk. It may be killed at any moment; say it again and it
            goes on.
            """)

    @Argument(help: "The guest's folder: STORE/GUEST.")
    var path: String

    @Flag(name: .long, help: "Say what would be done and change nothing.")
    var dryRun = false

    @Flag(name: .long, help: "Go on although RAM or device state of the checkpoint is lost.")
    var disksOnly = false

    @Flag(name: .long, help: "Print the report as JSON.")
    var json = false

    mutating func run() async throws {
        do {
            var recovery = try StoreRecovery(path: path, disksOnly: disksOnly)
            if !dryRun {
                let bar = ProgressBar("recovering", isShown: recovery.report.totalBytes > 0)
                let total = recovery.report.totalBytes
                try recovery.run { bar.show($0, of: total) }
                bar.finish()
            }
            if json {
                print(try recovery.text())
                return
            }
            let report = recovery.report
            for finding in report.findings { printError("note: \(finding)") }
            for disk in report.disks {
                print(
                    "\(disk.id): \(disk.hiddenDisks) hidden \(disk.hiddenDisks == 1 ? "disk" : "disks"), "
                        + "\(ByteText.text(disk.dataBytes)) of data and \(ByteText.text(disk.zeroBytes)) of zeroes "
                        + "\(report.dryRun ? "to be written back into" : "written back into") \(disk.path)")
            }
            print(
                "\(report.guest): \(report.dryRun ? "would be" : "is") at checkpoint \(report.epoch)"
                    + (report.dryRun ? "; nothing was changed" : ""))
        } catch {
            throw fail("\(error)")
        }
    }
}
