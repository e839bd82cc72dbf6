/// What a guest's QEMU answered to a fixed list of questions; the input of the identity and of the doctor.
public struct GuestAnswers: Sendable, Equatable, Codable {
    /// A device that the command line or a hot-plug has added.
    public struct Peripheral: Sendable, Equatable, Codable {
        /// The device's id; for a device without one its QOM path.
        public var name: String
        /// For instance "virtio-net-pci".
        public var type: String
        public var hotplugged: Bool
        /// The `-netdev` behind a network card, by its id; nil for everything else.
        public var netdev: String?

        public init(name: String, type: String, hotplugged: Bool, netdev: String? = nil) {
            self.name = name
            self.type = type
            self.hotplugged = hotplugged
            self.netdev = netdev
        }
    }

    /// The questions that take no arguments.
    public static let commands = [
        "query-version", "query-status", "query-name", "query-kvm", "query-block", "query-block-jobs",
        "query-chardev", "query-memdev", "query-memory-devices", "query-memory-size-summary", "query-cpus-fast",
        "query-rx-filter", "query-iothreads", "query-migrate", "query-migrate-capabilities",
    ]

    /// Answers by command; a command that QEMU refused is missing. `query-named-block-nodes` is here as well.
    public var answers: [String: JSONValue]
    /// QOM type of the machine, as in "pc-i440fx-7.2-machine".
    public var machineType: String?
    /// Properties of the machine: "memory-backend" (a QOM path) and "suppress-vmdesc".
    public var machineProperties: [String: JSONValue]
    public var peripherals: [Peripheral]

    public init(
        answers: [String: JSONValue] = [:], machineType: String? = nil, machineProperties: [String: JSONValue] = [:],
        peripherals: [Peripheral] = []
    ) {
        self.answers = answers
        self.machineType = machineType
        self.machineProperties = machineProperties
        self.peripherals = peripherals
    }

    /// The ids of the `-netdev`s behind the guest's network cards, sorted.
    public var networks: [String] { Set(peripherals.compactMap(\.netdev)).sorted() }

    public subscript(command: String) -> JSONValue? { answers[command] }

    /// The elements of an answer that is a list; empty when there is none.
    public func list(_ command: String) -> [JSONValue] { answers[command]?.arrayValue ?? [] }

    public var version: QEMUVersion? { QEMUVersion(answers["query-version"]) }

    /// Whether the guest runs under KVM; nil when QEMU does not say.
    public var usesKVM: Bool? { answers["query-kvm"]?["enabled"]?.boolValue }

    /// The machine's resolved name, as `-machine` takes it.
    public var machineName: String? {
        guard let machineType else { return nil }
        return machineType.hasSuffix("-machine") ? String(machineType.dropLast("-machine".count)) : machineType
    }
}
