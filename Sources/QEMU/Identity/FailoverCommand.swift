/// The command that starts a replica as a guest: the primary's own command line with its disks, its RAM and everything
/// that belongs to the primary's host replaced.
public struct FailoverCommand: Sendable, Equatable, Codable {
    public enum Mode: String, Sendable, Codable {
        /// The real thing: network and displays as they were, serial lines in the runtime directory.
        case failover
        /// A proof that the machine can start: paused, nothing of the outside is touched.
        case proof
    }

    /// An image that takes the place of a disk.
    public struct Image: Sendable, Equatable {
        public var path: String
        /// Block driver of the image: "qcow2" or "raw".
        public var format: String

        public init(path: String, format: String = "qcow2") {
            self.path = path
            self.format = format
        }
    }

    /// A file that is mapped (privately) as one RAM block.
    public struct MappedBlock: Sendable, Equatable {
        /// The block's name in the migration stream.
        public var name: String
        public var path: String
        /// The block's exact length in bytes.
        public var size: UInt64

        public init(name: String, path: String, size: UInt64) {
            self.name = name
            self.path = path
            self.size = size
        }
    }

    public struct Substitutions: Sendable, Equatable {
        /// By ``GuestDisk/id``; every disk of the identity must be there.
        public var disks: [String: Image]
        /// Only names out of ``FailoverCommand/mappableBlocks(_:)``.
        public var ram: [MappedBlock]
        /// Sockets and logs of serial lines and character devices go there.
        public var runtimeDirectory: String
        public var qmpSocket: String
        public var mode: Mode
        /// Appended last; `-incoming` belongs here.
        public var extraArguments: [String]
        /// Another QEMU than the primary's.
        public var executable: String?

        public init(
            disks: [String: Image], ram: [MappedBlock], runtimeDirectory: String, qmpSocket: String, mode: Mode,
            extraArguments: [String] = [], executable: String? = nil
        ) {
            self.disks = disks
            self.ram = ram
            self.runtimeDirectory = runtimeDirectory
            self.qmpSocket = qmpSocket
            self.mode = mode
            self.extraArguments = extraArguments
            self.executable = executable
        }
    }

    public var executable: String
    /// Without the program's name.
    public var arguments: [String]
    /// What could not be carried over (blockers) and what one should know (warnings, notes).
    public var findings: [Finding]

    public init(executable: String, arguments: [String], findings: [Finding]) {
        self.executable = executable
        self.arguments = arguments
        self.findings = findings
    }

    public var hasBlockers: Bool { findings.contains { $0.severity == .blocker } }

    /// Builds the command. Pure: looks at nothing but its arguments.
    public static func build(_ identity: GuestIdentity, _ substitutions: Substitutions) -> FailoverCommand {
        var builder = FailoverBuilder(identity, substitutions)
        builder.build()
        let (executable, prefix) = program(identity, substitutions.executable, &builder.findings)
        return FailoverCommand(
            executable: executable,
            arguments: prefix + builder.out.flatMap(\.arguments)
                + substitutions.extraArguments,
            findings: builder.findings)
    }

    /// The RAM blocks that a new QEMU can map from a file: the machine's main RAM and those made with
    /// `-object memory-backend-…`. All other blocks (video RAM, firmware, tables) travel in the restore stream,
    /// however large they are. Empty as long as the identity has no RAM layout.
    public static func mappableBlocks(_ identity: GuestIdentity) -> [String] {
        let backends = MemoryBackends(identity)
        return (identity.ramLayout ?? []).map(\.name).filter { backends.place(of: $0) != nil }
    }

    /// QEMU's file and what stands between it and its options.
    private static func program(
        _ identity: GuestIdentity, _ override: String?, _ findings: inout [Finding]
    ) -> (String, [String]) {
        if let override { return (override, []) }
        let words = QEMUCommandLine(identity.arguments).program
        let first = words.first ?? "qemu-system-x86_64"
        let deleted = " (deleted)"
        guard let file = identity.executable else { return (first, Array(words.dropFirst())) }
        guard file.hasSuffix(deleted) else { return (file, Array(words.dropFirst())) }
        findings.append(
            Finding(
                .warning, "qemu-replaced",
                "the primary's QEMU file was replaced after the guest had been started; the file now there is used",
                remedy: "make sure that a QEMU \(identity.version) is installed where the guest shall start"))
        return (String(file.dropLast(deleted.count)), Array(words.dropFirst()))
    }

    /// The command as one line for a shell.
    public var text: String { Self.text([executable] + arguments) }

    /// Words as one line for a shell.
    public static func text(_ words: [String]) -> String { words.map(quoted).joined(separator: " ") }

    private static func quoted(_ word: String) -> String {
        let plain = word.utf8.allSatisfy { byte in
            switch byte {
            case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"),
                UInt8(ascii: "0")...UInt8(ascii: "9"):
                return true
            default: return "_-./:=,@%+".utf8.contains(byte)
            }
        }
        if plain, !word.isEmpty { return word }
        return "'" + word.split(separator: "'", omittingEmptySubsequences: false).joined(separator: "'\\''") + "'"
    }
}

/// Which memory back end a RAM block belongs to.
struct MemoryBackends {
    enum Place: Equatable {
        /// The machine's default RAM, for which the command line has no object.
        case defaultRAM(id: String)
        /// `-object memory-backend-…,id=ID`; whether the block's name is the object's path.
        case object(id: String, canonicalPath: Bool)
    }

    private var objects: Set<String> = []
    private let defaultID: String?

    init(_ identity: GuestIdentity) {
        for value in QEMUCommandLine(identity.arguments).values("object") {
            let text = OptionText(value, implied: "qom-type")
            guard let id = text["id"], Self.kinds.contains(text["qom-type"] ?? "") else { continue }
            objects.insert(id)
        }
        let backend = identity.memoryBackend ?? "pc.ram"
        defaultID = objects.contains(backend) ? nil : backend
    }

    /// The kinds that can be replaced by a file.
    static let kinds: Set<String> = ["memory-backend-ram", "memory-backend-memfd", "memory-backend-file"]

    func place(of block: String) -> Place? {
        let path = "/objects/"
        if block.hasPrefix(path) {
            let id = String(block.dropFirst(path.count))
            return objects.contains(id) ? .object(id: id, canonicalPath: true) : nil
        }
        if objects.contains(block) { return .object(id: block, canonicalPath: false) }
        return block == defaultID ? .defaultRAM(id: block) : nil
    }
}
