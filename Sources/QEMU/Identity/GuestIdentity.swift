/// Everything that is needed to start the same machine again elsewhere, gathered from the running guest.
///
/// Stored as JSON (guest.json) with the replica. Nothing in it is secret beyond what the command line itself shows.
public struct GuestIdentity: Sendable, Equatable, Codable {
    /// Version of this description; grows when an older reader would misread it.
    public static let currentFormat = 1

    public var format: Int
    /// `-name` of the guest, if it has one.
    public var name: String?
    public var version: QEMUVersion
    /// The program's file; for a QEMU started through a loader, the loader.
    public var executable: String?
    /// The whole command line, program first.
    public var arguments: [String]
    /// Relative paths of the command line start here.
    public var workingDirectory: String?
    /// The machine's resolved name ("pc-i440fx-7.2", never the alias "pc").
    public var machine: String
    public var usesKVM: Bool
    public var cpuCount: Int
    /// Name of the main RAM's memory back end, from the machine ("pc.ram" when the command line names none).
    public var memoryBackend: String?
    public var disks: [GuestDisk]
    public var networks: [GuestNetwork]
    /// Devices plugged in since the start: the command line does not have them.
    public var hotplugged: [String]
    /// Drives with removable media, as they were; nil in a description of a release that did not look.
    public var media: [GuestMedium]?
    /// The RAM blocks, once the migration stream has told them.
    public var ramLayout: [RamBlockDescription]?
    /// The configuration section of the migration stream, once it was seen; verbatim, without its type byte.
    public var configuration: [UInt8]?

    /// Answers that do not make an identity.
    public struct Incomplete: Error, Equatable, CustomStringConvertible {
        public let missing: String
        public var description: String { "QEMU does not say \(missing); the guest cannot be described" }
    }

    /// A description from a newer or an unknown program.
    public struct UnknownFormat: Error, Equatable, CustomStringConvertible {
        public let format: Int

        public init(format: Int) {
            self.format = format
        }

        public var description: String {
            "the guest's description has format \(format), this program knows \(GuestIdentity.currentFormat); "
                + "use the version of colo-blk that wrote it"
        }
    }

    /// Builds the identity from QEMU's answers and the guest's process. Pure.
    /// - Parameters:
    ///   - arguments: the guest's command line, program first.
    ///   - executable: the file behind it, as /proc/PID/exe says.
    public static func capture(
        _ answers: GuestAnswers, arguments: [String], executable: String? = nil, workingDirectory: String? = nil
    ) throws(Incomplete) -> GuestIdentity {
        guard let version = answers.version else { throw Incomplete(missing: "its version (query-version)") }
        guard let machine = answers.machineName else { throw Incomplete(missing: "its machine (qom-get /machine)") }
        let commandLine = QEMUCommandLine(arguments)
        return GuestIdentity(
            format: currentFormat, name: answers["query-name"]?["name"]?.stringValue, version: version,
            executable: executable, arguments: arguments, workingDirectory: workingDirectory, machine: machine,
            usesKVM: answers.usesKVM ?? false, cpuCount: answers.list("query-cpus-fast").count,
            memoryBackend: answers.machineProperties["memory-backend"]?.stringValue.flatMap(Self.lastComponent),
            disks: disks(answers, commandLine), networks: networks(commandLine),
            hotplugged: answers.peripherals.filter(\.hotplugged).map { "\($0.name) (\($0.type))" }.sorted(),
            media: GuestMedium.all(in: answers), ramLayout: nil, configuration: nil)
    }

    private static func lastComponent(_ path: String) -> String? {
        path.split(separator: "/").last.map(String.init)
    }

    /// Every inserted back end that may be written, in QEMU's order.
    private static func disks(_ answers: GuestAnswers, _ commandLine: QEMUCommandLine) -> [GuestDisk] {
        var out: [GuestDisk] = []
        var taken: Set<String> = []
        for entry in answers.list("query-block") {
            guard let inserted = entry["inserted"], inserted["ro"]?.boolValue == false,
                let size = inserted["image"]?["virtual-size"]?.uintValue
            else { continue }
            let device = entry["device"]?.stringValue ?? ""
            let qdev = entry["qdev"]?.stringValue
            let node = inserted["node-name"]?.stringValue ?? device
            // A node name that QEMU made up ("#block123") changes from start to start.
            let stable = [device, node.hasPrefix("#") ? "" : node, qdev ?? ""].first { !$0.isEmpty }
            let base = GuestDisk.sanitised(stable ?? "disk\(out.count)")
            var id = base
            var suffix = 2
            while !taken.insert(id).inserted {
                id = "\(base)-\(suffix)"
                suffix += 1
            }
            var disk = GuestDisk(
                id: id, device: device, qdev: qdev, node: node,
                filename: inserted["image"]?["filename"]?.stringValue ?? inserted["file"]?.stringValue ?? "",
                format: inserted["drv"]?.stringValue ?? "raw", size: size, discard: false)
            if let index = DiskOptions(commandLine).option(of: disk) {
                let option = commandLine.options[index]
                let discard = OptionText(option.value ?? "", implied: "driver")["discard"]
                disk.discard = discard == "unmap" || discard == "on"
            }
            out.append(disk)
        }
        return out
    }

    private static func networks(_ commandLine: QEMUCommandLine) -> [GuestNetwork] {
        commandLine.options.compactMap { option in
            guard option.name == "netdev" || option.name == "nic", let value = option.value else { return nil }
            let text = OptionText(value, implied: "type")
            return GuestNetwork(
                id: text["id"] ?? "", kind: text["type"] ?? "", vhost: text["vhost"] == "on")
        }
    }

    /// The bytes of guest.json.
    public func encoded() throws -> [UInt8] {
        try JSONValue(encoding: self).encoded()
    }

    /// Reads guest.json.
    /// - Throws: `UnknownFormat`, or what the JSON decoder says.
    public static func decode(_ bytes: [UInt8]) throws -> GuestIdentity {
        let json = try JSONValue.parse(bytes)
        let format = json["format"]?.intValue ?? 0
        guard format == Int64(currentFormat) else { throw UnknownFormat(format: Int(clamping: format)) }
        return try json.decoded()
    }
}
