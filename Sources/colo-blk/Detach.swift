import ArgumentParser
import Node

struct Detach: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Ends the protection of a guest from the secondary's side; the guest runs on, the replica stays.",
        discussion: """
            With --recover, on the primary: removes from a guest what an attach left there that was killed together \
            with its agent, and opens a network that an outage of the secondary keeps closed.
            """)

    @Argument(help: "Name of the replica.")
    var guest: String?

    @Flag(name: .long, help: "Put a guest back that an attach left behind; with --qmp instead of a name.")
    var recover = false

    @Option(name: .long, help: "With --recover: QMP socket of the running guest.")
    var qmp: String?

    @OptionGroup var store: StoreOption
    @OptionGroup var logging: LogOption

    func validate() throws {
        guard recover ? guest == nil && qmp != nil : guest != nil && qmp == nil else {
            throw ValidationError("say the name of a replica, or --recover --qmp SOCKET")
        }
    }

    mutating func run() async throws {
        do {
            let log = logging.makeLogger("colo-blk")
            if let qmp {
                let remains = try await GuestRecovery.run(qmp: qmp, log: log)
                let words = remains.joined(separator: ", ")
                print(remains.isEmpty ? "nothing of colo-blk is in the guest" : "removed: \(words)")
            } else if let guest {
                try await StoreAccess(store: store.store, log: log).detach(guest: guest)
                print("\(guest): detached; the replica keeps its last checkpoint")
            }
        } catch {
            throw fail("\(error)")
        }
    }
}
