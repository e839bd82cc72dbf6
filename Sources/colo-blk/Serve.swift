import ArgumentParser
import Logging
import Node
import ServiceLifecycle
import UnixSignals

struct Serve: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Runs the secondary: keeps the replicas of many guests, ready to start.")

    @OptionGroup var store: StoreOption
    @OptionGroup var logging: LogOption

    @Option(name: .long, help: "Where primaries connect: HOST:PORT or unix:/PATH.")
    var listen: String

    @OptionGroup var tls: TLSOption

    @Flag(name: .long, help: "Listen in clear text on an address that is not of this machine.")
    var insecure = false

    @Option(
        name: .long, help: "GUEST/DISK=FILE: an existing copy that a new replica begins with; repeatable.")
    var seed: [String] = []

    @Option(
        name: .long, help: "GUEST/DISK=DEVICE: a block device for a new replica's disk, overwritten; repeatable.")
    var device: [String] = []

    @Option(name: .long, help: "Command to run when a primary is lost; see docs/operations.md.")
    var onLoss: String?

    @Option(name: .long, help: "Command that makes sure that a lost primary is off, and ends with 0 only then.")
    var fenceCommand: String?

    @Flag(name: .long, help: "Start a guest whose primary is lost, once --fence-command has ended with 0.")
    var autoFailover = false

    @Flag(name: .long, help: "Do not start the guest once, paused, after its first checkpoint.")
    var noProof = false

    @Option(name: .long, help: "The QEMU to start instead of the one that the primary ran.")
    var qemu: String?

    @Option(
        name: .long, help: "MiB of memory logs after which a new base is written; half of a guest's memory by default.")
    var ramLog: Int?

    func validate() throws {
        guard autoFailover == (fenceCommand != nil) else {
            throw ValidationError(
                "--auto-failover needs --fence-command, and the other way round: a guest that starts here while the "
                    + "primary may still run is two guests")
        }
        if let ramLog, !(1...1 << 20).contains(ramLog) {
            throw ValidationError("--ram-log takes 1 to 1048576 MiB")
        }
    }

    mutating func run() async throws {
        do {
            let address = try Address(parsing: listen)
            try tls.check(address, insecure: insecure)
            let linkTLS = try tls.files.map { files throws(TLSRefused) in try LinkTLS.secondary(files) }
            let log = logging.makeLogger("colo-blk")
            var options = SecondaryOptions(
                store: store.store, proof: !noProof, qemu: qemu,
                seeds: try seed.map { text in try DiskSeed(parsing: text) }
                    + device.map { text in try DiskSeed(parsing: text, isDevice: true) },
                ramLogBytes: ramLog.map { UInt64($0) << 20 })
            options.onLoss = onLoss
            options.fenceCommand = fenceCommand
            options.autoFailover = autoFailover
            let daemon = try SecondaryDaemon.open(options: options, log: log)
            let services = ServiceGroup(
                services: [DaemonService(daemon: daemon, address: address, tls: linkTLS)],
                gracefulShutdownSignals: [.sigterm, .sigint], logger: log)
            try await services.run()
        } catch let code as ExitCode {
            throw code
        } catch {
            throw fail("\(error)")
        }
    }
}

private struct DaemonService: Service {
    let daemon: SecondaryDaemon
    let address: Address
    let tls: LinkTLS?

    func run() async throws {
        do {
            try await cancelWhenGracefulShutdown { try await daemon.run(listen: address, tls: tls) }
        } catch is CancellationError {
            // The end that was asked for.
        }
    }
}
