import ArgumentParser
import Node

struct DiskVerbs: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "disk",
        abstract: "One secondary disk by itself, over NBD: written by clients, kept as of its last checkpoint.",
        discussion: """
            For primaries that are no colo-blk (QEMU's own COLO block replication), for tests and for benchmarks.
            STORE/NAME is a disk NAME in the store STORE, which one process serves at a time.
            """,
        subcommands: [DiskServe.self, DiskCheckpoint.self, DiskStatusVerb.self, DiskRollbackVerb.self, DiskMemory.self])
}

/// `STORE/NAME`.
struct DiskPath: ExpressibleByArgument {
    let store: String
    let name: String

    init?(argument: String) {
        guard let slash = argument.lastIndex(of: "/"), slash != argument.startIndex else { return nil }
        store = String(argument[..<slash])
        name = String(argument[argument.index(after: slash)...])
        if name.isEmpty { return nil }
    }
}

struct DiskCheckpoint: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "checkpoint", abstract: "Makes what was written so far the checkpoint.")

    @Argument(help: "STORE/NAME of a disk that is being served.")
    var disk: DiskPath

    @Flag(name: .long, help: "Print JSON.")
    var json = false

    mutating func run() async throws {
        do {
            let change = try await DiskAccess(store: disk.store, disk: disk.name).checkpoint()
            print(
                json
                    ? try JSONText.encode(change)
                    : "\(change.disk): checkpoint \(change.epoch) in \(Fixed.text(change.milliseconds, 2)) ms")
        } catch {
            throw fail("\(error)")
        }
    }
}

struct DiskRollbackVerb: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "rollback",
        abstract: "Throws away what came after the last checkpoint, while clients stay connected.")

    @Argument(help: "STORE/NAME of a disk that is being served.")
    var disk: DiskPath

    @Flag(name: .long, help: "Print JSON.")
    var json = false

    mutating func run() async throws {
        do {
            let change = try await DiskAccess(store: disk.store, disk: disk.name).rollBack()
            let bytes = ByteText.text(change.bytesRestored ?? 0)
            print(
                json
                    ? try JSONText.encode(change)
                    : "\(change.disk): back at checkpoint \(change.epoch), \(bytes) restored in "
                        + "\(Fixed.text(change.milliseconds, 1)) ms")
        } catch {
            throw fail("\(error)")
        }
    }
}

struct DiskStatusVerb: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "status", abstract: "Shows a disk that is being served.")

    @Argument(help: "STORE/NAME of a disk that is being served.")
    var disk: DiskPath

    @Flag(name: .long, help: "Print JSON.")
    var json = false

    mutating func run() async throws {
        do {
            let status = try await DiskAccess(store: disk.store, disk: disk.name).status()
            if json {
                print(try JSONText.encode(status))
            } else {
                for line in Self.lines(status) { print(line) }
            }
        } catch {
            throw fail("\(error)")
        }
    }

    private static func lines(_ status: DiskStatus) -> [String] {
        let counters = status.counters
        return [
            "disk         \(status.disk), \(ByteText.text(status.size))",
            "checkpoint   \(status.committedEpoch.map(String.init) ?? "none yet")",
            "durability   \(status.durability)",
            "hidden       \(ByteText.text(status.hiddenBytes))",
            "buffered     \(ByteText.text(status.bufferedBytes)) of \(ByteText.text(status.bufferLimitBytes))",
            "secondary    \(ByteText.text(status.secondaryBytes)) of \(ByteText.text(status.size))",
            "clients      \(status.clients)",
            "received     \(ByteText.text(counters.bytesReceived)) since the start",
            "preserved    \(counters.blocksPreserved) blocks; unchanged \(counters.blocksUnchanged)",
        ] + (status.failure.map { ["FAILED       \($0)"] } ?? [])
    }
}
