import ArgumentParser
import Node

struct Keys: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Makes what two hosts need for a link with TLS.", subcommands: [KeysCreate.self])
}

struct KeysCreate: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "create",
        abstract: "Makes an authority, and certificates and keys for a primary and a secondary.",
        discussion: """
            Copy DIR/primary to one host and DIR/secondary to the other, over ssh for instance, and keep DIR/authority
            offline. Nothing that is there already is touched.
            """)

    @Argument(help: "A new folder.")
    var directory: String

    @Option(name: .long, help: "Name or address of the primary host; repeatable.")
    var primary: [String] = []

    @Option(name: .long, help: "Name or address of the secondary host, as primaries connect to it; repeatable.")
    var secondary: [String] = []

    @Option(name: .long, help: "Days for which the certificates of the hosts hold.")
    var days = KeyMaker.daysDefault

    @Flag(name: .long, help: "Make one key that both hosts share, without certificates.")
    var psk = false

    func validate() throws {
        guard psk == (primary.isEmpty && secondary.isEmpty), psk || !(primary.isEmpty || secondary.isEmpty) else {
            throw ValidationError("say --primary HOST and --secondary HOST, or --psk alone")
        }
        guard (1...36500).contains(days) else { throw ValidationError("--days takes 1 to 36500") }
    }

    mutating func run() async throws {
        do {
            try await KeyMaker.create(
                .init(directory: directory, primary: primary, secondary: secondary, days: days, sharedKey: psk))
        } catch {
            throw fail("\(error)")
        }
        let option = psk ? "--tls-psk KEYS/link.psk" : "--tls-certificates KEYS"
        print("primary      copy \(directory)/primary to KEYS on the primary host: attach \(option)")
        print("secondary    copy \(directory)/secondary to KEYS on the secondary host: serve \(option)")
        if !psk {
            print("authority    keep \(directory)/authority offline: whoever has it can make certificates")
            print("valid        \(days) days; serve and attach warn 30 days before the end")
        }
    }
}
