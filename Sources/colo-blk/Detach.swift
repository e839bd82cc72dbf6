import ArgumentParser
import Node

struct Detach: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Ends the protection of a guest from the secondary's side; the guest runs on, the replica stays.")

    @Argument(help: "Name of the replica.")
    var guest: String

    @OptionGroup var store: StoreOption
    @OptionGroup var logging: LogOption

    mutating func run() async throws {
        do {
            try await StoreAccess(store: store.store, log: logging.makeLogger("colo-blk")).detach(guest: guest)
            print("\(guest): detached; the replica keeps its last checkpoint")
        } catch {
            throw fail("\(error)")
        }
    }
}
