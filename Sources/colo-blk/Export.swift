import ArgumentParser
import Glibc
import Node
import ServiceLifecycle
import UnixSignals

struct Export: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Serves the disks of the last checkpoint over NBD until it is interrupted.",
        discussion: """
            What is served does not change, whatever the guest writes meanwhile and however many checkpoints follow.
            """)

    @Argument(help: "Name of the replica.")
    var guest: String

    @OptionGroup var store: StoreOption
    @OptionGroup var logging: LogOption

    @Option(name: .long, help: "Unix socket to listen on.")
    var socket: String?

    @Option(name: .long, help: "HOST:PORT to listen on instead; off this machine only with TLS.")
    var listen: String?

    @Flag(name: .long, help: "Let clients write; what they write is thrown away at the end.")
    var writableScratch = false

    @OptionGroup var tls: TLSOption

    @Flag(name: .long, help: "Print JSON.")
    var json = false

    func validate() throws {
        guard (socket == nil) != (listen == nil) else {
            throw ValidationError("say either --socket PATH or --listen HOST:PORT")
        }
    }

    mutating func run() async throws {
        do {
            let address = try Address(parsing: listen ?? "unix:\(absolutePath(socket ?? ""))")
            guard address.staysOnThisMachine || tls.files != nil else {
                throw fail("\(address) leaves this machine in clear text: say --tls-certificates or --tls-psk")
            }
            let options = ExportOptions(address: "\(address)", writable: writableScratch, tls: tls.files)
            let log = logging.makeLogger("colo-blk")
            let service = ExportService(
                access: StoreAccess(store: store.store, log: log), guest: guest, options: options, json: json)
            let services = ServiceGroup(
                services: [service], gracefulShutdownSignals: [.sigterm, .sigint], logger: log)
            try await services.run()
        } catch let code as ExitCode {
            throw code
        } catch {
            throw fail("\(error)")
        }
    }
}

private struct ExportService: Service {
    let access: StoreAccess
    let guest: String
    let options: ExportOptions
    let json: Bool

    func run() async throws {
        let json = json
        do {
            try await cancelWhenGracefulShutdown {
                try await access.export(guest: guest, options: options) { report in
                    for line in Self.lines(report, json: json) { print(line) }
                    fflush(nil)
                }
            }
        } catch is CancellationError {
            // The end that was asked for.
        }
    }

    private static func lines(_ report: ExportReport, json: Bool) -> [String] {
        if json { return [(try? JSONText.encode(report)) ?? ""] }
        return ["checkpoint   \(report.epoch)" + (report.writable ? ", writable, nothing is kept" : ", read-only")]
            + report.disks.map { "\($0.id)  \(ByteText.text($0.bytes))  \($0.uri)" }
    }
}
