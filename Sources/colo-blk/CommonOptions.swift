import ArgumentParser
import Glibc
import Logging
import Node

/// Exit codes of every verb, kept in docs/cli.md.
enum ExitStatus {
    static let refused = ExitCode(1)
    static let protectionEnded = ExitCode(2)
    static let guestGone = ExitCode(3)
    static let differs = ExitCode(4)
    static let unavailable = ExitCode(5)
    static let nothingCommitted = ExitCode(6)
    static let inUse = ExitCode(7)
    static let mended = ExitCode(8)
    /// As qemu-img has it.
    static let nothingToCheck = ExitCode(63)
}

struct StoreOption: ParsableArguments {
    @Option(name: .long, help: "Directory of the store.")
    var store: String = "/var/lib/colo-blk"
}

/// TLS of what a verb listens on or connects to. Secrets stay in files.
struct TLSOption: ParsableArguments {
    @Option(name: .long, help: "Directory with ca-cert.pem and this side's certificate and key: TLS with certificates.")
    var tlsCertificates: String?

    @Option(name: .long, help: "File of lines USER:HEXKEY: TLS with shared keys.")
    var tlsPsk: String?

    func validate() throws {
        guard tlsCertificates == nil || tlsPsk == nil else {
            throw ValidationError("say either --tls-certificates or --tls-psk")
        }
    }

    /// Nil: clear text. The paths are absolute: a daemon has another working directory.
    var files: TLSFiles? {
        if let tlsCertificates { return .certificates(directory: absolutePath(tlsCertificates)) }
        return tlsPsk.map { .sharedKey(file: absolutePath($0)) }
    }

    /// Refuses a link in clear text to or from other hosts, unless somebody said that it may be.
    func check(_ address: Address, insecure: Bool) throws {
        if files != nil {
            guard !insecure else { throw fail("--insecure is for clear text; with TLS leave it out") }
            return
        }
        guard address.staysOnThisMachine || insecure else {
            throw fail(
                "\(address) is not of this machine, and without TLS the link is clear text: make keys with "
                    + "'colo-blk keys create' and say --tls-certificates or --tls-psk on both hosts, or --insecure in "
                    + "a network you trust with the guest's memory")
        }
    }
}

func absolutePath(_ path: String) -> String {
    guard !path.hasPrefix("/"), let folder = getcwd(nil, 0) else { return path }
    defer { free(folder) }
    return "\(String(cString: folder))/\(path)"
}

struct LogOption: ParsableArguments {
    @Option(name: .long, help: "What is logged to standard error: trace, debug, info, notice, warning, error.")
    var logLevel: String = "info"

    func validate() throws {
        guard Logger.Level(rawValue: logLevel) != nil else {
            throw ValidationError("'\(logLevel)' is no log level; use trace, debug, info, notice, warning or error")
        }
    }

    func makeLogger(_ label: String) -> Logger {
        var logger = Logger(label: label, factory: { StreamLogHandler.standardError(label: $0) })
        logger.logLevel = Logger.Level(rawValue: logLevel) ?? .info
        return logger
    }
}

/// Prints one line and ends with the exit code; nothing else is said.
func fail(_ message: String, _ code: ExitCode = ExitStatus.refused) -> ExitCode {
    printError("colo-blk: \(message)")
    return code
}

func printError(_ line: String) {
    let text = line + "\n"
    _ = text.withCString { write(2, $0, strlen($0)) }
}

/// A time such as `200ms`, `1s`, `1.5s`.
struct Interval: ExpressibleByArgument {
    let nanoseconds: UInt64

    init(nanoseconds: UInt64) { self.nanoseconds = nanoseconds }

    init?(argument: String) {
        let factor: Double
        let digits: Substring
        if argument.hasSuffix("ms") {
            (digits, factor) = (argument.dropLast(2), 1e6)
        } else if argument.hasSuffix("s") {
            (digits, factor) = (argument.dropLast(), 1e9)
        } else {
            return nil
        }
        guard let value = Double(digits), value.isFinite, value > 0, value <= 3600e3 else { return nil }
        nanoseconds = UInt64(value * factor)
    }

    var defaultValueDescription: String { "\(nanoseconds / 1_000_000)ms" }
}
