import ArgumentParser
import Node

struct Attach: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Protects a running guest until it is interrupted; the guest is left as it was found.")

    @Option(name: .long, help: "QMP socket of the running guest.")
    var qmp: String

    @Option(name: .long, help: "Address of the secondary (colo-blk serve): HOST:PORT or unix:/PATH.")
    var to: String?

    @Option(name: .long, help: "Keep the replica in this directory of this host instead.")
    var store: String?

    @Option(name: .long, help: "With --store: DISK=FILE, an existing copy that a new replica begins with; repeatable.")
    var seed: [String] = []

    @Option(name: .long, help: "Name of the replica; the guest's own -name by default.")
    var guest: String?

    @Option(name: .long, help: "Time between checkpoints, such as 200ms or 1s.")
    var interval = Interval(nanoseconds: 200_000_000)

    @Option(name: .long, help: "disk: a checkpoint survives power loss of both hosts; memory: the loss of either.")
    var durability: DurabilityChoice = .disk

    @Option(name: .long, help: "Most data that may wait for the secondary, in MiB.")
    var budget: Int = 256

    @Option(name: .long, help: "Most bytes a second that are sent to the secondary, such as 100M; 0: no bound.")
    var bandwidth: ByteSize?

    @Option(
        name: .long,
        help: """
            Let the guest's packets out only when their checkpoint is committed: 'all', or ids of -netdev, such as \
            net0,net1.
            """)
    var holdNetwork: String?

    @Option(name: .long, help: "With --hold-network: how long packets shall be held at most, in the median.")
    var holdTarget = Interval(nanoseconds: 50_000_000)

    @Option(name: .long, help: "Share of the guest's time that checkpoints may make it stand still, 0.01 to 1.")
    var maxPauseShare: Double = 0.25

    @Option(
        name: .long,
        help: """
            When the secondary is lost: continue (wait for it and resync), detach (exit code 2), or, with \
            --hold-network, hold (as continue, with the network closed until a checkpoint is committed again).
            """)
    var onSecondaryLoss: LossChoice = .continue

    @Option(name: .long, help: "Seconds from the loss after which the secondary is not waited for any longer.")
    var resyncTimeout: Int?

    @OptionGroup var tls: TLSOption

    @Option(name: .long, help: "Host in the secondary's certificate, when it is not the one of --to.")
    var tlsName: String?

    @Flag(name: .long, help: "Connect in clear text to an address that is not of this machine.")
    var insecure = false

    @Flag(name: .long, help: "Send whole pages: saves memory as large as the guest's RAM, costs bandwidth.")
    var noDelta = false

    @Flag(name: .long, help: "Go on although the doctor found a blocker.")
    var force = false

    @Option(
        name: .long,
        help: ArgumentHelp("Process id of the guest's QEMU, when the socket does not tell.", visibility: .hidden))
    var pid: Int32?

    @OptionGroup var logging: LogOption

    func validate() throws {
        guard (to == nil) != (store == nil) else {
            throw ValidationError("say either --to ADDR (a second host) or --store DIR (this host)")
        }
        guard seed.isEmpty || store != nil else {
            throw ValidationError("--seed belongs to --store; with --to, say it to 'serve' on the secondary")
        }
        guard to != nil || (tls.tlsCertificates == nil && tls.tlsPsk == nil) else {
            throw ValidationError("--tls-certificates and --tls-psk belong to --to; with --store nothing is sent")
        }
        guard tlsName == nil || tls.tlsCertificates != nil else {
            throw ValidationError("--tls-name belongs to --tls-certificates")
        }
        guard bandwidth.map({ $0.bytes == 0 || $0.bytes >= AttachOptions.bandwidthMin }) ?? true else {
            throw ValidationError("--bandwidth takes 0 (no bound), or 64K or more")
        }
        guard to != nil || bandwidth == nil else {
            throw ValidationError("--bandwidth belongs to --to; with --store nothing is sent")
        }
        guard (16...65536).contains(budget) else { throw ValidationError("--budget takes 16 to 65536 MiB") }
        if let resyncTimeout {
            guard (1...31_536_000).contains(resyncTimeout), onSecondaryLoss == .continue else {
                throw ValidationError("--resync-timeout takes 1 to 31536000 seconds, with --on-secondary-loss continue")
            }
        }
        guard interval.nanoseconds >= 10_000_000 else { throw ValidationError("--interval must be at least 10ms") }
        guard (0.01...1).contains(maxPauseShare) else { throw ValidationError("--max-pause-share takes 0.01 to 1") }
        guard holdNetwork != nil || onSecondaryLoss != .hold else {
            throw ValidationError("--on-secondary-loss hold closes a network that is held: say --hold-network, too")
        }
        if holdNetwork != nil, heldNetworks == nil {
            throw ValidationError("--hold-network takes 'all' or ids of -netdev with commas between them")
        }
    }

    private var heldNetworks: HeldNetworks? {
        guard let holdNetwork else { return nil }
        if holdNetwork == "all" { return .all }
        let names = holdNetwork.split(separator: ",", omittingEmptySubsequences: false).map(String.init)
        return names.contains("") || Set(names).count < names.count ? nil : .named(names)
    }

    mutating func run() async throws {
        do {
            let address = try to.map { text throws(Address.Malformed) in try Address(parsing: text) }
            if let address { try tls.check(address, insecure: insecure) }
            var options = AttachOptions(
                qmp: qmp, address: address, store: store, guest: guest, intervalNanoseconds: interval.nanoseconds,
                durable: durability == .disk, budgetBytes: budget << 20, useDelta: !noDelta, force: force, pid: pid,
                logLevel: logging.logLevel)
            options.tls = tls.files
            options.tlsName = tlsName
            options.seeds = seed
            options.triesAgain = onSecondaryLoss != .detach
            options.closesNetworkOnLoss = onSecondaryLoss == .hold
            options.holdNetwork = heldNetworks
            options.holdTargetNanoseconds = holdTarget.nanoseconds
            options.pauseShareMax = maxPauseShare
            options.bandwidth = bandwidth.flatMap { $0.bytes == 0 ? nil : $0.bytes }
            options.resyncTimeoutNanoseconds = resyncTimeout.map { UInt64($0) * 1_000_000_000 }
            let outcome = try await Attachment.run(options, log: logging.makeLogger("colo-blk"))
            switch outcome {
            case .detached(let message):
                printError("colo-blk: \(message)")
            case .protectionEnded(let message):
                throw fail(message, ExitStatus.protectionEnded)
            case .guestGone(let message):
                throw fail(message, ExitStatus.guestGone)
            case .refused(let message):
                throw fail(message)
            }
        } catch let code as ExitCode {
            throw code
        } catch {
            throw fail("\(error)")
        }
    }
}

enum LossChoice: String, ExpressibleByArgument, CaseIterable {
    case `continue`, detach, hold
}

enum DurabilityChoice: String, ExpressibleByArgument, CaseIterable {
    case disk, memory
}

/// The child of `attach` that does the work. Its standard input is the guardian's socket, not for hands.
struct AgentVerb: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "agent", abstract: "Started by attach.", shouldDisplay: false)

    @Argument var options: String

    mutating func run() async throws {
        throw ExitCode(await Agent.run(encodedOptions: options))
    }
}
