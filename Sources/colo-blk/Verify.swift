import ArgumentParser
import Node

struct Verify: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Compares a replica's disks and memory with the running guest's, while protection goes on.",
        discussion: """
            What differs is named, with the checkpoint that shows it. Exit code 0: all is equal; 4: something differs;
            5: not all could be compared; 6: nothing is committed; 8: something differed, and --repair mended it.
            """)

    @Argument(help: "Name of the replica.")
    var guest: String

    @OptionGroup var store: StoreOption
    @OptionGroup var logging: LogOption

    @Option(name: .long, help: "MiB of disks and memory to compare in a second; 0: as fast as it goes.")
    var bandwidth: UInt64 = 64

    @Flag(name: .long, help: "Compare with memory in QEMU's process: these checkpoints pause some 10 ms longer.")
    var guestMemory = false

    @Flag(name: .long, help: "Have what differs sent again.")
    var repair = false

    @Flag(name: .long, help: "Go on where the last comparison was cut short.")
    var resume = false

    @Flag(name: .long, help: "Print the report as JSON.")
    var json = false

    func validate() throws {
        guard bandwidth <= 1 << 20 else { throw ValidationError("--bandwidth takes 0 to 1048576 MiB") }
    }

    mutating func run() async throws {
        let report: VerifyReport
        do {
            let bar = ProgressBar("comparing", isShown: !json)
            report = try await StoreAccess(store: store.store, log: logging.makeLogger("colo-blk")).verify(
                guest: guest,
                options: VerifyOptions(
                    guestMemory: guestMemory, bytesPerSecond: bandwidth << 20, repair: repair, resume: resume)
            ) { progress in bar.show(progress.doneBytes, of: progress.totalBytes) }
            bar.finish()
            if json {
                print(try JSONText.encode(report))
            } else {
                for line in VerifyText.lines(report) { print(line) }
            }
        } catch {
            throw fail("\(error)")
        }
        if report.differing > 0 {
            throw fail(
                "'\(guest)' differs from its guest in \(report.differing) places: do not rely on this replica; "
                    + "--repair has them sent again, or attach again to make a new one", ExitStatus.differs)
        }
        guard report.isCommitted else {
            throw fail("'\(guest)' was not compared: \(report.unavailable ?? "")", ExitStatus.nothingCommitted)
        }
        if let reason = report.unavailable {
            throw fail("'\(guest)' was not compared whole: \(reason)", ExitStatus.unavailable)
        }
        if report.found > 0 {
            throw fail(
                "'\(guest)' differed from its guest in \(report.found) places, which were sent again and are equal "
                    + "now: look for the cause (memory, disk, somebody who wrote to the store)", ExitStatus.mended)
        }
    }
}

/// `colo-blk verify` for people.
enum VerifyText {
    static func lines(_ report: VerifyReport) -> [String] {
        var lines = ["guest        \(report.guest)"]
        if let first = report.firstEpoch, let last = report.lastEpoch {
            lines.append("checkpoints  \(first) to \(last)")
        }
        for disk in report.disks {
            lines.append(
                "disk         \(disk.id): \(ByteText.text(disk.comparedBytes)) of \(ByteText.text(disk.bytes)) "
                    + "compared, \(disk.differentBlocks) blocks different, \(disk.repairedBlocks) mended")
        }
        lines.append(
            "memory       \(report.comparedPages) of \(report.ramPages) pages compared, "
                + "\(report.differentPages) different, \(report.repairedPages) mended")
        for difference in report.differences {
            let place = difference.disk.map { "disk \($0)" } ?? difference.ramBlock ?? ""
            lines.append(
                "differs      \(place) offset \(difference.offset), \(difference.length) bytes, checkpoint "
                    + "\(difference.epoch)\(difference.repaired ? ", mended" : "")")
        }
        return lines
    }
}
