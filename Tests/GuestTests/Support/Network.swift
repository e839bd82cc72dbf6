import Foundation
import Glibc

/// A network that a test makes for itself: a namespace with one tap device for each card of the guest. The host's end of
/// the taps is the world outside.
///
/// QEMU, and the secondary that starts another one, run within it (``prefix``); a tap stays when the QEMU that used it
/// is killed, so that the guest comes back on the same wire.
final class Network {
    let name: String
    let cards: Int
    private let directory: String
    private var programs: [ChildProcess] = []
    /// Whether guests get a user-mode network instead, whose datagrams come out within the namespace: two guests may have
    /// it at the same time.
    var isUserMode = false

    /// Why no such network can be made here; nil when it can. Asked once.
    static let problem: String? = {
        guard geteuid() == 0 else { return "only root can make a network namespace" }
        guard access("/dev/net/tun", R_OK | W_OK) == 0 else { return "there is no /dev/net/tun" }
        do {
            let directory = NSTemporaryDirectory()
            let probe = try Network(name: "cbprobe\(getpid())", cards: 1, directory: directory)
            probe.remove()
            return nil
        } catch {
            return "no network namespace with a tap can be made here: \(error)"
        }
    }()

    init(name: String, cards: Int, directory: String) throws {
        self.name = name
        self.cards = cards
        self.directory = directory
        do {
            try Self.run(["netns", "add", name], directory)
            try Self.run(["-n", name, "link", "set", "lo", "up"], directory)
            for card in 0..<cards {
                try Self.run(["-n", name, "tuntap", "add", "tap\(card)", "mode", "tap"], directory)
                try Self.run(["-n", name, "addr", "add", "10.0.\(2 + card).2/24", "dev", "tap\(card)"], directory)
                try Self.run(["-n", name, "link", "set", "tap\(card)", "up"], directory)
            }
        } catch {
            remove()
            throw error
        }
    }

    func remove() {
        for program in programs { try? program.kill() }
        programs = []
        try? Self.run(["netns", "del", name], directory)
    }

    /// Words before a command that is to run within it. They become the command, so that its process id stays.
    var prefix: [String] { ["ip", "netns", "exec", name] }

    /// QEMU's words for the cards, and the guest's.
    var qemuArguments: [String] {
        if isUserMode { return ["-netdev", "user,id=n0", "-device", "virtio-net-pci,netdev=n0,id=nic0"] }
        return (0..<cards).flatMap { card in
            [
                "-netdev", "tap,id=n\(card),ifname=tap\(card),script=no,downscript=no", "-device",
                "virtio-net-pci,netdev=n\(card),id=nic\(card)",
            ]
        }
    }
    static let echoPort = 7007
    static let watchPort = 9999
    func kernelWords(datagramMilliseconds: Int) -> String {
        "colo.net=1 colo.nets=\(cards) colo.net_ms=\(datagramMilliseconds) colo.echo_port=\(Self.echoPort)"
    }
    /// The guest's address on its first card.
    static let guestAddress = "10.0.2.15"

    private static func run(_ words: [String], _ directory: String) throws {
        let output = "\(directory)/ip-\(UInt32.random(in: 0...UInt32.max))"
        defer { unlink(output) }
        let process = try ChildProcess("ip", "ip", words, output: output)
        let code = try process.waitForExit(within: 20)
        guard code == 0 else {
            throw TestFailure("ip \(words.joined(separator: " ")) exits with \(code): \(process.outputText)")
        }
    }

    // MARK: The world outside

    /// Starts Images/outside within it.
    func outside(_ words: [String]) throws -> ChildProcess {
        let log = "\(directory)/outside\(programs.count).log"
        let program = Settings.repository + "/Images/outside"
        let process = try ChildProcess(
            "outside", prefix[0], Array(prefix.dropFirst()) + ["python3", program] + words, output: log)
        programs.append(process)
        return process
    }

    func watch() throws -> Watch {
        let watch = Watch(try outside(["watch", "\(Self.watchPort)"]))
        try waitUntil("the observer listens", within: 10) { watch.process.outputText.contains("WATCHING") }
        return watch
    }

    func stream(bytesPerSecond: Int) throws -> EchoStream {
        let stream = EchoStream(try outside(["stream", Self.guestAddress, "\(Self.echoPort)", "\(bytesPerSecond)"]))
        try waitUntil("the connection to the guest stands", within: 20, seen: { stream.process.outputText }) {
            stream.progress > 0
        }
        return stream
    }
}

/// The numbered datagrams that arrived outside.
final class Watch {
    struct Datagram {
        /// Seconds of the monotonic clock.
        let time: Double
        let sender: String
        let number: Int
        let boot: String
    }

    let process: ChildProcess
    private var offset = 0
    private(set) var datagrams: [Datagram] = []

    fileprivate init(_ process: ChildProcess) { self.process = process }

    /// Takes in what has arrived since.
    @discardableResult
    func read() -> [Datagram] {
        let text = process.outputText
        let fresh = text.utf8.dropFirst(offset)
        guard let end = fresh.lastIndex(of: UInt8(ascii: "\n")) else { return [] }
        let whole = fresh[...end]
        offset += whole.count
        let found = String(decoding: whole, as: UTF8.self).split(separator: "\n").compactMap { line -> Datagram? in
            let words = line.split(separator: " ")
            guard words.count == 4, let time = Double(words[0]), let number = Int(words[2]) else { return nil }
            return Datagram(time: time / 1e9, sender: String(words[1]), number: number, boot: String(words[3]))
        }
        datagrams += found
        return found
    }

    /// The numbers from one sender that came again, or came behind a higher one.
    func disorder(from sender: String) -> [Int] {
        var highest = -1
        var wrong: [Int] = []
        for datagram in datagrams where datagram.sender == sender {
            if datagram.number <= highest { wrong.append(datagram.number) }
            highest = max(highest, datagram.number)
        }
        return wrong
    }

    /// Waits until something arrives that the guest sent from now on, or that waited until now. Returns the seconds.
    @discardableResult
    func waitForMore(_ count: Int = 5, within seconds: Double) throws -> Double {
        read()
        let before = datagrams.count
        return try waitUntil("\(count) datagrams arrive outside", within: seconds, every: 5) {
            read()
            return datagrams.count >= before + count
        }
    }
}

/// A connection to the guest's echo server, with every byte checked.
final class EchoStream {
    let process: ChildProcess

    fileprivate init(_ process: ChildProcess) { self.process = process }

    /// Bytes that came back so far.
    var progress: Int {
        let lines = process.outputText.split(separator: "\n").filter { $0.hasPrefix("STREAM ") }
        return lines.last.flatMap { $0.split(separator: " ").last }.flatMap { Int($0) } ?? 0
    }

    func waitForProgress(within seconds: Double) throws {
        let before = progress
        try waitUntil("bytes come back to the outside", within: seconds, seen: { tail(of: self.process.outputPath) }) {
            guard process.isRunning else { throw TestFailure("it ended: \(tail(of: process.outputPath))") }
            return progress > before
        }
    }

    /// Stops sending and waits until everything has come back. Returns its last words.
    func finish() throws -> String {
        process.signal(SIGTERM)
        let code = try process.waitForExit(within: 40)
        let words = process.outputText.split(separator: "\n").last.map(String.init) ?? ""
        guard code == 0 else { throw TestFailure("the connection was broken: \(words)") }
        return words
    }
}
