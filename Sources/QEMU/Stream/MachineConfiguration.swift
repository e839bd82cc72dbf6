import Units

/// The configuration section of a migration stream, read: which machine this is.
///
/// Layout of the payload (after type byte 07), big endian:
/// ```
/// u32 length, machine name
/// { 05, u8 length, name, u32 version (1), contents }*
///     configuration/capabilities      u32 n, n * (u8 length, name)
///     configuration/target-page-bits  u32
///     configuration/uuid              16 bytes
/// ```
/// Subsections carry no length, so one with another name cannot be passed over and is refused by name.
public struct MachineConfiguration: Sendable, Equatable {
    public enum Subsection: Sendable, Equatable {
        /// Capabilities that the destination must have too.
        case capabilities([String])
        /// log2 of the target's page size.
        case targetPageBits(UInt32)
        /// 16 bytes.
        case uuid([UInt8])
    }

    /// What is wrong with the bytes.
    public enum Problem: Error, Equatable, Sendable, CustomStringConvertible {
        case truncated(ByteReader.Truncated)
        case tooLong(limit: Int)
        case nameNotText
        case emptyName
        case unknownSubsection(String)
        case unsupportedSubsectionVersion(name: String, version: UInt32)
        case repeatedSubsection(String)
        case tooManyCapabilities(UInt32)
        case trailingBytes(Int)

        public var description: String {
            switch self {
            case .truncated(let detail): "\(detail)"
            case .tooLong(let limit): "longer than \(limit) bytes"
            case .nameNotText: "a name is not UTF-8"
            case .emptyName: "a name is empty"
            case .unknownSubsection(let name): "subsection '\(name)' is not known"
            case .unsupportedSubsectionVersion(let name, let version):
                "version \(version) of subsection '\(name)'; only 1 is known"
            case .repeatedSubsection(let name): "subsection '\(name)' comes twice"
            case .tooManyCapabilities(let count): "\(count) capabilities; at most \(maxCapabilities) are expected"
            case .trailingBytes(let count): "\(count) bytes behind its end"
            }
        }
    }

    private static let maxCapabilities = 64

    /// Machine type with its version, aliases resolved ("pc-i440fx-7.2").
    public let machineName: String
    /// In stream order, each kind at most once.
    public let subsections: [Subsection]

    /// Reads a complete payload, as a store or a link peer hands it in.
    public init(parsing bytes: UnsafeRawBufferPointer, limits: MigrationLimits = MigrationLimits()) throws(Problem) {
        guard bytes.count <= limits.maxConfigurationBytes else { throw .tooLong(limit: limits.maxConfigurationBytes) }
        var reader = ConfigurationReader(bytes, limit: limits.maxConfigurationBytes)
        self = try reader.configuration(endsWithBytes: true)
        guard reader.remaining == 0 else { throw .trailingBytes(reader.remaining) }
    }

    public init(parsing bytes: [UInt8], limits: MigrationLimits = MigrationLimits()) throws(Problem) {
        var result: Result<MachineConfiguration, Problem> = .failure(.emptyName)
        bytes.withUnsafeBytes { buffer in
            do throws(Problem) {
                result = .success(try MachineConfiguration(parsing: buffer, limits: limits))
            } catch {
                result = .failure(error)
            }
        }
        self = try result.get()
    }

    fileprivate init(machineName: String, subsections: [Subsection]) {
        self.machineName = machineName
        self.subsections = subsections
    }

    /// Reads the payload at the front of `window`, which may be cut anywhere.
    ///
    /// - Returns: the configuration and its length in bytes, or nil when more bytes are needed. One byte behind the
    ///   payload must be there, since only the next type byte tells that no further subsection comes.
    static func parsePrefix(
        _ window: UnsafeRawBufferPointer, limit: Int
    ) throws(Problem) -> (configuration: MachineConfiguration, length: Int)? {
        var reader = ConfigurationReader(window, limit: limit)
        do throws(Problem) {
            let configuration = try reader.configuration(endsWithBytes: false)
            guard reader.offset <= limit else { throw .tooLong(limit: limit) }
            return (configuration, reader.offset)
        } catch {
            guard case .truncated = error else { throw error }
            guard window.count <= limit else { throw .tooLong(limit: limit) }
            return nil
        }
    }

    fileprivate static func check(capabilities count: UInt32) throws(Problem) {
        guard count <= maxCapabilities else { throw .tooManyCapabilities(count) }
    }
}

/// A ``ByteReader`` that speaks of problems with a configuration.
private struct ConfigurationReader {
    typealias Problem = MachineConfiguration.Problem

    private let limit: Int
    private var reader: ByteReader

    init(_ bytes: UnsafeRawBufferPointer, limit: Int) {
        self.limit = limit
        self.reader = ByteReader(bytes)
    }

    var offset: Int { reader.offset }
    var remaining: Int { reader.remaining }

    private mutating func read<T: FixedWidthInteger>(_ type: T.Type) throws(Problem) -> T {
        do { return try reader.read(type) } catch { throw .truncated(error) }
    }

    private mutating func readBytes(_ length: Int) throws(Problem) -> UnsafeRawBufferPointer {
        do { return try reader.readBytes(length) } catch { throw .truncated(error) }
    }

    private mutating func readText(_ length: Int) throws(Problem) -> String {
        guard length > 0 else { throw .emptyName }
        guard length <= limit else { throw .tooLong(limit: limit) }
        guard let text = String(validating: try readBytes(length), as: UTF8.self) else { throw .nameNotText }
        return text
    }

    /// - Parameter endsWithBytes: whether the end of the bytes is the end of the payload; otherwise a further byte
    ///   must show that no subsection follows.
    mutating func configuration(endsWithBytes: Bool) throws(Problem) -> MachineConfiguration {
        let name = try readText(Int(try read(UInt32.self)))
        var subsections: [MachineConfiguration.Subsection] = []
        var seen: Set<String> = []
        while true {
            if endsWithBytes, remaining == 0 { break }
            var ahead = self
            guard try ahead.read(UInt8.self) == MigrationWire.subsection else { break }
            self = ahead
            let subsection = try readText(Int(try read(UInt8.self)))
            guard seen.insert(subsection).inserted else { throw .repeatedSubsection(subsection) }
            subsections.append(try contents(of: subsection))
        }
        return MachineConfiguration(machineName: name, subsections: subsections)
    }

    private mutating func contents(of name: String) throws(Problem) -> MachineConfiguration.Subsection {
        let isKnown =
            name == "configuration/capabilities" || name == "configuration/target-page-bits"
            || name == "configuration/uuid"
        guard isKnown else { throw .unknownSubsection(name) }
        let version = try read(UInt32.self)
        guard version == 1 else { throw .unsupportedSubsectionVersion(name: name, version: version) }
        switch name {
        case "configuration/capabilities":
            let count = try read(UInt32.self)
            try MachineConfiguration.check(capabilities: count)
            var names: [String] = []
            for _ in 0..<count { names.append(try readText(Int(try read(UInt8.self)))) }
            return .capabilities(names)
        case "configuration/target-page-bits":
            return .targetPageBits(try read(UInt32.self))
        default:
            return .uuid(Array(try readBytes(16)))
        }
    }
}
