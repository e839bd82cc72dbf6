import ArgumentParser
import Node

struct Ram: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Looks at the guest's memory in a replica, or compares it with the running guest.",
        subcommands: [RamInfoVerb.self, RamVerifyVerb.self])
}

struct RamInfoVerb: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "info", abstract: "Shows blocks, sizes, how fast memory changes and how well it packs.")

    @Argument(help: "Name of the replica.")
    var guest: String

    @OptionGroup var store: StoreOption
    @OptionGroup var logging: LogOption

    @Flag(name: .long, help: "Print JSON, with each of the last 240 checkpoints.")
    var json = false

    mutating func run() async throws {
        do {
            let info = try await StoreAccess(store: store.store, log: logging.makeLogger("colo-blk"))
                .ramInfo(guest: guest)
            if json {
                print(try JSONText.encode(info))
            } else {
                for line in RamText.lines(info) { print(line) }
            }
        } catch {
            throw fail("\(error)")
        }
    }
}

struct RamVerifyVerb: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "verify",
        abstract: "Compares the memory in a replica with that of the running guest, page by page.",
        discussion: """
            Each of the next checkpoints compares a run of pages, while protection goes on. Exit code 0: all pages are
            equal; 4: some differ; 5: not all could be compared.
            """)

    @Argument(help: "Name of the replica.")
    var guest: String

    @OptionGroup var store: StoreOption
    @OptionGroup var logging: LogOption

    @Flag(
        name: .long,
        help: "Compare with the guest's memory in QEMU's process: these checkpoints pause some 10 ms longer.")
    var guestMemory = false

    @Flag(name: .long, help: "Print the report as JSON.")
    var json = false

    mutating func run() async throws {
        let report: RamVerifyReport
        do {
            report = try await StoreAccess(store: store.store, log: logging.makeLogger("colo-blk"))
                .ramVerify(guest: guest, options: RamVerifyOptions(guestMemory: guestMemory))
            if json {
                print(try JSONText.encode(report))
            } else {
                for line in RamText.lines(report) { print(line) }
            }
        } catch {
            throw fail("\(error)")
        }
        if report.differentPages > 0 {
            throw fail(
                "\(report.differentPages) pages of '\(guest)' differ from the guest's: do not rely on this replica, "
                    + "and attach again to make a new one", ExitStatus.differs)
        }
        if let reason = report.unavailable {
            throw fail("the RAM of '\(guest)' was not compared whole: \(reason)", ExitStatus.unavailable)
        }
    }
}
