import ArgumentParser
import Node

struct Remove: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Deletes a replica that no primary is connected to and that does not run here.")

    @Argument(help: "Name of the replica.")
    var guest: String

    @OptionGroup var store: StoreOption
    @OptionGroup var logging: LogOption

    mutating func run() async throws {
        do {
            try await StoreAccess(store: store.store, log: logging.makeLogger("colo-blk")).remove(guest: guest)
            print("\(guest): removed")
        } catch {
            throw fail("\(error)")
        }
    }
}
