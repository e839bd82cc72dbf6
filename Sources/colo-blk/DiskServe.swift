import ArgumentParser
import Glibc
import Logging
import Node
import ServiceLifecycle
import UnixSignals

struct DiskServe: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "serve",
        abstract: "Serves a disk over NBD until it is interrupted; it starts as of its last checkpoint.",
        discussion: """
            What is written is kept only up to the last 'colo-blk disk checkpoint': however this process ends, the next
            one shows exactly that. Before the first checkpoint nothing is kept.
            """)

    @Argument(help: "STORE/NAME; made when it is missing.")
    var disk: DiskPath

    @Option(name: .long, help: "Size of a new disk, such as 64M or 10G.")
    var size: ByteSize?

    @Option(name: .long, help: "Make a new disk as large as this file.")
    var like: String?

    @Option(name: .long, help: "disk: a checkpoint survives a power loss; memory: the end of this process.")
    var durability: DurabilityChoice = .disk

    @Option(name: .long, help: "Most writes that may wait in memory, in MiB.")
    var budget: Int = 64

    @Option(name: .long, help: "Unix socket to serve on.")
    var socket: String?

    @Option(name: .long, help: "Address of this machine to serve on: 127.0.0.1:PORT.")
    var listen: String?

    @OptionGroup var tls: TLSOption
    @OptionGroup var logging: LogOption

    func validate() throws {
        guard (socket == nil) != (listen == nil) else {
            throw ValidationError("say either --socket PATH or --listen ADDR")
        }
        guard size == nil || like == nil else { throw ValidationError("--size and --like exclude each other") }
        guard (1...65536).contains(budget) else { throw ValidationError("--budget takes 1 to 65536 MiB") }
    }

    mutating func run() async throws {
        do {
            let address = try Address(parsing: listen ?? "unix:\(socket ?? "")")
            guard address.staysOnThisMachine else {
                throw fail("\(address) leaves this machine; serve the disk on 127.0.0.1 or a unix socket and tunnel it")
            }
            let log = logging.makeLogger("colo-blk")
            let service = try DiskService(
                options: DiskServiceOptions(
                    store: disk.store, disk: disk.name, size: try wantedSize(), durable: durability == .disk,
                    bufferBytes: budget << 20, address: address, tls: try tls.files.map { try ExportTLS.required($0) }),
                log: log)
            let services = ServiceGroup(
                services: [UntilStopped { try await service.run() }],
                gracefulShutdownSignals: [.sigterm, .sigint], logger: log)
            try await services.run()
        } catch let code as ExitCode {
            throw code
        } catch {
            throw fail("\(error)")
        }
    }

    private func wantedSize() throws -> UInt64? {
        guard let like else { return size?.bytes }
        var status = stat()
        guard stat(like, &status) == 0, status.st_mode & S_IFMT == S_IFREG else {
            throw fail("\(like) is no regular file whose size could be taken; say --size")
        }
        return UInt64(status.st_size)
    }
}

/// An NBD server on memory: what is left of the export when there is no disk behind it. For benchmarks.
struct DiskMemory: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "memory", abstract: "Serves memory.", shouldDisplay: false)

    @Option(name: .long) var size: ByteSize
    @Option(name: .long) var socket: String
    @OptionGroup var logging: LogOption

    mutating func run() async throws {
        do {
            let address = try Address(parsing: "unix:\(socket)")
            let log = logging.makeLogger("colo-blk")
            let device = try MemoryDevice(size: size.bytes)
            let services = ServiceGroup(
                services: [
                    UntilStopped {
                        let server = try await ExportServer.start(
                            at: address, exports: [.init(name: "memory", device: device)], log: log)
                        try? await Task.sleep(for: .seconds(365 * 86400))
                        await server.close()
                    }
                ],
                gracefulShutdownSignals: [.sigterm, .sigint], logger: log)
            try await services.run()
        } catch {
            throw fail("\(error)")
        }
    }
}

/// Something that runs until a signal asks for its end.
struct UntilStopped: Service {
    let body: @Sendable () async throws -> Void

    func run() async throws {
        do {
            try await cancelWhenGracefulShutdown { try await body() }
        } catch is CancellationError {
            // The end that was asked for.
        }
    }
}
