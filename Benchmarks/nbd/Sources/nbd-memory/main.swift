// nbd-memory unix:PATH|HOST:PORT SIZE: our NBD server on a disk in memory, until it is killed.
import Logging
import Node

let arguments = CommandLine.arguments
guard arguments.count == 3, let size = UInt64(arguments[2]) else {
    print("usage: nbd-memory unix:PATH|HOST:PORT BYTES")
    throw ExitCode.usage
}
var log = Logger(label: "nbd-memory")
log.logLevel = .warning
let server = try await ExportServer.start(
    at: Address(parsing: arguments[1]), exports: [.init(name: "", device: try MemoryDevice(size: size))], log: log)
print(server.uri(of: ""))
await server.closed()

enum ExitCode: Error {
    case usage
}
