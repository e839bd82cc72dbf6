import ArgumentParser
import Node

/// Frames from one end of a link to the other, on this machine, with nothing behind them. For benchmarks.
struct LinkVerb: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "link-throughput", abstract: "Measures the link.", shouldDisplay: false)

    @Option(name: .long) var mebibytes: UInt64 = 1024
    /// The folder that `keys create` has made.
    @Option(name: .long) var keys: String?
    @Flag(name: .long) var psk = false

    func validate() throws {
        guard (1...1 << 20).contains(mebibytes) else { throw ValidationError("--mebibytes takes 1 to 1048576") }
    }

    mutating func run() async throws {
        let psk = psk
        let files = ["secondary", "primary"].map { host in
            keys.map { keys -> TLSFiles in
                psk ? .sharedKey(file: "\(keys)/\(host)/link.psk") : .certificates(directory: "\(keys)/\(host)")
            }
        }
        do {
            print(
                try JSONText.line(
                    try await LinkThroughput.measure(
                        bytes: mebibytes << 20, secondary: files[0], primary: files[1])))
        } catch {
            throw fail("\(error)")
        }
    }
}
