import ArgumentParser
import Glibc
import Node

struct Status: AsyncParsableCommand {
    static let configuration = CommandConfiguration(abstract: "Shows the replicas of a store.")

    @Argument(help: "Name of one replica; all by default.")
    var guest: String?

    @OptionGroup var store: StoreOption
    @OptionGroup var logging: LogOption

    @Flag(name: .long, help: "Print JSON.")
    var json = false

    @Flag(name: .long, help: "Go on and print each change as a line until it is interrupted.")
    var follow = false

    mutating func run() async throws {
        do {
            if follow { return try await followEvents() }
            let statuses = try await StoreAccess(store: store.store, log: logging.makeLogger("colo-blk"))
                .statuses(guest: guest)
            if json {
                print(try JSONText.encode(statuses))
                return
            }
            if statuses.isEmpty { print("no replica in \(store.store)") }
            for (index, status) in statuses.enumerated() {
                if index > 0 { print("") }
                for line in StatusText.lines(status) { print(line) }
            }
        } catch {
            throw fail("\(error)")
        }
    }

    private func followEvents() async throws {
        let json = json
        try await StoreAccess(store: store.store, log: logging.makeLogger("colo-blk")).follow(guest: guest) {
            statuses in
            for status in statuses { print(json ? try JSONText.line(status) : StatusText.line(status)) }
            fflush(nil)
        } happened: { event in
            print(json ? try JSONText.line(event) : StatusText.line(event))
            fflush(nil)
        }
    }
}
